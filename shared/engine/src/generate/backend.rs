//! The line between scheduling and what computes a decoder; input: a [`StepBatch`], output: logits of the rows that were asked for.
//!
//! The backend owns the key-value cache; the scheduler owns the numbers of its blocks and says in each span which ones a sequence uses.

use crate::backend::Precision;
use crate::error::{ComputeError, InputError};

/// Tokens of a block of the key-value cache: small enough that a sequence wastes little, large enough that a block is a run of cache lines.
pub const BLOCK_TOKENS: usize = 16;

/// One step over some sequences: prefill chunks and single decode tokens mixed.
///
/// Keys and values of all spans are written before any of them attends, layer by layer: a span may read a block that another one fills in this step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepBatch {
    /// At most one span for each sequence.
    pub spans: Vec<StepSpan>,
}

/// Consecutive tokens of one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepSpan {
    /// The tokens whose keys and values are not in the cache yet.
    pub tokens: Vec<u32>,
    /// Position of the first of them: so many tokens are in the cache already.
    pub first_position: u32,
    /// Blocks of the sequence in order, at least as many as its tokens (these included) need.
    pub blocks: Vec<u32>,
    /// Which rows of logits are wanted.
    pub logits: LogitRows,
}

/// Rows of a span whose logits are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogitRows {
    /// None: a chunk of a prompt that is not the last one.
    None,
    /// The last token's: what comes next.
    #[default]
    Last,
    /// Every token's, for log-probabilities of prompts and for tests.
    All,
}

impl StepSpan {
    /// Tokens of the sequence after this step.
    pub fn context(&self) -> usize {
        self.first_position as usize + self.tokens.len()
    }

    /// Rows of logits it gives.
    pub fn rows(&self) -> usize {
        match self.logits {
            LogitRows::None => 0,
            LogitRows::Last => 1,
            LogitRows::All => self.tokens.len(),
        }
    }
}

impl StepBatch {
    /// Tokens of all spans.
    pub fn tokens(&self) -> usize {
        self.spans.iter().map(|span| span.tokens.len()).sum()
    }

    /// Checks every span against a model's limits; backends call it before they compute.
    pub fn check(&self, info: &GenerateInfo) -> Result<(), ComputeError> {
        for (index, span) in self.spans.iter().enumerate() {
            let outside = span.tokens.iter().find(|id| **id as usize >= info.vocab_size);
            let source = if span.tokens.is_empty() {
                InputError::Empty
            } else if span.context() > info.max_tokens {
                InputError::TooLong {
                    tokens: span.context(),
                    max: info.max_tokens,
                }
            } else if let Some(&id) = outside {
                InputError::TokenOutOfRange {
                    id,
                    vocab: info.vocab_size,
                }
            } else {
                span.check_blocks(index, info)?;
                continue;
            };
            return Err(ComputeError::Sequence { index, source });
        }
        Ok(())
    }
}

impl StepSpan {
    fn check_blocks(&self, index: usize, info: &GenerateInfo) -> Result<(), ComputeError> {
        let needed = self.context().div_ceil(info.block_tokens);
        if self.blocks.len() < needed {
            return Err(ComputeError::Blocks {
                index,
                given: self.blocks.len(),
                needed,
            });
        }
        match self.blocks.iter().find(|block| **block as usize >= info.blocks) {
            Some(&block) => Err(ComputeError::BlockOutOfRange {
                index,
                block,
                blocks: info.blocks,
            }),
            None => Ok(()),
        }
    }
}

/// Logits in the order of the spans and, within a span, of its tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct StepLogits {
    vocab: usize,
    values: Vec<f32>,
}

impl StepLogits {
    /// Takes `[rows, vocab]`; elements beyond the last whole row are dropped.
    pub fn new(vocab: usize, mut values: Vec<f32>) -> Self {
        values.truncate(values.len().checked_div(vocab).unwrap_or(0) * vocab);
        Self { vocab, values }
    }

    /// Rows of `vocab_size` logits each.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.vocab.max(1))
    }

    /// Row `index`, when there is one.
    pub fn row(&self, index: usize) -> Option<&[f32]> {
        self.rows().nth(index)
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.values.len().checked_div(self.vocab).unwrap_or(0)
    }

    /// Whether no row was asked for.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

/// What is known of a loaded decoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerateInfo {
    /// Kind of model: `llama`, `qwen2`, `qwen3` or `mistral`.
    pub family: &'static str,
    /// Elements of a token between the layers.
    pub hidden_size: usize,
    /// Layers.
    pub layers: usize,
    /// Token ids are below this, and a row of logits has as many elements.
    pub vocab_size: usize,
    /// Most tokens of a sequence, prompt and answer together: what the model was made for, or what the cache holds when that is less.
    pub max_tokens: usize,
    /// Tokens of a cache block.
    pub block_tokens: usize,
    /// Blocks of the cache.
    pub blocks: usize,
    /// How it is computed.
    pub precision: Precision,
    /// Weights of the checkpoint.
    pub parameters: u64,
    /// Changes when the model's files change.
    pub revision: String,
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
    /// Memory of the key-value cache, in bytes.
    pub kv_bytes: u64,
}

/// Computes steps of one loaded decoder.
pub trait GenerateBackend: Send + std::fmt::Debug {
    /// What is known of the model.
    fn info(&self) -> &GenerateInfo;

    /// Runs the tokens of a step through the model; blocks until the logits are there.
    ///
    /// After an error the cache holds what it held before, except in the slots of the step's own tokens.
    fn step(&mut self, batch: &StepBatch) -> Result<StepLogits, ComputeError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> GenerateInfo {
        GenerateInfo {
            family: "llama",
            hidden_size: 8,
            layers: 1,
            vocab_size: 10,
            max_tokens: 40,
            block_tokens: BLOCK_TOKENS,
            blocks: 4,
            precision: Precision::F32,
            parameters: 0,
            revision: String::new(),
            eos: Vec::new(),
            kv_bytes: 0,
        }
    }

    fn check(tokens: &[u32], first_position: u32, blocks: &[u32]) -> Result<(), String> {
        let span = StepSpan {
            tokens: tokens.to_vec(),
            first_position,
            blocks: blocks.to_vec(),
            logits: LogitRows::Last,
        };
        let batch = StepBatch { spans: vec![span] };
        let chain = |error: ComputeError| match error {
            ComputeError::Sequence { source, .. } => source.to_string(),
            other => other.to_string(),
        };
        batch.check(&info()).map_err(chain)
    }

    #[test]
    fn spans_are_checked_against_the_model() {
        assert_eq!(check(&[1; 16], 0, &[3]), Ok(()));
        assert_eq!(check(&[9], 31, &[3, 0]), Ok(()));
        assert_eq!(check(&[], 0, &[0]).unwrap_err(), "input is empty");
        let long = check(&[1], 40, &[0, 1, 2]).unwrap_err();
        assert!(long.contains("41 tokens"), "{long}");
        let unknown = check(&[10], 0, &[0]).unwrap_err();
        assert!(unknown.contains("token id 10"), "{unknown}");
        let few = check(&[1; 17], 0, &[0]).unwrap_err();
        assert!(few.contains("has 1 blocks and needs 2"), "{few}");
        let outside = check(&[1], 0, &[4]).unwrap_err();
        assert!(outside.contains("block 4"), "{outside}");
    }

    #[test]
    fn logits_are_cut_into_rows() {
        let logits = StepLogits::new(3, vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(logits.len(), 2);
        assert_eq!(logits.row(1), Some(&[4.0, 5.0, 6.0][..]));
        assert_eq!(logits.row(2), None);
        assert!(StepLogits::new(0, vec![1.0]).is_empty());
    }
}
