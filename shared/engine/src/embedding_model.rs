//! The front of a model; input: a directory, then texts or token ids, output: token ids, then vectors. Tokenizing may run while a batch computes.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::backend::{Backend, Embeddings, ModelInfo, PackedBatch, Precision, Purpose};
use crate::cpu::CpuBackend;
use crate::echo::{self, EchoBackend, EchoOptions};
use crate::error::{ComputeError, InputError, LoadError};
use crate::model_files::{Description, Prompts, describe};
use crate::tokenizer::{Input, TextTokenizer, TokenIds, Truncate};
use crate::vocabulary::Vocabulary;

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

/// Which side of a search a text is on; only models with prompts of their own for the sides care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What is searched for.
    Query,
    /// What is searched through.
    Passage,
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
    prompts: Option<Arc<Prompts>>,
    backend: Arc<dyn Backend>,
}

/// What every encoder consists of.
pub(crate) struct Loaded {
    pub(crate) description: Description,
    pub(crate) tokenizer: TextTokenizer,
    pub(crate) backend: CpuBackend,
}

impl Loaded {
    /// Loads a directory whose model is for `purpose`.
    pub(crate) fn load(directory: &Path, options: LoadOptions, purpose: Purpose) -> Result<Self, LoadError> {
        let started = Instant::now();
        let description = describe(directory)?;
        if description.encoder.purpose != purpose {
            let reason = match purpose {
                Purpose::Embed => "the model ranks pairs of texts and gives no vectors",
                Purpose::Rank => "the model gives vectors and ranks nothing",
            };
            return Err(LoadError::Field {
                file: directory.join("config.json"),
                field: "architectures",
                reason: reason.to_owned(),
            });
        }
        let file = directory.join("tokenizer.json");
        let (max_tokens, vocab) = (description.max_tokens, description.encoder.vocab_size);
        // The tokenizer takes about as long to read as the weights to pack: side by side they take half the time.
        let (tokenizer, backend) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| TextTokenizer::load(&file, max_tokens, vocab));
            let backend = CpuBackend::load(directory, &description, options.precision, options.threads.get());
            let tokenizer = tokenizer.join();
            (tokenizer, backend)
        });
        let tokenizer = tokenizer.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let backend = backend?;
        tracing::info!(
            directory = %directory.display(),
            family = backend.info().family,
            revision = backend.info().revision,
            precision = options.precision.name(),
            threads = options.threads,
            elapsed_ms = started.elapsed().as_millis() as u64,
            "model loaded"
        );
        Ok(Self {
            description,
            tokenizer,
            backend,
        })
    }
}

impl EmbeddingModel {
    /// Loads a sentence-transformers directory (`config.json`, `model.safetensors`, `tokenizer.json`, …) for the CPU.
    pub fn load(directory: &Path, options: LoadOptions) -> Result<Self, LoadError> {
        let loaded = Loaded::load(directory, options, Purpose::Embed)?;
        Ok(Self {
            tokens: Tokens::Text(Arc::new(loaded.tokenizer)),
            prompts: loaded.description.prompts.map(Arc::new),
            backend: Arc::new(loaded.backend),
        })
    }

    /// The model that answers at once, for measuring what surrounds a model; see [`EchoBackend`].
    pub fn echo(options: EchoOptions) -> Self {
        Self {
            tokens: Tokens::Words,
            prompts: None,
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

    /// The same for a text on one side of a search: the model's prompt for that side is put before it. Token ids are taken as they are.
    pub fn tokenize_for(&self, side: Side, input: Input<'_>, truncate: Truncate) -> Result<TokenIds, InputError> {
        let (Some(prompts), Input::Text(text)) = (&self.prompts, input) else {
            return self.tokenize(input, truncate);
        };
        if text.is_empty() {
            return Err(InputError::Empty);
        }
        let prompt = match side {
            Side::Query => &prompts.query,
            Side::Passage => &prompts.passage,
        };
        self.tokenize(Input::Text(&format!("{prompt}{text}")), truncate)
    }

    /// Whether queries and passages have prompts of their own, so that callers have to say which a text is.
    pub fn is_asymmetric(&self) -> bool {
        self.prompts.is_some()
    }

    /// The model's tokens; `None` for the echo model, which forgets its words.
    pub fn vocabulary(&self) -> Option<Vocabulary> {
        match &self.tokens {
            Tokens::Text(tokenizer) => Some(tokenizer.vocabulary()),
            Tokens::Words => None,
        }
    }

    /// One vector per input, in order; blocks until they are computed (call it off the async threads).
    pub fn embed(&self, inputs: &[TokenIds]) -> Result<Embeddings, ComputeError> {
        self.backend.embed(&PackedBatch::new(inputs)?)
    }
}
