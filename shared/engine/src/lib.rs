//! Models: from a directory and texts to vectors, or to more text; no bus, no HTTP.
//!
//! [`EmbeddingModel`] is the front: it loads a directory, tokenizes and embeds.
//! [`Backend`] is what runs a packed batch: [`CpuBackend`] here, a CUDA one next, [`EchoBackend`] for measuring all that surrounds a model.
//! [`batch`] decides, without a clock of its own, which waiting items run together.
//! [`generate`] is the other half: decoders, chat prompts, and text from tokens.

pub mod backend;
pub mod batch;
mod cpu;
mod echo;
mod embedding_model;
mod error;
pub mod generate;
mod model_files;
mod models;
mod revision;
mod tokenizer;
mod weights;

pub use backend::{Backend, Embeddings, ModelInfo, PackedBatch, Precision};
pub use cpu::CpuBackend;
pub use echo::{EchoBackend, EchoOptions};
pub use embedding_model::{EmbeddingModel, LoadOptions};
pub use error::{ComputeError, InputError, LoadError};
pub use kernels::pool::Pooling;
pub use tokenizer::{Input, TokenIds, Truncate};
