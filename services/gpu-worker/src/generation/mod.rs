//! The worker of a model that writes text. Input: its queue. Output: text, step by step, and cost events.
//!
//! A request's path: `intake.rs` pulls and admits it, `prepare.rs` makes token ids of its prompt, `conduct.rs`
//! what binds its answer, `stepper.rs` runs the
//! model on a thread of its own, `step.rs` turns what a step did into frames, shares of time and ends; `writing.rs` is one
//! request in hand, `writer.rs` the loop that owns them all.

mod conduct;
mod intake;
mod prepare;
mod step;
mod stepper;
mod writer;
mod writing;

use std::num::NonZeroUsize;
use std::sync::Arc;

use anyhow::Context as _;
use engine::Precision;
use engine::generate::{CpuGenerateBackend, GenerateOptions, Generator, GeneratorOptions, TextModel};
use schemas::fleet::{ModelCard, Operation};
use schemas::ids::model_slug;

use crate::config::{GenerationConfig, ModelConfig};

pub(crate) use prepare::rendered;
pub(crate) use writer::Writer;

const BYTES_PER_MIB: u64 = 1024 * 1024;
/// Most choices of one request (OpenAI's bound on `n`).
const MAX_CHOICES: usize = 128;

/// A loaded model that writes text.
pub(crate) struct Generative {
    /// Its text side.
    pub(crate) text: Arc<TextModel>,
    /// What computes it.
    pub(crate) generator: Generator,
}

impl Generative {
    /// Loads the model's folder; blocks.
    pub(crate) fn load(config: &ModelConfig, generation: &GenerationConfig) -> anyhow::Result<Self> {
        let precision: Precision = config
            .precision
            .parse()
            .map_err(|error| anyhow::anyhow!("model.precision: {error}"))?;
        let mut options = GenerateOptions {
            precision,
            kv_bytes: generation.kv_cache_mib * BYTES_PER_MIB,
            ..GenerateOptions::default()
        };
        if let Some(threads) = NonZeroUsize::new(config.threads) {
            options.threads = threads;
        }
        let failed = || format!("cannot load model '{}' from {}", config.name, config.path.display());
        let text = TextModel::load(&config.path).with_context(failed)?;
        let backend = CpuGenerateBackend::load(&config.path, options).with_context(failed)?;
        let limits = GeneratorOptions {
            max_sequences: generation.max_sequences,
            max_step_tokens: generation.max_step_tokens,
            // All choices of a request wait together.
            max_waiting: generation.max_sequences.max(MAX_CHOICES) * 2,
        };
        Ok(Self {
            text: Arc::new(text),
            generator: Generator::new(Box::new(backend), limits),
        })
    }

    /// The model's card.
    pub(crate) fn card(&self, config: &ModelConfig, now_s: u64) -> ModelCard {
        let info = self.generator.info();
        let context = u32::try_from(info.max_tokens).unwrap_or(u32::MAX);
        ModelCard {
            name: config.name.clone(),
            slug: model_slug(&config.name),
            operations: vec![Operation::Generate],
            family: info.family.to_owned(),
            dimensions: 0,
            max_tokens: context,
            max_context: context,
            revision: info.revision.clone(),
            precision: info.precision.name().to_owned(),
            parameters: info.parameters,
            variable_dimensions: false,
            asymmetric: false,
            created_s: now_s,
        }
    }
}
