//! What can go wrong: loading, an input, a computation; each names what was attempted and the value that stood in the way.

use std::path::PathBuf;

/// A model could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file is missing or cannot be read.
    #[error("cannot read {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what its name promises (truncated, not JSON, not safetensors).
    #[error("{} is damaged or of another format: {reason}", file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A field of a configuration file has a value that this engine does not serve.
    #[error("{}: field `{field}`: {reason}", file.display())]
    Field {
        /// The file.
        file: PathBuf,
        /// The field.
        field: &'static str,
        /// Why it is refused.
        reason: String,
    },
    /// A tensor is missing or has the wrong shape or type.
    #[error("{}: tensor `{tensor}`: {reason}", file.display())]
    Tensor {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Why it is refused.
        reason: String,
    },
    /// The parts of the model do not fit each other.
    #[error("the weights of {} do not fit together", file.display())]
    Shape {
        /// The weights file.
        file: PathBuf,
        /// The cause.
        #[source]
        source: kernels::ShapeError,
    },
    /// Not even one block of the key-value cache fits the memory it was given.
    #[error("a key-value cache of {kv_bytes} bytes holds no block of {bytes_per_block} bytes for {layers} layers")]
    CacheTooSmall {
        /// Memory it was given, in bytes.
        kv_bytes: u64,
        /// Memory of one block over all layers, in bytes.
        bytes_per_block: u64,
        /// Layers of the model.
        layers: usize,
    },
    /// The compute threads could not be started.
    #[error("cannot start the compute threads")]
    Threads(#[from] kernels::TeamError),
}

/// An input cannot be embedded; the caller can correct it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// More tokens (special ones included) than the model takes, and truncation was not asked for.
    #[error("input has {tokens} tokens, the model takes at most {max}")]
    TooLong {
        /// Tokens of the input, special ones included.
        tokens: usize,
        /// The model's limit.
        max: usize,
    },
    /// An empty text or an empty list of token ids.
    #[error("input is empty")]
    Empty,
    /// A token id that the model does not have.
    #[error("token id {id} is outside the vocabulary of {vocab}")]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// The tokenizer refused the text.
    #[error("input cannot be tokenized: {reason}")]
    Tokenizer {
        /// What the tokenizer said.
        reason: String,
    },
}

/// A batch could not be computed; the batch is wrong or the device failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ComputeError {
    /// A sequence of the batch is not one that the model's tokenizer would give.
    #[error("sequence {index} of the batch cannot be computed")]
    Sequence {
        /// Its place in the batch.
        index: usize,
        /// What is wrong with it.
        #[source]
        source: InputError,
    },
    /// A batch whose total exceeds what 32-bit offsets can address.
    #[error("the batch has {tokens} tokens, at most {max} can be addressed")]
    BatchTooLarge {
        /// Tokens of the batch.
        tokens: usize,
        /// The limit.
        max: usize,
    },
    /// A sequence has fewer cache blocks than its tokens need.
    #[error("sequence {index} of the step has {given} blocks and needs {needed}")]
    Blocks {
        /// Its place in the step.
        index: usize,
        /// Blocks it has.
        given: usize,
        /// Blocks it needs.
        needed: usize,
    },
    /// A cache block that does not exist.
    #[error("sequence {index} of the step has block {block}, the cache has {blocks}")]
    BlockOutOfRange {
        /// The sequence's place in the step.
        index: usize,
        /// The block.
        block: u32,
        /// Blocks of the cache.
        blocks: usize,
    },
    /// A backend answered for other rows than it was asked for; a defect, not an input error.
    #[error("the backend gave {given} rows of logits, {expected} were asked for")]
    LogitRows {
        /// Rows it gave.
        given: usize,
        /// Rows that were asked for.
        expected: usize,
    },
    /// The layers of the model do not fit each other; a defect, not an input error.
    #[error("a layer refused its input")]
    Layer(#[from] kernels::ShapeError),
}
