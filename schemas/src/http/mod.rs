//! Public JSON bodies of the gateway. Input: OpenAI's and NVIDIA NIM's documented shapes. Output: types that the gateway
//! reads and writes and from which `openapi.json` is made.

mod embeddings;
mod service;

pub use embeddings::*;
pub use service::*;
