//! Public JSON bodies of the gateway. Input: OpenAI's and NVIDIA NIM's documented shapes. Output: types that the gateway
//! reads and writes and from which `openapi.json` is made.

mod chat;
mod chat_answer;
mod completions;
mod embeddings;
mod generation;
mod ranking;
mod responses;
mod responses_answer;
mod service;
mod tokens;
mod translation;

pub use chat::*;
pub use chat_answer::*;
pub use completions::*;
pub use embeddings::*;
pub use generation::{CompletionUsage, NvExt, PromptTokensDetails, StreamOptions};
pub use ranking::*;
pub use responses::*;
pub use responses_answer::*;
pub use service::*;
pub use tokens::*;
pub use translation::*;
