//! Models: from a directory and texts to vectors, or to more text; no bus, no HTTP.
//!
//! [`EmbeddingModel`] and [`RankingModel`] are the fronts of encoders: they load a directory, tokenize and compute.
//! [`Backend`] is what runs a packed batch: [`CpuBackend`] here, a CUDA one next, [`EchoBackend`] for measuring all that surrounds a model.
//! [`batch`] decides, without a clock of its own, which waiting items run together.
//! [`generate`] is the other half: decoders, chat prompts, and text from tokens.

pub mod backend;
pub mod batch;
mod cpu;
mod echo;
mod embedding_model;
mod encoder_config;
mod error;
pub mod generate;
mod model_files;
mod models;
mod pairs;
mod ranking_model;
mod revision;
mod tokenizer;
mod vocabulary;
mod weights;

pub use backend::{Backend, Embeddings, ModelInfo, PackedBatch, Precision, Purpose};
pub use cpu::CpuBackend;
pub use echo::{EchoBackend, EchoOptions};
pub use embedding_model::{EmbeddingModel, LoadOptions, Side};
pub use error::{ComputeError, InputError, LoadError};
pub use kernels::pool::Pooling;
pub use model_files::purpose;
pub use pairs::Query;
pub use ranking_model::RankingModel;
pub use tokenizer::{Input, TokenIds, Truncate};
pub use vocabulary::Vocabulary;
