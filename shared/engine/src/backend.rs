//! The line between a model's front and what computes it; input: a packed batch of token ids, output: one vector per sequence.

use kernels::pool::Pooling;

use crate::error::{ComputeError, InputError};
use crate::tokenizer::TokenIds;

/// How weights and products are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// f32 weights and products.
    #[default]
    F32,
    /// bf16 weights, f32 products and sums.
    Bf16,
    /// int8 weights (symmetric, per output) and integer activations (per token), i32 sums; a decoder's word table is int8 too (per word).
    Int8,
    /// int4 weights (asymmetric, groups of 128 of the depth, or of 64 or 32 where those divide it) and int8 activations (per token and group).
    /// A decoder's word table is int8 (per word), also where it is the output layer.
    Int4,
}

impl Precision {
    /// Its name in configuration, logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A precision's name was not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("precision `{0}` is not one of f32, bf16, int8, int4")]
pub struct UnknownPrecision(String);

impl std::str::FromStr for Precision {
    type Err = UnknownPrecision;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        [Self::F32, Self::Bf16, Self::Int8, Self::Int4]
            .into_iter()
            .find(|precision| precision.name() == name)
            .ok_or_else(|| UnknownPrecision(name.to_owned()))
    }
}

/// What an encoder gives for a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A vector.
    Embed,
    /// One logit: how well the second text of a pair answers the first.
    Rank,
}

/// What is known of a loaded model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// Kind of model: `bert`, `roberta`, `xlm-roberta`, `nomic_bert` or `echo`.
    pub family: &'static str,
    /// What it gives for a sequence.
    pub purpose: Purpose,
    /// Elements of a vector; 1 when it ranks.
    pub dims: usize,
    /// Most tokens of one input, special ones included: the smaller of what the model card says and what it has positions for.
    pub max_tokens: usize,
    /// Positions the weights have, at least `max_tokens`.
    pub max_positions: usize,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// How it is computed.
    pub precision: Precision,
    /// Weights of the checkpoint.
    pub parameters: u64,
    /// Changes when the model's files change.
    pub revision: String,
    /// How the vectors of the tokens become one.
    pub pooling: Pooling,
    /// Whether vectors have unit length.
    pub normalized: bool,
}

/// Sequences of token ids one behind the other, without padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedBatch {
    ids: Vec<u32>,
    cu_seqlens: Vec<u32>,
    /// Where the second text of each sequence begins; empty when no sequence has one.
    second_from: Vec<u32>,
}

impl PackedBatch {
    /// Packs sequences in the given order.
    pub fn new(sequences: &[TokenIds]) -> Result<Self, ComputeError> {
        let tokens: usize = sequences.iter().map(TokenIds::len).sum();
        if u32::try_from(tokens).is_err() {
            return Err(ComputeError::BatchTooLarge {
                tokens,
                max: u32::MAX as usize,
            });
        }
        let mut ids = Vec::with_capacity(tokens);
        let mut cu_seqlens = Vec::with_capacity(sequences.len() + 1);
        cu_seqlens.push(0);
        for sequence in sequences {
            ids.extend_from_slice(sequence.as_slice());
            cu_seqlens.push(ids.len() as u32);
        }
        let has_second = sequences.iter().any(|sequence| sequence.second_from() < sequence.len());
        let second_from = if has_second {
            // Below the number of tokens, which was checked.
            sequences.iter().map(|sequence| sequence.second_from() as u32).collect()
        } else {
            Vec::new()
        };
        Ok(Self {
            ids,
            cu_seqlens,
            second_from,
        })
    }

    /// All token ids.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Where each sequence starts, and at last the number of tokens.
    pub fn cu_seqlens(&self) -> &[u32] {
        &self.cu_seqlens
    }

    /// Where tokens of the second text begin in each sequence, counted from its start; empty when no sequence has one.
    pub fn second_from(&self) -> &[u32] {
        &self.second_from
    }

    /// Sequences in the batch.
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// Tokens in the batch.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Checks every sequence against a model's limits; backends call it before they compute.
    pub fn check(&self, info: &ModelInfo) -> Result<(), ComputeError> {
        for (index, pair) in self.cu_seqlens.windows(2).enumerate() {
            let ids = &self.ids[pair[0] as usize..pair[1] as usize];
            let outside = ids.iter().find(|id| **id as usize >= info.vocab_size);
            let source = if ids.is_empty() {
                InputError::Empty
            } else if ids.len() > info.max_positions {
                InputError::TooLong {
                    tokens: ids.len(),
                    max: info.max_positions,
                }
            } else if let Some(&id) = outside {
                InputError::TokenOutOfRange {
                    id,
                    vocab: info.vocab_size,
                }
            } else {
                continue;
            };
            return Err(ComputeError::Sequence { index, source });
        }
        Ok(())
    }
}

/// One vector per sequence, in the order of the batch; of one element each when the model ranks.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    dims: usize,
    values: Vec<f32>,
}

impl Embeddings {
    /// Takes `[sequences, dims]`; elements beyond the last whole row are dropped.
    pub fn new(dims: usize, mut values: Vec<f32>) -> Self {
        values.truncate(values.len().checked_div(dims).unwrap_or(0) * dims);
        Self { dims, values }
    }

    /// Elements of a vector.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.values.len().checked_div(self.dims).unwrap_or(0)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The vectors in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.dims.max(1))
    }

    /// Vector `index`, when there is one.
    pub fn row(&self, index: usize) -> Option<&[f32]> {
        self.rows().nth(index)
    }

    /// All vectors one behind the other.
    pub fn as_slice(&self) -> &[f32] {
        &self.values
    }
}

/// Computes batches of one loaded model; callers may share it between threads.
pub trait Backend: Send + Sync + std::fmt::Debug {
    /// What is known of the model.
    fn info(&self) -> &ModelInfo;

    /// One vector per sequence; blocks until they are computed.
    fn embed(&self, batch: &PackedBatch) -> Result<Embeddings, ComputeError>;
}
