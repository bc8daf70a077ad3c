//! Nomic's BERT (post-norm encoder); input: packed token ids, output: one vector per token.
//!
//! Layer: `x = norm(x + attention(rotate(x Wqkv)) Wo)`, `x = norm(x + (silu(x Wgate) * x Wup) Wdown)`; positions are turned into query and key,
//! biases are there only if the configuration says so.
//! Source: `modeling_hf_nomic_bert.py` of nomic-ai/contrastors, and `nomic_bert` of the transformers library.

use std::borrow::Cow;

use kernels::attention::{Heads, attention};
use kernels::embedding::{EmbeddingTables, Sequences, embed};
use kernels::gemm::Epilogue;
use kernels::layernorm::{LayerNorm, layernorm};
use kernels::rope::{RopeTable, rope};
use kernels::swiglu::swiglu;
use kernels::{CpuExec, HeadColumns, ShapeError};

use super::bert::Activations;
use super::grown;
use super::linear::Linear;
use crate::backend::Precision;
use crate::encoder_config::EncoderConfig;
use crate::error::LoadError;
use crate::weights::Weights;

#[derive(Debug)]
struct Layer {
    qkv: Linear,
    attention_out: Linear,
    attention_norm: LayerNorm,
    /// Gate and up side by side, as the gated product takes them.
    gate_up: Linear,
    down: Linear,
    norm: LayerNorm,
}

/// The layers of one checkpoint, packed for the CPU.
#[derive(Debug)]
pub(super) struct NomicBert {
    heads: Heads,
    intermediate: usize,
    tables: EmbeddingTables,
    turns: RopeTable,
    layers: Vec<Layer>,
}

impl NomicBert {
    pub(super) fn load(
        exec: &mut CpuExec,
        weights: &Weights,
        config: &EncoderConfig,
        precision: Precision,
    ) -> Result<Self, LoadError> {
        let mut loader = Loader {
            exec,
            weights,
            config,
            precision,
        };
        let tables = loader.tables()?;
        let turns = loader.turns()?;
        let layers: Result<Vec<Layer>, LoadError> =
            (0..config.num_hidden_layers).map(|index| loader.layer(index)).collect();
        Ok(Self {
            heads: Heads {
                count: config.num_attention_heads,
                dims: config.hidden_size / config.num_attention_heads,
            },
            intermediate: config.intermediate_size,
            tables,
            turns,
            layers: layers?,
        })
    }

    /// One vector per token, `[tokens, width]` into `activations.x`.
    pub(super) fn forward(
        &self,
        exec: &mut CpuExec,
        activations: &mut Activations,
        positions: &mut Vec<u32>,
        sequences: Sequences<'_>,
    ) -> Result<(), ShapeError> {
        let width = self.heads.width();
        let (tokens, cu_seqlens) = (sequences.ids.len(), sequences.cu_seqlens);
        let (x, hidden, context) = (
            grown(&mut activations.x, tokens * width),
            grown(&mut activations.hidden, tokens * width),
            // Also the gated product, after attention has had it.
            grown(&mut activations.context, tokens * self.intermediate.max(width)),
        );
        let wide = grown(&mut activations.wide, tokens * (2 * self.intermediate).max(3 * width));
        embed(exec, &self.tables, sequences, x)?;
        positions.clear();
        positions.extend(cu_seqlens.windows(2).flat_map(|pair| 0..pair[1] - pair[0]));
        // Query and key heads stand side by side in front of the values.
        let turned = HeadColumns {
            stride: 3 * width,
            first: 0,
            heads: 2 * self.heads.count,
        };
        for layer in &self.layers {
            let qkv = &mut wide[..tokens * 3 * width];
            layer.qkv.run(exec, x, Epilogue::Bias, qkv)?;
            rope(exec, &self.turns, positions, turned, qkv)?;
            let attended = &mut context[..tokens * width];
            attention(exec, self.heads, qkv, cu_seqlens, attended)?;
            layer
                .attention_out
                .run(exec, attended, Epilogue::BiasResidual(x), hidden)?;
            layernorm(exec, &layer.attention_norm, None, hidden)?;
            let gate_up = &mut wide[..tokens * 2 * self.intermediate];
            layer.gate_up.run(exec, hidden, Epilogue::Bias, gate_up)?;
            let gated = &mut context[..tokens * self.intermediate];
            swiglu(exec, gate_up, self.intermediate, gated)?;
            layer.down.run(exec, gated, Epilogue::BiasResidual(hidden), x)?;
            layernorm(exec, &layer.norm, None, x)?;
        }
        Ok(())
    }
}

/// Reads tensors by their names in published checkpoints.
struct Loader<'a> {
    exec: &'a mut CpuExec,
    weights: &'a Weights,
    config: &'a EncoderConfig,
    precision: Precision,
}

impl<'a> Loader<'a> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Cow<'a, [f32]>, LoadError> {
        self.weights.f32(name, shape)
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
        let types = self.tensor(
            "embeddings.token_type_embeddings.weight",
            &[config.type_vocab_size, width],
        )?;
        let norm = self.norm("emb_ln")?;
        EmbeddingTables::new(word.into_owned(), None, &types[..width], norm).map_err(|source| self.shape(source))
    }

    fn turns(&self) -> Result<RopeTable, LoadError> {
        let config = self.config;
        let dims = config.hidden_size / config.num_attention_heads;
        let inv_freq: Vec<f32> = (0..dims / 2)
            .map(|pair| config.rope_theta.powf(-2.0 * pair as f64 / dims as f64) as f32)
            .collect();
        RopeTable::new(&inv_freq, config.max_position_embeddings, 1.0).map_err(|source| self.shape(source))
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
        let biases = self.config.biases;
        let at = |name: &str| format!("encoder.layers.{index}.{name}");
        let gate_up = [at("mlp.fc12"), at("mlp.fc11")];
        Ok(Layer {
            qkv: self.linear(&[at("attn.Wqkv")], (width, 3 * width), biases.attention)?,
            attention_out: self.linear(&[at("attn.out_proj")], (width, width), biases.attention)?,
            attention_norm: self.norm(&at("norm1"))?,
            gate_up: self.linear(&gate_up, (width, intermediate), biases.up)?,
            down: self.linear(&[at("mlp.fc2")], (intermediate, width), biases.down)?,
            norm: self.norm(&at("norm2"))?,
        })
    }

    /// One matrix from the named ones, `[columns, depth]` each, one below the other.
    fn linear(
        &mut self,
        names: &[String],
        (depth, columns): (usize, usize),
        has_bias: bool,
    ) -> Result<Linear, LoadError> {
        let mut weight = Vec::with_capacity(names.len() * columns * depth);
        let mut bias = Vec::with_capacity(names.len() * columns);
        for name in names {
            weight.extend_from_slice(&self.tensor(&format!("{name}.weight"), &[columns, depth])?);
            if has_bias {
                bias.extend_from_slice(&self.tensor(&format!("{name}.bias"), &[columns])?);
            }
        }
        bias.resize(names.len() * columns, 0.0);
        let packed = Linear::pack(self.exec, (&weight, &bias), depth, self.precision);
        packed.map_err(|source| self.shape(source))
    }
}
