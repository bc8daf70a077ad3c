//! An encoder of any family with its head; input: packed token ids, output: one row per sequence: a vector, or the logit of a pair.

use kernels::embedding::Sequences;
use kernels::{CpuExec, ShapeError};

use super::bert::{Activations, Bert};
use super::head::{Head, HeadScratch};
use super::nomic::NomicBert;
use crate::backend::Precision;
use crate::encoder_config::EncoderFamily;
use crate::error::LoadError;
use crate::model_files::Description;
use crate::weights::Weights;

/// The layers of one checkpoint, packed for the CPU.
#[derive(Debug)]
pub(crate) struct Encoder {
    body: Body,
    head: Head,
    width: usize,
}

#[derive(Debug)]
enum Body {
    Bert(Bert),
    Nomic(NomicBert),
}

/// What one computation needs for itself, kept between calls.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    activations: Activations,
    head: HeadScratch,
    positions: Vec<u32>,
}

impl Encoder {
    pub(crate) fn load(
        exec: &mut CpuExec,
        weights: &Weights,
        description: &Description,
        precision: Precision,
    ) -> Result<Self, LoadError> {
        let config = &description.encoder;
        let body = match config.family {
            EncoderFamily::NomicBert => Body::Nomic(NomicBert::load(exec, weights, config, precision)?),
            _ => Body::Bert(Bert::load(exec, weights, config, precision)?),
        };
        Ok(Self {
            body,
            head: Head::load(exec, weights, description)?,
            width: config.hidden_size,
        })
    }

    /// Elements of a row.
    pub(crate) fn dims(&self) -> usize {
        self.head.dims(self.width)
    }

    /// One row per sequence, `[sequences, dims]` into `out`.
    pub(crate) fn forward(
        &self,
        exec: &mut CpuExec,
        scratch: &mut Scratch,
        sequences: Sequences<'_>,
        out: &mut [f32],
    ) -> Result<(), ShapeError> {
        let Scratch {
            activations,
            head,
            positions,
        } = scratch;
        match &self.body {
            Body::Bert(bert) => bert.forward(exec, activations, sequences)?,
            Body::Nomic(nomic) => nomic.forward(exec, activations, positions, sequences)?,
        }
        let x = &activations.x[..sequences.ids.len() * self.width];
        self.head.run(exec, head, (x, sequences.cu_seqlens), out)
    }
}
