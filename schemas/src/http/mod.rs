//! Public JSON bodies of the gateway. Input: OpenAI's and NVIDIA NIM's documented shapes. Output: types that the gateway
//! reads and writes and from which `openapi.json` is made.

mod chat;
mod chat_answer;
mod completions;
mod embeddings;
mod generation;
mod service;
mod translation;

pub use chat::*;
pub use chat_answer::*;
pub use completions::*;
pub use embeddings::*;
pub use generation::{CompletionUsage, NvExt, PromptTokensDetails, StreamOptions};
pub use service::*;
pub use translation::*;
