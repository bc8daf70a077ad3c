//! The text side of a generative model; input: a directory, then texts, messages or token ids, output: token ids, prompts or text.
//!
//! It holds no weights, so a process that only prepares requests can have it too.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::chat_template::{ChatRequest, ChatTemplates, TemplateError};
use super::config::{DecoderConfig, SamplingDefaults, sampling_defaults};
use super::constraint::{Constraint, Grammar, GrammarError, Grammars};
use super::detokenize::{Detokenizer, SpecialTokens, Spelling, TokenBytes};
use super::tool_calls::ToolStyle;
use crate::error::{InputError, LoadError};

/// Whether `encode` puts a model's special tokens (often a first one) around a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AddSpecial {
    /// It does: for a bare text.
    #[default]
    Yes,
    /// It does not: for a rendered chat, which has them already, and for parts of a text.
    No,
}

/// Tokenizer, chat templates and what the card says about sampling.
pub struct TextModel {
    tokenizer: tokenizers::Tokenizer,
    tokens: Arc<TokenBytes>,
    templates: ChatTemplates,
    tools: Option<ToolStyle>,
    /// Made for the first request that needs it: it takes some hundred milliseconds and megabytes for a large vocabulary.
    grammars: OnceLock<Result<Grammars, GrammarError>>,
    defaults: SamplingDefaults,
    vocab_size: usize,
    max_tokens: usize,
    eos: Vec<u32>,
}

impl TextModel {
    /// Reads `config.json`, `tokenizer.json`, the chat template and `generation_config.json`; the last two may be absent.
    pub fn load(directory: &Path) -> Result<Self, LoadError> {
        let config = DecoderConfig::load(directory)?;
        let file = directory.join("tokenizer.json");
        let bytes = std::fs::read(&file).map_err(|source| LoadError::Read {
            file: file.clone(),
            source,
        })?;
        let damaged = |reason: String| LoadError::Format {
            file: file.clone(),
            reason,
        };
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| damaged(error.to_string()))?;
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| damaged(error.to_string()))?;
        let tokens = token_bytes(&tokenizer).map_err(|reason| LoadError::Field {
            file: file.clone(),
            field: "decoder",
            reason,
        })?;
        let templates = ChatTemplates::load(directory)?;
        let special_id = |mark: &str| tokenizer.token_to_id(mark).filter(|id| tokens.is_special(*id));
        Ok(Self {
            tools: templates.tool_format().map(|format| ToolStyle::new(format, special_id)),
            tokenizer,
            tokens: Arc::new(tokens),
            templates,
            grammars: OnceLock::new(),
            defaults: sampling_defaults(directory)?,
            vocab_size: config.vocab_size,
            max_tokens: config.max_positions,
            eos: config.eos,
        })
    }

    /// Ids of a text; special tokens that are spelled out in it are recognized.
    pub fn encode(&self, text: &str, special: AddSpecial) -> Result<Vec<u32>, InputError> {
        let encoding = self.tokenizer.encode_fast(text, special == AddSpecial::Yes);
        let encoding = encoding.map_err(|error| InputError::Tokenizer {
            reason: error.to_string(),
        })?;
        let ids = encoding.get_ids();
        match ids.iter().find(|id| **id as usize >= self.vocab_size) {
            Some(&id) => Err(InputError::TokenOutOfRange {
                id,
                vocab: self.vocab_size,
            }),
            None => Ok(ids.to_vec()),
        }
    }

    /// The text of ids; what is not whole at the end becomes U+FFFD.
    pub fn decode(&self, ids: &[u32], special: SpecialTokens) -> String {
        let mut detokenizer = self.detokenizer(special);
        let mut text = String::new();
        for id in ids {
            text.push_str(detokenizer.push(*id));
        }
        text.push_str(detokenizer.finish());
        text
    }

    /// A decoder for ids that come one by one.
    pub fn detokenizer(&self, special: SpecialTokens) -> Detokenizer {
        Detokenizer::new(Arc::clone(&self.tokens), special)
    }

    /// A decoder for an answer in which calls of functions are looked for.
    pub fn detokenizer_of_calls(&self, style: &ToolStyle) -> Detokenizer {
        self.detokenizer(SpecialTokens::Skip).keeping(&style.kept_tokens())
    }

    /// How the model calls functions; `None` when its chat template knows none.
    pub fn tool_style(&self) -> Option<&ToolStyle> {
        self.tools.as_ref()
    }

    /// What keeps an answer to a grammar; blocks for up to some tens of milliseconds when the grammar is new.
    pub fn constraint(&self, grammar: &Grammar) -> Result<Constraint, GrammarError> {
        let grammars = self
            .grammars
            .get_or_init(|| Grammars::new(&self.tokens, self.vocab_size, &self.eos));
        grammars.as_ref().map_err(Clone::clone)?.constraint(grammar)
    }

    /// The bytes of one token, perhaps a part of a character; empty for an id that the tokenizer does not have.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.tokens.get(id).unwrap_or_default()
    }

    /// A token as the vocabulary spells it; empty for an id that the tokenizer does not have.
    pub fn spelling(&self, id: u32) -> String {
        self.tokenizer.id_to_token(id).unwrap_or_default()
    }

    /// Whether a token is a special one.
    pub fn is_special(&self, id: u32) -> bool {
        self.tokens.is_special(id)
    }

    /// The prompt of a conversation; encode it with [`AddSpecial::No`].
    pub fn render_chat(&self, request: &ChatRequest) -> Result<String, TemplateError> {
        self.templates.render(request)
    }

    /// What the model's card says about sampling.
    pub fn sampling_defaults(&self) -> &SamplingDefaults {
        &self.defaults
    }

    /// Token ids are below this.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Positions the model has.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Tokens that end an answer.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }
}

impl std::fmt::Debug for TextModel {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("TextModel")
            .field("vocab_size", &self.vocab_size)
            .field("max_tokens", &self.max_tokens)
            .field("eos", &self.eos)
            .finish_non_exhaustive()
    }
}

fn token_bytes(tokenizer: &tokenizers::Tokenizer) -> Result<TokenBytes, String> {
    let decoder = serde_json::to_value(tokenizer.get_decoder()).map_err(|error| error.to_string())?;
    let spelling =
        Spelling::of_decoder(&decoder).ok_or("is neither of the byte-level nor of the sentencepiece kind")?;
    let added = tokenizer.get_added_tokens_decoder();
    let special: Vec<u32> = added
        .iter()
        .filter(|(_, token)| token.special)
        .map(|(id, _)| *id)
        .collect();
    Ok(TokenBytes::new(&tokenizer.get_vocab(true), &special, spelling))
}
