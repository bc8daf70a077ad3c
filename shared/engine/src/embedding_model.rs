//! The front of a model; input: a directory, then texts or token ids, output: token ids, then vectors. Tokenizing may run while a batch computes.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::backend::{Backend, Embeddings, ModelInfo, PackedBatch, Precision};
use crate::cpu::CpuBackend;
use crate::echo::{self, EchoBackend, EchoOptions};
use crate::error::{ComputeError, InputError, LoadError};
use crate::model_files::describe;
use crate::tokenizer::{Input, TextTokenizer, TokenIds, Truncate};

/// How a model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOptions {
    /// How it is computed.
    pub precision: Precision,
    /// Threads of a computation, the caller's included.
    pub threads: NonZeroUsize,
}

impl Default for LoadOptions {
    /// f32 on all cores.
    fn default() -> Self {
        Self {
            precision: Precision::F32,
            threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        }
    }
}

#[derive(Debug, Clone)]
enum Tokens {
    Text(Arc<TextTokenizer>),
    Words,
}

/// A loaded model; cheap to clone, usable from several threads.
#[derive(Debug, Clone)]
pub struct EmbeddingModel {
    tokens: Tokens,
    backend: Arc<dyn Backend>,
}

impl EmbeddingModel {
    /// Loads a sentence-transformers directory (`config.json`, `model.safetensors`, `tokenizer.json`, …) for the CPU.
    pub fn load(directory: &Path, options: LoadOptions) -> Result<Self, LoadError> {
        let started = Instant::now();
        let description = describe(directory)?;
        let file = directory.join("tokenizer.json");
        let (max_tokens, vocab) = (description.max_tokens, description.bert.vocab_size);
        // The tokenizer takes about as long to read as the weights to pack: side by side they take half the time.
        let (tokenizer, backend) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| TextTokenizer::load(&file, max_tokens, vocab));
            let backend = CpuBackend::load(directory, &description, options.precision, options.threads.get());
            let tokenizer = tokenizer.join();
            (tokenizer, backend)
        });
        let tokenizer = tokenizer.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let model = Self {
            tokens: Tokens::Text(Arc::new(tokenizer)),
            backend: Arc::new(backend?),
        };
        tracing::info!(
            directory = %directory.display(),
            revision = model.info().revision,
            precision = options.precision.name(),
            threads = options.threads,
            elapsed_ms = started.elapsed().as_millis() as u64,
            "model loaded"
        );
        Ok(model)
    }

    /// The model that answers at once, for measuring what surrounds a model; see [`EchoBackend`].
    pub fn echo(options: EchoOptions) -> Self {
        Self {
            tokens: Tokens::Words,
            backend: Arc::new(EchoBackend::new(options)),
        }
    }

    /// What is known of the model.
    pub fn info(&self) -> &ModelInfo {
        self.backend.info()
    }

    /// The ids of one input, special tokens included, cut or refused when it is too long.
    pub fn tokenize(&self, input: Input<'_>, truncate: Truncate) -> Result<TokenIds, InputError> {
        match &self.tokens {
            Tokens::Text(tokenizer) => tokenizer.tokenize(input, truncate),
            Tokens::Words => echo::tokenize(self.info(), input, truncate),
        }
    }

    /// One vector per input, in order; blocks until they are computed (call it off the async threads).
    pub fn embed(&self, inputs: &[TokenIds]) -> Result<Embeddings, ComputeError> {
        self.backend.embed(&PackedBatch::new(inputs)?)
    }
}
