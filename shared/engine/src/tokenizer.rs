//! From a text or raw token ids to the ids a model takes; input: [`Input`] and a truncation rule, output: ids with the special tokens in place.
//!
//! Truncation and padding of `tokenizer.json` are switched off: cutting is decided per request, and batches have no padding.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{InputError, LoadError};
use crate::vocabulary::Vocabulary;

/// What a caller wants embedded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input<'a> {
    /// A text.
    Text(&'a str),
    /// Token ids; the special tokens are added when they are not there.
    Tokens(&'a [u32]),
}

/// What to do with an input that is longer than the model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Truncate {
    /// Refuse it.
    #[default]
    None,
    /// Drop tokens at its start.
    Start,
    /// Drop tokens at its end.
    End,
}

/// Token ids of one input as the model takes them, special tokens included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenIds {
    ids: Vec<u32>,
    /// Where the tokens of the second text begin; their number when there is none, or none that the model tells apart.
    second_from: usize,
}

impl TokenIds {
    /// Ids that came from [`crate::EmbeddingModel::tokenize`] of the same model (perhaps in another process); nothing is added.
    pub fn new(ids: Vec<u32>) -> Self {
        let second_from = ids.len();
        Self { ids, second_from }
    }

    /// Ids of two texts, the second from this place on.
    pub(crate) fn pair(ids: Vec<u32>, second_from: usize) -> Self {
        Self { ids, second_from }
    }

    pub(crate) fn second_from(&self) -> usize {
        self.second_from
    }

    /// Number of tokens, special ones included: what is counted and charged.
    #[expect(clippy::len_without_is_empty, reason = "tokenized input is never empty")]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// The ids.
    pub fn as_slice(&self) -> &[u32] {
        &self.ids
    }

    /// The ids, owned.
    pub fn into_vec(self) -> Vec<u32> {
        self.ids
    }
}

/// A model's tokenizer with its limits.
pub(crate) struct TextTokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    max_tokens: usize,
    vocab: usize,
    file: PathBuf,
}

impl TextTokenizer {
    /// Loads `tokenizer.json`; `vocab` is the number of rows of the word table.
    pub(crate) fn load(file: &Path, max_tokens: usize, vocab: usize) -> Result<Self, LoadError> {
        let bytes = std::fs::read(file).map_err(|source| LoadError::Read {
            file: file.to_owned(),
            source,
        })?;
        let damaged = |reason: String| LoadError::Format {
            file: file.to_owned(),
            reason,
        };
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| damaged(error.to_string()))?;
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|error| damaged(error.to_string()))?;
        let (prefix, suffix) = special_tokens(&inner).map_err(damaged)?;
        if prefix.len() + suffix.len() >= max_tokens {
            return Err(damaged(format!(
                "{} special tokens leave no room in {max_tokens}",
                prefix.len() + suffix.len()
            )));
        }
        if let Some(id) = prefix.iter().chain(&suffix).find(|id| **id as usize >= vocab) {
            return Err(damaged(format!(
                "special token {id} is outside the model's vocabulary of {vocab}"
            )));
        }
        Ok(Self {
            inner: Arc::new(inner),
            prefix,
            suffix,
            max_tokens,
            vocab,
            file: file.to_owned(),
        })
    }

    pub(crate) fn tokenize(&self, input: Input<'_>, truncate: Truncate) -> Result<TokenIds, InputError> {
        match input {
            Input::Text("") | Input::Tokens([]) => Err(InputError::Empty),
            Input::Text(text) => {
                let ids = self.vocabulary().encode(text, false)?;
                self.finish(&ids, truncate)
            }
            Input::Tokens(ids) => self.finish(self.without_special(ids), truncate),
        }
    }

    /// Texts to tokens and back without limits and rules of length.
    pub(crate) fn vocabulary(&self) -> Vocabulary {
        Vocabulary::new(Arc::clone(&self.inner), self.vocab)
    }

    /// Longest input, special tokens included.
    pub(crate) fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Reads something off the tokenizer's encoding of a pair of short texts.
    pub(crate) fn probe_pair<T>(
        &self,
        read: impl FnOnce(&tokenizers::Encoding) -> Result<T, String>,
    ) -> Result<T, LoadError> {
        let probe = self.inner.encode(("a", "a"), true).map_err(|error| error.to_string());
        let found = probe.and_then(|probe| {
            let special = probe.get_sequence_ids().iter().filter(|text| text.is_none()).count();
            if special + 2 > self.max_tokens {
                return Err(format!(
                    "{special} special tokens leave no room for a pair in {}",
                    self.max_tokens
                ));
            }
            read(&probe)
        });
        found.map_err(|reason| LoadError::Format {
            file: self.file.clone(),
            reason,
        })
    }

    /// The content of ids that already carry the special tokens, else all of them.
    fn without_special<'a>(&self, ids: &'a [u32]) -> &'a [u32] {
        ids.strip_prefix(&self.prefix[..])
            .and_then(|rest| rest.strip_suffix(&self.suffix[..]))
            .unwrap_or(ids)
    }

    /// Checks, cuts and puts the special tokens around.
    fn finish(&self, content: &[u32], truncate: Truncate) -> Result<TokenIds, InputError> {
        if let Some(&id) = content.iter().find(|id| **id as usize >= self.vocab) {
            return Err(InputError::TokenOutOfRange { id, vocab: self.vocab });
        }
        let special = self.prefix.len() + self.suffix.len();
        let room = self.max_tokens - special;
        let content = match truncate {
            _ if content.len() <= room => content,
            Truncate::None => {
                return Err(InputError::TooLong {
                    tokens: content.len() + special,
                    max: self.max_tokens,
                });
            }
            Truncate::Start => &content[content.len() - room..],
            Truncate::End => &content[..room],
        };
        Ok(TokenIds::new([&self.prefix[..], content, &self.suffix[..]].concat()))
    }
}

impl std::fmt::Debug for TextTokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("TextTokenizer")
            .field("max_tokens", &self.max_tokens)
            .field("vocab", &self.vocab)
            .finish_non_exhaustive()
    }
}

/// The special tokens before and after a text, read off the tokens of a probe.
fn special_tokens(tokenizer: &tokenizers::Tokenizer) -> Result<(Vec<u32>, Vec<u32>), String> {
    let probe = tokenizer.encode("a", true).map_err(|error| error.to_string())?;
    let (ids, special) = (probe.get_ids(), probe.get_special_tokens_mask());
    let is_special = |mask: &u32| *mask == 1;
    let before = special.iter().take_while(|mask| is_special(mask)).count();
    let after = special.iter().rev().take_while(|mask| is_special(mask)).count();
    if before + after >= ids.len() {
        return Err("the letter `a` has no token".to_owned());
    }
    Ok((ids[..before].to_vec(), ids[ids.len() - after..].to_vec()))
}
