//! Answers as they are shared. Input: content and usage of one computed request. Output: the value that waiters, the local
//! cache and the shared tier hold; embeddings are rendered at most once per encoding, text for each client anew, because
//! each has an id of its own.

use std::sync::OnceLock;

use bytes::Bytes;
use schemas::cache::{CachedEmbeddings, CachedRanking, CachedText};
use schemas::generate::TextPart;
use schemas::http::{CompletionUsage, EncodingFormat};
use schemas::reply::Usage;
use schemas::vector::Vector;
use schemas::wire::{self, WireError};

use crate::http::render;
use crate::received::{Content, Wanted};

/// Bytes an answer takes besides its content and rendered bodies: the cache's own bookkeeping, roughly.
const OVERHEAD_BYTES: usize = 256;

/// One computed answer.
#[derive(Debug)]
pub enum Answer {
    /// Vectors.
    Embeddings(Embeddings),
    /// Text.
    Text(Text),
    /// Scores.
    Ranking(Ranking),
}

/// Vectors and what they took.
#[derive(Debug)]
pub struct Embeddings {
    model: String,
    vectors: Vec<Vector>,
    input_tokens: u64,
    float: OnceLock<Bytes>,
    base64: OnceLock<Bytes>,
}

/// Text and what it took.
#[derive(Debug)]
pub struct Text {
    model: String,
    /// One part per choice, in their order.
    pub choices: Vec<TextPart>,
    /// What it took.
    pub usage: CompletionUsage,
}

/// Scores of passages and what they took.
#[derive(Debug)]
pub struct Ranking {
    /// The model's true name.
    pub model: String,
    /// The raw score of each passage, in their order.
    pub scores: Vec<f32>,
    /// Tokens in, special tokens included.
    pub input_tokens: u64,
}

impl Answer {
    /// An answer that was computed.
    #[must_use]
    pub fn new(model: String, content: Content, usage: Usage) -> Self {
        match content {
            Content::Vectors(vectors) => Self::Embeddings(Embeddings {
                model,
                vectors,
                input_tokens: usage.input_tokens,
                float: OnceLock::new(),
                base64: OnceLock::new(),
            }),
            Content::Text(choices) => Self::Text(Text {
                model,
                choices,
                usage: CompletionUsage::new(usage.input_tokens, usage.output_tokens, usage.cached_tokens),
            }),
            Content::Scores(scores) => Self::Ranking(Ranking {
                model,
                scores,
                input_tokens: usage.input_tokens,
            }),
        }
    }

    /// An answer that came from the shared tier.
    ///
    /// # Errors
    /// [`WireError`] when its body is not an answer of the kind that is wanted.
    pub fn from_cached(model: String, wanted: Wanted, body: &[u8]) -> Result<Self, WireError> {
        let (content, input_tokens, output_tokens) = match wanted {
            Wanted::Vectors(_) => {
                let cached: CachedEmbeddings = wire::decode(body)?;
                (Content::Vectors(cached.vectors), cached.input_tokens, 0)
            }
            Wanted::Text(_) => {
                let cached: CachedText = wire::decode(body)?;
                (Content::Text(cached.choices), cached.input_tokens, cached.output_tokens)
            }
            Wanted::Scores(_) => {
                let cached: CachedRanking = wire::decode(body)?;
                (Content::Scores(cached.scores), cached.input_tokens, 0)
            }
        };
        let usage = Usage {
            input_tokens,
            output_tokens,
            ..Usage::default()
        };
        Ok(Self::new(model, content, usage))
    }

    /// What the shared tier keeps of it.
    ///
    /// # Errors
    /// [`WireError`], never for these types.
    pub fn to_cached(&self) -> Result<Vec<u8>, WireError> {
        match self {
            Self::Embeddings(answer) => wire::encode(&CachedEmbeddings {
                vectors: answer.vectors.clone(),
                input_tokens: answer.input_tokens,
            }),
            Self::Text(answer) => wire::encode(&CachedText {
                choices: answer.choices.clone(),
                input_tokens: answer.usage.prompt_tokens,
                output_tokens: answer.usage.completion_tokens,
            }),
            Self::Ranking(answer) => wire::encode(&CachedRanking {
                scores: answer.scores.clone(),
                input_tokens: answer.input_tokens,
            }),
        }
    }

    /// The vectors, if it has some.
    #[must_use]
    pub fn embeddings(&self) -> Option<&Embeddings> {
        match self {
            Self::Embeddings(answer) => Some(answer),
            Self::Text(_) | Self::Ranking(_) => None,
        }
    }

    /// The text, if it has some.
    #[must_use]
    pub fn text(&self) -> Option<&Text> {
        match self {
            Self::Text(answer) => Some(answer),
            Self::Embeddings(_) | Self::Ranking(_) => None,
        }
    }

    /// The scores, if it has some.
    #[must_use]
    pub fn ranking(&self) -> Option<&Ranking> {
        match self {
            Self::Ranking(answer) => Some(answer),
            Self::Embeddings(_) | Self::Text(_) => None,
        }
    }

    /// The model's true name.
    #[must_use]
    pub fn model(&self) -> &str {
        match self {
            Self::Embeddings(answer) => &answer.model,
            Self::Text(answer) => &answer.model,
            Self::Ranking(answer) => &answer.model,
        }
    }

    /// What was done, as the ledger names it.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        match self {
            Self::Embeddings(_) => "embed",
            Self::Text(_) => "generate",
            Self::Ranking(_) => "rank",
        }
    }

    /// Tokens in, special tokens included.
    #[must_use]
    pub fn input_tokens(&self) -> u64 {
        match self {
            Self::Embeddings(answer) => answer.input_tokens,
            Self::Text(answer) => answer.usage.prompt_tokens,
            Self::Ranking(answer) => answer.input_tokens,
        }
    }

    /// Tokens out.
    #[must_use]
    pub fn output_tokens(&self) -> u64 {
        match self {
            Self::Embeddings(_) | Self::Ranking(_) => 0,
            Self::Text(answer) => answer.usage.completion_tokens,
        }
    }

    /// What the answer weighs in the local cache, in bytes.
    #[must_use]
    pub fn weight_bytes(&self) -> u32 {
        let content = match self {
            // Vectors (4 bytes a value) and both rendered bodies (about 12 and 6 bytes a value), counted before they
            // exist so that rendering never breaks the bound.
            Self::Embeddings(answer) => {
                let values: usize = answer.vectors.iter().map(|vector| vector.0.len()).sum();
                values * (4 + 12 + 6) + answer.vectors.len() * 128
            }
            Self::Text(answer) => answer.choices.iter().map(TextPart::weight_bytes).sum(),
            Self::Ranking(answer) => answer.scores.len() * size_of::<f32>(),
        };
        u32::try_from(content + OVERHEAD_BYTES).unwrap_or(u32::MAX)
    }
}

impl Embeddings {
    /// The response body, rendered on first use.
    pub fn body(&self, format: EncodingFormat) -> Bytes {
        let cell = match format {
            EncodingFormat::Float => &self.float,
            EncodingFormat::Base64 => &self.base64,
        };
        cell.get_or_init(|| render::embeddings(&self.model, &self.vectors, self.input_tokens, format))
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use schemas::generate::FinishReason;

    use super::*;

    #[test]
    fn what_the_shared_tier_keeps_is_the_answer_again() {
        let part = TextPart {
            text: "fn".to_owned(),
            tokens: vec![1, 2],
            finish: Some(FinishReason::Stop),
            ..TextPart::default()
        };
        let usage = Usage {
            input_tokens: 3,
            output_tokens: 2,
            ..Usage::default()
        };
        let text = Answer::new("m".to_owned(), Content::Text(vec![part.clone()]), usage);
        let body = text.to_cached().unwrap();
        let read = Answer::from_cached("m".to_owned(), Wanted::Text(1), &body).unwrap();
        assert_eq!(read.text().unwrap().choices, [part]);
        assert_eq!(
            (read.input_tokens(), read.output_tokens(), read.operation()),
            (3, 2, "generate")
        );
        assert!(Answer::from_cached("m".to_owned(), Wanted::Vectors(1), &body).is_err());
        assert!(text.embeddings().is_none() && text.ranking().is_none() && text.weight_bytes() > 256);
        let ranking = Answer::new("m".to_owned(), Content::Scores(vec![0.5, -2.0]), usage);
        let body = ranking.to_cached().unwrap();
        let read = Answer::from_cached("m".to_owned(), Wanted::Scores(2), &body).unwrap();
        assert_eq!(
            (&read.ranking().unwrap().scores[..], read.input_tokens()),
            (&[0.5, -2.0][..], 3)
        );
        assert_eq!((read.operation(), read.output_tokens()), ("rank", 0));
    }
}
