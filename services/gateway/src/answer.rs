//! Answers as they are shared. Input: vectors and usage of one computed request. Output: the value that waiters, the
//! local cache and the shared tier hold; rendered at most once per encoding.

use std::sync::OnceLock;

use bytes::Bytes;
use schemas::cache::CachedEmbeddings;
use schemas::http::EncodingFormat;
use schemas::vector::Vector;

use crate::http::render;

/// Bytes an answer takes besides its vectors and rendered bodies: the cache's own bookkeeping, roughly.
const OVERHEAD_BYTES: usize = 256;

/// One computed answer.
#[derive(Debug)]
pub struct Answer {
    /// The model's true name.
    pub model: String,
    /// One vector per input.
    pub vectors: Vec<Vector>,
    /// Tokens in, special tokens included.
    pub input_tokens: u64,
    float: OnceLock<Bytes>,
    base64: OnceLock<Bytes>,
}

impl Answer {
    /// An answer that was computed.
    #[must_use]
    pub fn new(model: String, vectors: Vec<Vector>, input_tokens: u64) -> Self {
        Self {
            model,
            vectors,
            input_tokens,
            float: OnceLock::new(),
            base64: OnceLock::new(),
        }
    }

    /// An answer that came from the shared tier.
    #[must_use]
    pub fn from_cached(model: String, cached: CachedEmbeddings) -> Self {
        Self::new(model, cached.vectors, cached.input_tokens)
    }

    /// What the shared tier keeps of it.
    #[must_use]
    pub fn to_cached(&self) -> CachedEmbeddings {
        CachedEmbeddings {
            vectors: self.vectors.clone(),
            input_tokens: self.input_tokens,
        }
    }

    /// The response body, rendered on first use.
    pub fn body(&self, format: EncodingFormat) -> Bytes {
        let cell = match format {
            EncodingFormat::Float => &self.float,
            EncodingFormat::Base64 => &self.base64,
        };
        cell.get_or_init(|| render::embeddings(&self.model, &self.vectors, self.input_tokens, format))
            .clone()
    }

    /// What the answer weighs in the local cache, in bytes: vectors (4 bytes a value) and both rendered bodies
    /// (about 12 and 6 bytes a value), counted before they exist so that rendering never breaks the bound.
    #[must_use]
    pub fn weight_bytes(&self) -> u32 {
        let values: usize = self.vectors.iter().map(|vector| vector.0.len()).sum();
        u32::try_from(values * (4 + 12 + 6) + self.vectors.len() * 128 + OVERHEAD_BYTES).unwrap_or(u32::MAX)
    }
}
