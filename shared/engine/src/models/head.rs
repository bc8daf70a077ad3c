//! What follows the last layer of an encoder; input: `[tokens, width]` of packed sequences, output: one row per sequence.
//!
//! A model that embeds pools its tokens. A classifier looks at the first: `logit = out(tanh(dense(x)))`, in f32 whatever the layers are computed in,
//! because it is two products per sequence and its rounding would go straight into the logit.

use kernels::gemm::Epilogue;
use kernels::pool::{PoolOptions, Pooling, pool};
use kernels::{CpuExec, ShapeError};

use super::grown;
use super::linear::Linear;
use crate::backend::{Precision, Purpose};
use crate::encoder_config::EncoderConfig;
use crate::error::LoadError;
use crate::model_files::Description;
use crate::weights::Weights;

/// What makes one row of a sequence.
#[derive(Debug)]
pub(super) enum Head {
    Pool(PoolOptions),
    Classify(Box<Classifier>),
}

/// The layers that make a logit of the first token.
#[derive(Debug)]
pub(super) struct Classifier {
    dense: Linear,
    out: Linear,
}

/// Rows of the first tokens before and after the first product, kept between calls.
#[derive(Debug, Default)]
pub(super) struct HeadScratch {
    first: Vec<f32>,
    dense: Vec<f32>,
}

impl Head {
    pub(super) fn load(exec: &mut CpuExec, weights: &Weights, description: &Description) -> Result<Self, LoadError> {
        let config = &description.encoder;
        match config.purpose {
            Purpose::Embed => Ok(Self::Pool(description.pool)),
            Purpose::Rank => Classifier::load(exec, weights, config).map(|head| Self::Classify(Box::new(head))),
        }
    }

    /// Elements of a row.
    pub(super) fn dims(&self, width: usize) -> usize {
        match self {
            Self::Pool(_) => width,
            Self::Classify(_) => 1,
        }
    }

    pub(super) fn run(
        &self,
        exec: &mut CpuExec,
        scratch: &mut HeadScratch,
        (x, cu_seqlens): (&[f32], &[u32]),
        out: &mut [f32],
    ) -> Result<(), ShapeError> {
        let classifier = match self {
            Self::Pool(options) => return pool(exec, *options, x, cu_seqlens, out),
            Self::Classify(classifier) => classifier,
        };
        let sequences = cu_seqlens.len().saturating_sub(1);
        let tokens = cu_seqlens.last().copied().unwrap_or(0) as usize;
        let width = x.len().checked_div(tokens).unwrap_or(0);
        let first = grown(&mut scratch.first, sequences * width);
        let first_token = PoolOptions {
            pooling: Pooling::Cls,
            normalize: false,
        };
        pool(exec, first_token, x, cu_seqlens, first)?;
        let dense = grown(&mut scratch.dense, sequences * width);
        classifier.dense.run(exec, first, Epilogue::Bias, dense)?;
        dense.iter_mut().for_each(|value| *value = value.tanh());
        classifier.out.run(exec, dense, Epilogue::Bias, out)
    }
}

impl Classifier {
    fn load(exec: &mut CpuExec, weights: &Weights, config: &EncoderConfig) -> Result<Self, LoadError> {
        // BERT's first product is its pooler; RoBERTa's belongs to the classifier.
        let (dense, out) = if config.family.is_roberta() {
            ("classifier.dense", "classifier.out_proj")
        } else {
            ("bert.pooler.dense", "classifier")
        };
        let width = config.hidden_size;
        let mut linear = |name: &str, columns: usize| {
            let weight = weights.f32(&format!("{name}.weight"), &[columns, width])?;
            let bias = weights.f32(&format!("{name}.bias"), &[columns])?;
            let packed = Linear::pack(exec, (&weight, &bias), width, Precision::F32);
            packed.map_err(|source| LoadError::Shape {
                file: weights.file().to_owned(),
                source,
            })
        };
        Ok(Self {
            dense: linear(dense, width)?,
            out: linear(out, 1)?,
        })
    }
}
