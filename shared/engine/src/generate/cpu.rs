//! Decoders on the CPU; input: a directory at load and steps later, output: logits. One step computes at a time, on all threads.

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

use kernels::CpuExec;
use kernels::paged_attention::{KvCache, KvLayout, KvStorage};

use super::backend::{BLOCK_TOKENS, GenerateBackend, GenerateInfo, StepBatch, StepLogits, StepSpan};
use super::config::{DecoderConfig, deciding_files};
use super::quantization::Quantization;
use crate::backend::Precision;
use crate::error::{ComputeError, LoadError};
use crate::models::decoder::{Decoder, DecoderState};
use crate::revision::revision;
use crate::weights::Weights;

/// How a decoder is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GenerateOptions {
    /// How it is computed; keys and values are kept in f32 for f32 and in bf16 for all others.
    /// Weights that the checkpoint stores quantized stay as they are; this is for the others then.
    pub precision: Precision,
    /// Threads of a step, the caller's included.
    pub threads: NonZeroUsize,
    /// Most memory of the key-value cache, in bytes; the system gives it when it is first written.
    pub kv_bytes: u64,
}

impl Default for GenerateOptions {
    /// f32 on all cores, with a cache that a laptop can spare.
    fn default() -> Self {
        /// Enough for 64 sequences of 800 tokens of a small model (5 layers, 4 heads of 32), or four of 2,000 of a 1B model in bf16.
        const KV_BYTES: u64 = 256 << 20;
        Self {
            precision: Precision::F32,
            threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            kv_bytes: KV_BYTES,
        }
    }
}

/// A decoder in memory with its threads, its cache and its buffers.
#[derive(Debug)]
pub struct CpuGenerateBackend {
    info: GenerateInfo,
    model: Decoder,
    exec: CpuExec,
    state: DecoderState,
}

impl CpuGenerateBackend {
    /// Loads a Hugging Face directory (`config.json`, `model.safetensors` or its shards, …).
    pub fn load(directory: &Path, options: GenerateOptions) -> Result<Self, LoadError> {
        let started = Instant::now();
        let config = DecoderConfig::load(directory)?;
        let weights = Weights::open(directory)?;
        let mut exec = CpuExec::new(options.threads.get())?;
        let shape = |source| LoadError::Shape {
            file: weights.file().to_owned(),
            source,
        };
        let layout = KvLayout {
            kv_heads: config.kv_heads,
            dims: config.head_dims,
            block_tokens: BLOCK_TOKENS,
        };
        let storage = match options.precision {
            Precision::F32 => KvStorage::F32,
            Precision::Bf16 | Precision::Int8 | Precision::Int4 => KvStorage::Bf16,
        };
        let blocks = blocks(
            &config,
            options.kv_bytes,
            KvCache::bytes_per_block(config.layers, layout, storage),
        )?;
        let max_tokens = config.max_positions.min(blocks.saturating_mul(BLOCK_TOKENS));
        let cache = KvCache::new(config.layers, blocks, layout, storage).map_err(shape)?;
        let info = GenerateInfo {
            family: config.family.name(),
            hidden_size: config.hidden_size,
            layers: config.layers,
            vocab_size: config.vocab_size,
            max_tokens,
            block_tokens: BLOCK_TOKENS,
            blocks,
            precision: config.quantization.map_or(options.precision, Quantization::precision),
            parameters: parameters(&config, &weights),
            revision: revision(&deciding_files(directory), &weights)?,
            eos: config.eos.clone(),
            kv_bytes: cache.bytes() as u64,
        };
        let model = Decoder::load(&mut exec, &weights, &config, options.precision, max_tokens)?;
        tracing::info!(
            directory = %directory.display(),
            revision = info.revision,
            family = info.family,
            precision = info.precision.name(),
            threads = options.threads,
            max_tokens,
            blocks,
            elapsed_ms = started.elapsed().as_millis() as u64,
            "decoder loaded"
        );
        Ok(Self {
            info,
            model,
            exec,
            state: DecoderState::new(cache),
        })
    }
}

impl CpuGenerateBackend {
    /// Memory of the weights in bytes: packed matrices with their scales and zeros, the word table and the output layer; norms and biases,
    /// which stay f32 in every precision and are well below 1 %, are left out.
    pub fn weight_bytes(&self) -> u64 {
        self.model.weight_bytes() as u64
    }
}

/// Weights of the model; some checkpoints store a shared matrix twice.
fn parameters(config: &DecoderConfig, weights: &Weights) -> u64 {
    let twice = config.tied && weights.has("lm_head.weight");
    let shared = (config.vocab_size * config.hidden_size) as u64;
    weights.parameters().saturating_sub(if twice { shared } else { 0 })
}

/// Blocks that fit the memory, but no more than slot numbers can name.
fn blocks(config: &DecoderConfig, kv_bytes: u64, bytes_per_block: usize) -> Result<usize, LoadError> {
    const MOST: usize = u32::MAX as usize / BLOCK_TOKENS;
    let fitting = kv_bytes / (bytes_per_block as u64).max(1);
    if fitting == 0 {
        return Err(LoadError::CacheTooSmall {
            kv_bytes,
            bytes_per_block: bytes_per_block as u64,
            layers: config.layers,
        });
    }
    Ok(usize::try_from(fitting).unwrap_or(MOST).min(MOST))
}

impl GenerateBackend for CpuGenerateBackend {
    fn info(&self) -> &GenerateInfo {
        &self.info
    }

    fn step(&mut self, batch: &StepBatch) -> Result<StepLogits, ComputeError> {
        batch.check(&self.info)?;
        let rows: usize = batch.spans.iter().map(StepSpan::rows).sum();
        let mut logits = vec![0.0; rows * self.info.vocab_size];
        self.model
            .forward(&mut self.exec, &mut self.state, batch, &mut logits)?;
        Ok(StepLogits::new(self.info.vocab_size, logits))
    }
}
