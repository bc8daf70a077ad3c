//! Generation: from prompts to text, many sequences together; no bus, no HTTP.
//!
//! [`TextModel`] is the text side: tokenizer, chat template, text from tokens.
//! [`GenerateBackend`] computes a step over many sequences on a paged key-value cache: [`CpuGenerateBackend`] here, a CUDA one later.
//! [`Generator`] joins a backend with what decides: [`scheduler`] which sequences run, [`sampling`] which token comes next, a [`Constraint`] which ones may, [`stop`] where an answer ends.

mod backend;
pub mod blocks;
mod chat_template;
mod config;
mod constraint;
mod cpu;
mod detokenize;
mod generator;
mod quantization;
mod rotary;
pub mod sampling;
pub mod scheduler;
pub mod stop;
mod strftime;
mod text_model;
mod tool_calls;

pub use backend::{BLOCK_TOKENS, GenerateBackend, GenerateInfo, LogitRows, StepBatch, StepLogits, StepSpan};
pub use chat_template::{ChatRequest, TemplateError};
pub use config::{SamplingDefaults, is_generative};
pub use constraint::{Constraint, ConstraintError, Grammar, GrammarError};
pub use cpu::{CpuGenerateBackend, GenerateOptions};
pub use detokenize::{Detokenizer, SpecialTokens};
pub use generator::{FinishReason, Generation, Generator, GeneratorOptions, Occupancy, Progress, Step, StepStats};
pub use text_model::{AddSpecial, TextModel};
pub use tool_calls::{Read, ToolCall, ToolFormat, ToolReader, ToolSpec, ToolStyle};

pub(crate) use config::DecoderConfig;
pub(crate) use quantization::Quantization;
