//! BERT (post-norm encoder); input: packed token ids, output: one vector per token. Works for MiniLM, BGE, E5 and other BERT checkpoints, and for
//! RoBERTa and XLM-RoBERTa, whose positions begin after that of padding.
//!
//! Layer: `x = norm(x + attention(x) Wo)`, `x = norm(x + gelu(x W1) W2)`; query, key and value weights are one matrix, so one product gives all three.

use std::borrow::Cow;

use kernels::attention::{Heads, attention};
use kernels::embedding::{EmbeddingTables, Sequences, embed};
use kernels::gemm::Epilogue;
use kernels::layernorm::{LayerNorm, layernorm};
use kernels::{CpuExec, ShapeError};

use crate::backend::{Precision, Purpose};
use crate::encoder_config::EncoderConfig;
use crate::error::LoadError;
use crate::models::grown;
use crate::models::linear::Linear;
use crate::weights::Weights;

#[derive(Debug)]
struct Layer {
    qkv: Linear,
    attention_out: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    norm: LayerNorm,
}

/// The layers of one checkpoint, packed for the CPU.
#[derive(Debug)]
pub(crate) struct Bert {
    heads: Heads,
    intermediate: usize,
    tables: EmbeddingTables,
    layers: Vec<Layer>,
}

/// Activations of a batch, kept between calls.
#[derive(Debug, Default)]
pub(crate) struct Activations {
    /// `[tokens, width]`; after the last layer, the result.
    pub(super) x: Vec<f32>,
    pub(super) hidden: Vec<f32>,
    pub(super) context: Vec<f32>,
    /// Query, key and value, and later the intermediate layer: never needed at the same time.
    pub(super) wide: Vec<f32>,
}

impl Bert {
    pub(crate) fn load(
        exec: &mut CpuExec,
        weights: &Weights,
        config: &EncoderConfig,
        precision: Precision,
    ) -> Result<Self, LoadError> {
        let mut loader = Loader::new(exec, weights, config, precision);
        let tables = loader.tables()?;
        let layers: Result<Vec<Layer>, LoadError> =
            (0..config.num_hidden_layers).map(|index| loader.layer(index)).collect();
        Ok(Self {
            heads: Heads {
                count: config.num_attention_heads,
                dims: config.hidden_size / config.num_attention_heads,
            },
            intermediate: config.intermediate_size,
            tables,
            layers: layers?,
        })
    }

    /// One vector per token, `[tokens, width]` into `activations.x`.
    pub(crate) fn forward(
        &self,
        exec: &mut CpuExec,
        activations: &mut Activations,
        sequences: Sequences<'_>,
    ) -> Result<(), ShapeError> {
        let width = self.heads.width();
        let (tokens, cu_seqlens) = (sequences.ids.len(), sequences.cu_seqlens);
        let (x, hidden, context) = (
            grown(&mut activations.x, tokens * width),
            grown(&mut activations.hidden, tokens * width),
            grown(&mut activations.context, tokens * width),
        );
        let wide = grown(&mut activations.wide, tokens * self.intermediate.max(3 * width));
        embed(exec, &self.tables, sequences, x)?;
        for layer in &self.layers {
            let qkv = &mut wide[..tokens * 3 * width];
            layer.qkv.run(exec, x, Epilogue::Bias, qkv)?;
            attention(exec, self.heads, qkv, cu_seqlens, context)?;
            let residual = Epilogue::BiasResidual(x);
            layer.attention_out.run(exec, context, residual, hidden)?;
            layernorm(exec, &layer.attention_norm, None, hidden)?;
            let up = &mut wide[..tokens * self.intermediate];
            layer.up.run(exec, hidden, Epilogue::BiasGelu, up)?;
            let residual = Epilogue::BiasResidual(hidden);
            layer.down.run(exec, up, residual, x)?;
            layernorm(exec, &layer.norm, None, x)?;
        }
        Ok(())
    }
}

/// Reads tensors by their names in the checkpoint.
struct Loader<'a> {
    exec: &'a mut CpuExec,
    weights: &'a Weights,
    config: &'a EncoderConfig,
    precision: Precision,
    /// `bert.` or `roberta.` in checkpoints that were saved with a head, else empty.
    prefix: &'static str,
}

impl<'a> Loader<'a> {
    fn new(exec: &'a mut CpuExec, weights: &'a Weights, config: &'a EncoderConfig, precision: Precision) -> Self {
        let has = |prefix: &&str| weights.has(&format!("{prefix}embeddings.word_embeddings.weight"));
        Self {
            exec,
            weights,
            config,
            precision,
            prefix: ["bert.", "roberta."].into_iter().find(has).unwrap_or(""),
        }
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Cow<'a, [f32]>, LoadError> {
        self.weights.f32(&format!("{}{name}", self.prefix), shape)
    }

    fn shape(&self, source: ShapeError) -> LoadError {
        LoadError::Shape {
            file: self.weights.file().to_owned(),
            source,
        }
    }

    fn tables(&self) -> Result<EmbeddingTables, LoadError> {
        let config = self.config;
        let width = config.hidden_size;
        let word = self.tensor("embeddings.word_embeddings.weight", &[config.vocab_size, width])?;
        let rows = config.position_offset + config.max_position_embeddings;
        let position = self.tensor("embeddings.position_embeddings.weight", &[rows, width])?;
        let types = self.tensor(
            "embeddings.token_type_embeddings.weight",
            &[config.type_vocab_size, width],
        )?;
        let norm = self.norm("embeddings.LayerNorm")?;
        let position = &position[config.position_offset * width..];
        // The rows of the second type are needed for pairs only, and then if the family tells texts apart.
        let typed = config.purpose == Purpose::Rank && !config.family.is_roberta();
        let types = if typed { &types[..] } else { &types[..width] };
        EmbeddingTables::new(word.into_owned(), Some(position), types, norm).map_err(|source| self.shape(source))
    }

    fn norm(&self, name: &str) -> Result<LayerNorm, LoadError> {
        let width = self.config.hidden_size;
        let weight = self.tensor(&format!("{name}.weight"), &[width])?;
        let bias = self.tensor(&format!("{name}.bias"), &[width])?;
        let epsilon = self.config.layer_norm_eps as f32;
        LayerNorm::new(weight.into_owned(), bias.into_owned(), epsilon).map_err(|source| self.shape(source))
    }

    fn layer(&mut self, index: usize) -> Result<Layer, LoadError> {
        let width = self.config.hidden_size;
        let intermediate = self.config.intermediate_size;
        let at = |name: &str| format!("encoder.layer.{index}.{name}");
        let attention = ["query", "key", "value"].map(|part| at(&format!("attention.self.{part}")));
        Ok(Layer {
            qkv: self.linear(&attention, width, width)?,
            attention_out: self.linear(&[at("attention.output.dense")], width, width)?,
            attention_norm: self.norm(&at("attention.output.LayerNorm"))?,
            up: self.linear(&[at("intermediate.dense")], width, intermediate)?,
            down: self.linear(&[at("output.dense")], intermediate, width)?,
            norm: self.norm(&at("output.LayerNorm"))?,
        })
    }

    /// One matrix from the named ones, `[columns, depth]` each, one below the other.
    fn linear(&mut self, names: &[String], depth: usize, columns: usize) -> Result<Linear, LoadError> {
        let mut weight = Cow::Borrowed(&[][..]);
        let mut bias = Vec::with_capacity(columns * names.len());
        for name in names {
            let part = self.tensor(&format!("{name}.weight"), &[columns, depth])?;
            bias.extend_from_slice(&self.tensor(&format!("{name}.bias"), &[columns])?);
            if weight.is_empty() {
                weight = part;
            } else {
                weight.to_mut().extend_from_slice(&part);
            }
        }
        let packed = Linear::pack(self.exec, (&weight, &bias), depth, self.precision);
        packed.map_err(|source| self.shape(source))
    }
}
