//! Reads a decoder's tensors by their names in the checkpoint; input: open weights and the configuration, output: packed layers or a named error.

use std::borrow::Cow;

use kernels::rmsnorm::RmsNorm;
use kernels::rope::RopeTable;
use kernels::{CpuExec, ShapeError};

use super::quantized::{Matrix, Stored};
use super::words::WordTable;
use super::{Decoder, Layer, Sizes};
use crate::backend::Precision;
use crate::error::LoadError;
use crate::generate::DecoderConfig;
use crate::models::linear::Linear;
use crate::weights::Weights;

impl Decoder {
    /// Loads the weights of a configuration; `positions` is the longest sequence that will be computed.
    pub(crate) fn load(
        exec: &mut CpuExec,
        weights: &Weights,
        config: &DecoderConfig,
        precision: Precision,
        positions: usize,
    ) -> Result<Self, LoadError> {
        let mut loader = Loader {
            exec,
            weights,
            config,
            precision,
        };
        let (words, head) = loader.ends()?;
        let layers: Result<Vec<Layer>, LoadError> = (0..config.layers).map(|index| loader.layer(index)).collect();
        let rotary = &config.rotary;
        let rope = RopeTable::new(&rotary.inv_freq, positions, rotary.scale);
        Ok(Self {
            sizes: Sizes {
                hidden: config.hidden_size,
                intermediate: config.intermediate_size,
                heads: config.heads,
                kv_heads: config.kv_heads,
                head_dims: config.head_dims,
            },
            words,
            rope: rope.map_err(|source| loader.shape(source))?,
            layers: layers?,
            norm: loader.norm("model.norm.weight", config.hidden_size)?,
            head,
        })
    }
}

struct Loader<'a> {
    exec: &'a mut CpuExec,
    weights: &'a Weights,
    config: &'a DecoderConfig,
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

    fn norm(&self, name: &str, width: usize) -> Result<RmsNorm, LoadError> {
        let weight = self.tensor(name, &[width])?;
        RmsNorm::new(weight.into_owned(), self.config.norm_epsilon).map_err(|source| self.shape(source))
    }

    /// The word table and the output layer, which may be the same matrix.
    fn ends(&mut self) -> Result<(WordTable, Linear), LoadError> {
        const WORDS: &str = "model.embed_tokens.weight";
        let (vocab, width) = (self.config.vocab_size, self.config.hidden_size);
        let words = self.tensor(WORDS, &[vocab, width])?;
        if self.config.tied {
            // The rows are read as words too, and those lose too much in 4 bits.
            let precision = match self.precision {
                Precision::Int4 => Precision::Int8,
                other => other,
            };
            let head = Linear::pack(self.exec, (&words, &vec![0.0; vocab]), width, precision);
            return Ok((WordTable::Tied, head.map_err(|source| self.shape(source))?));
        }
        let table = WordTable::new(&words, width, self.weights.is_bf16(WORDS), self.precision);
        drop(words);
        let head = self.linear(&[("lm_head".to_owned(), vocab)], width, false)?;
        Ok((table, head))
    }

    fn layer(&mut self, index: usize) -> Result<Layer, LoadError> {
        let config = self.config;
        let (width, intermediate) = (config.hidden_size, config.intermediate_size);
        let (query, kv) = (config.query_width(), config.kv_width());
        let at = |name: &str| format!("model.layers.{index}.{name}");
        let part = |name: &str, columns: usize| (at(name), columns);
        let qkv = [
            part("self_attn.q_proj", query),
            part("self_attn.k_proj", kv),
            part("self_attn.v_proj", kv),
        ];
        let gate_up = [part("mlp.gate_proj", intermediate), part("mlp.up_proj", intermediate)];
        let head_norm = |name: &str| self.norm(&at(name), config.head_dims);
        let head_norms = if config.head_norms {
            Some((
                head_norm("self_attn.q_norm.weight")?,
                head_norm("self_attn.k_norm.weight")?,
            ))
        } else {
            None
        };
        Ok(Layer {
            attention_norm: self.norm(&at("input_layernorm.weight"), width)?,
            qkv: self.linear(&qkv, width, config.bias.qkv)?,
            head_norms,
            attention_out: self.linear(&[part("self_attn.o_proj", width)], query, config.bias.attention_out)?,
            mlp_norm: self.norm(&at("post_attention_layernorm.weight"), width)?,
            gate_up: self.linear(&gate_up, width, config.bias.mlp)?,
            down: self.linear(&[part("mlp.down_proj", width)], intermediate, config.bias.mlp)?,
            window: config.windows[index],
        })
    }

    /// One matrix from the named ones, `[columns, depth]` each, one below the other; stacked where they are stored too differently.
    fn linear(&mut self, parts: &[(String, usize)], depth: usize, has_bias: bool) -> Result<Linear, LoadError> {
        let mut stack: Vec<(Stored<'_>, Vec<f32>)> = Vec::new();
        for (name, columns) in parts {
            let matrix = Matrix {
                name,
                columns: *columns,
                depth,
            };
            let mut part = Stored::read(self.weights, matrix, self.config.quantization)?;
            let bias = if has_bias {
                self.tensor(&format!("{name}.bias"), &[*columns])?.into_owned()
            } else {
                vec![0.0; *columns]
            };
            if let Some((last, last_bias)) = stack.last_mut() {
                match last.append(part) {
                    None => {
                        last_bias.extend(bias);
                        continue;
                    }
                    Some(left) => part = left,
                }
            }
            stack.push((part, bias));
        }
        let mut packed = Vec::with_capacity(stack.len());
        for (weight, bias) in stack {
            let linear = weight.pack(self.exec, &bias, depth, self.precision);
            packed.push(linear.map_err(|source| self.shape(source))?);
        }
        if packed.len() == 1 {
            return Ok(packed.remove(0));
        }
        Ok(Linear::Stacked(packed))
    }
}
