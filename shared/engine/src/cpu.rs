//! The CPU backend; input: a directory at load and packed batches later, output: vectors. One batch computes at a time, on all its threads.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use kernels::CpuExec;
use kernels::embedding::Sequences;

use crate::backend::{Backend, Embeddings, ModelInfo, PackedBatch, Precision};
use crate::error::{ComputeError, LoadError};
use crate::model_files::{Description, deciding_files};
use crate::models::encoder::{Encoder, Scratch};
use crate::revision::revision;
use crate::weights::Weights;

/// Tokens computed together: larger batches are cut (between sequences) so that activations stay in the last-level cache.
/// By arithmetic for MiniLM: 512 tokens are 5.5 MB of activations in f32, a sixth of a 32 MB cache, and reading the 42 MB of weights
/// again takes a few ms where they compute for tens of ms.
const CHUNK_TOKENS: usize = 512;

/// A model in memory with its threads and buffers.
#[derive(Debug)]
pub struct CpuBackend {
    info: ModelInfo,
    model: Encoder,
    work: Mutex<Work>,
}

/// What one computation needs for itself.
#[derive(Debug)]
struct Work {
    exec: CpuExec,
    scratch: Scratch,
    /// Offsets of the chunk, from zero.
    offsets: Vec<u32>,
}

impl CpuBackend {
    /// Loads the weights of a directory that was described.
    pub(crate) fn load(
        directory: &Path,
        description: &Description,
        precision: Precision,
        threads: usize,
    ) -> Result<Self, LoadError> {
        let mut exec = CpuExec::new(threads)?;
        let weights = Weights::open(directory)?;
        let model = Encoder::load(&mut exec, &weights, description, precision)?;
        let config = &description.encoder;
        let info = ModelInfo {
            family: config.family.name(),
            purpose: config.purpose,
            dims: model.dims(),
            max_tokens: description.max_tokens,
            max_positions: config.max_position_embeddings,
            vocab_size: config.vocab_size,
            precision,
            parameters: weights.parameters(),
            revision: revision(&deciding_files(directory), &weights)?,
            pooling: description.pool.pooling,
            normalized: description.pool.normalize,
        };
        Ok(Self {
            info,
            model,
            work: Mutex::new(Work {
                exec,
                scratch: Scratch::default(),
                offsets: Vec::new(),
            }),
        })
    }
}

impl Backend for CpuBackend {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn embed(&self, batch: &PackedBatch) -> Result<Embeddings, ComputeError> {
        batch.check(&self.info)?;
        let dims = self.info.dims;
        let mut values = vec![0.0; batch.sequences() * dims];
        // Everything in `Work` is overwritten before it is read, so a panic of an earlier call does no harm.
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let Work { exec, scratch, offsets } = &mut *work;
        let bounds = batch.cu_seqlens();
        let mut first = 0;
        while first < batch.sequences() {
            let last = chunk_end(bounds, first);
            let start = bounds[first];
            offsets.clear();
            offsets.extend(bounds[first..=last].iter().map(|bound| bound - start));
            let sequences = Sequences {
                ids: &batch.ids()[start as usize..bounds[last] as usize],
                cu_seqlens: offsets,
                second_from: batch.second_from().get(first..last).unwrap_or_default(),
            };
            let out = &mut values[first * dims..last * dims];
            self.model.forward(exec, scratch, sequences, out)?;
            first = last;
        }
        Ok(Embeddings::new(dims, values))
    }
}

/// End of the chunk that starts at sequence `first`: as many whole sequences as fit, at least one.
fn chunk_end(bounds: &[u32], first: usize) -> usize {
    let limit = bounds[first] as usize + CHUNK_TOKENS;
    let fitting = bounds[first + 1..].partition_point(|end| *end as usize <= limit);
    first + fitting.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_hold_whole_sequences_and_at_least_one() {
        let limit = CHUNK_TOKENS as u32;
        assert_eq!(chunk_end(&[0, 10, 20], 0), 2);
        assert_eq!(chunk_end(&[0, limit, limit + 1], 0), 1);
        assert_eq!(chunk_end(&[0, limit, limit + 1], 1), 2);
        assert_eq!(chunk_end(&[0, 2 * limit, 2 * limit + 1], 0), 1);
    }
}
