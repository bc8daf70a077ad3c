//! A decoder of the Llama kind (Llama, Qwen2, Qwen3, Mistral); input: the tokens of a step and the key-value cache, output: logits of the wanted rows.
//!
//! Layer: `x = x + attention(norm(x)) Wo`, `x = x + (silu(norm(x) Wg) * norm(x) Wu) Wd`; all tokens of a step are rows of the same products.
//! Query, key and value weights are one matrix and gate and up weights another, so that rows are read once and products are wide.
//! Behind the last attention only the rows whose logits are wanted go on: a prompt of many tokens wants one.

mod load;
mod quantized;
mod words;

use kernels::gemm::Epilogue;
use kernels::paged_attention::{KvCache, KvRows, PagedBatch, Span, paged_attention, write_kv};
use kernels::rmsnorm::{RmsNorm, rmsnorm, rmsnorm_heads};
use kernels::rope::{RopeTable, rope};
use kernels::swiglu::swiglu;
use kernels::{CpuExec, HeadColumns, ShapeError};

use super::grown;
use super::linear::Linear;
use crate::generate::{BLOCK_TOKENS, LogitRows, StepBatch, StepSpan};
use words::WordTable;

#[derive(Debug)]
struct Layer {
    attention_norm: RmsNorm,
    qkv: Linear,
    /// Of the queries and of the keys.
    head_norms: Option<(RmsNorm, RmsNorm)>,
    attention_out: Linear,
    mlp_norm: RmsNorm,
    gate_up: Linear,
    down: Linear,
    window: Option<u32>,
}

/// Sizes that every layer has.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    hidden: usize,
    intermediate: usize,
    heads: usize,
    kv_heads: usize,
    head_dims: usize,
}

impl Sizes {
    fn query_width(&self) -> usize {
        self.heads * self.head_dims
    }

    fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dims
    }

    fn qkv_width(&self) -> usize {
        self.query_width() + 2 * self.kv_width()
    }

    fn query_columns(&self) -> HeadColumns {
        HeadColumns {
            stride: self.qkv_width(),
            first: 0,
            heads: self.heads,
        }
    }

    fn key_columns(&self) -> HeadColumns {
        HeadColumns {
            stride: self.qkv_width(),
            first: self.query_width(),
            heads: self.kv_heads,
        }
    }
}

/// The layers of one checkpoint, packed for the CPU.
#[derive(Debug)]
pub(crate) struct Decoder {
    sizes: Sizes,
    words: WordTable,
    rope: RopeTable,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Linear,
}

/// What a decoder writes to: the cache, and activations that are kept between steps.
#[derive(Debug)]
pub(crate) struct DecoderState {
    cache: KvCache,
    rows: Rows,
    x: Vec<f32>,
    hidden: Vec<f32>,
    normed: Vec<f32>,
    context: Vec<f32>,
    /// Query, key and value, and later gate and up: never needed at the same time.
    wide: Vec<f32>,
    gated: Vec<f32>,
}

/// A step laid flat, one entry per token.
#[derive(Debug, Default)]
struct Rows {
    ids: Vec<u32>,
    positions: Vec<u32>,
    /// Where in the cache its key and value go.
    slots: Vec<u32>,
    /// Rows whose logits are wanted, rising.
    wanted: Vec<u32>,
}

impl Rows {
    fn lay(&mut self, batch: &StepBatch) {
        let Self {
            ids,
            positions,
            slots,
            wanted,
        } = self;
        for list in [&mut *ids, positions, slots, wanted] {
            list.clear();
        }
        for span in &batch.spans {
            let start = ids.len() as u32;
            ids.extend_from_slice(&span.tokens);
            let end = ids.len() as u32;
            let at = span.first_position..span.first_position + (end - start);
            positions.extend(at.clone());
            slots.extend(at.map(|position| {
                let (block, offset) = (position as usize / BLOCK_TOKENS, position as usize % BLOCK_TOKENS);
                span.blocks[block] * BLOCK_TOKENS as u32 + offset as u32
            }));
            match span.logits {
                LogitRows::None => {}
                LogitRows::Last => wanted.push(end - 1),
                LogitRows::All => wanted.extend(start..end),
            }
        }
    }
}

/// The queries of every span; in the last layer only those whose rows go on.
fn queries(batch: &StepBatch, is_last: bool) -> Vec<Span<'_>> {
    let mut row = 0;
    let mut spans = Vec::with_capacity(batch.spans.len());
    for span in &batch.spans {
        let tokens = span.tokens.len();
        let wanted = if is_last { span.rows() } else { tokens };
        row += tokens as u32;
        if wanted > 0 {
            spans.push(Span {
                query_start: row - wanted as u32,
                query_len: wanted as u32,
                context_len: span.context() as u32,
                blocks: covering(span),
            });
        }
    }
    spans
}

/// The blocks that the tokens so far need; a span may carry more.
fn covering(span: &StepSpan) -> &[u32] {
    &span.blocks[..span.context().div_ceil(BLOCK_TOKENS)]
}

impl DecoderState {
    pub(crate) fn new(cache: KvCache) -> Self {
        Self {
            cache,
            rows: Rows::default(),
            x: Vec::new(),
            hidden: Vec::new(),
            normed: Vec::new(),
            context: Vec::new(),
            wide: Vec::new(),
            gated: Vec::new(),
        }
    }
}

impl Decoder {
    /// Memory of all weights but the norms': matrices with scales and zeros, word table, output layer; one matrix that is both counts once.
    pub(crate) fn weight_bytes(&self) -> usize {
        let of_layer = |layer: &Layer| -> usize {
            let matrices = [&layer.qkv, &layer.attention_out, &layer.gate_up, &layer.down];
            matrices.into_iter().map(Linear::bytes).sum()
        };
        self.words.bytes() + self.head.bytes() + self.layers.iter().map(of_layer).sum::<usize>()
    }

    /// Runs a checked step; `logits` is `[wanted rows, vocab]`.
    pub(crate) fn forward(
        &self,
        exec: &mut CpuExec,
        state: &mut DecoderState,
        batch: &StepBatch,
        logits: &mut [f32],
    ) -> Result<(), ShapeError> {
        state.rows.lay(batch);
        let tokens = state.rows.ids.len();
        let width = self.sizes.hidden;
        self.words
            .gather(&state.rows.ids, grown(&mut state.x, tokens * width), &self.head)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let is_last = index + 1 == self.layers.len();
            self.write_cache(exec, state, layer, index)?;
            let spans = queries(batch, is_last);
            if spans.is_empty() {
                return Ok(());
            }
            self.attend(exec, state, (layer, index), &spans)?;
            let mut rows = tokens;
            if is_last {
                rows = state.rows.wanted.len();
                narrow(&mut state.x, width, &state.rows.wanted);
                narrow(&mut state.context, self.sizes.query_width(), &state.rows.wanted);
            }
            self.feed(exec, state, layer, rows)?;
        }
        let rows = state.rows.wanted.len();
        let normed = grown(&mut state.normed, rows * width);
        rmsnorm(exec, &self.norm, &state.x[..rows * width], normed)?;
        self.head.run(exec, normed, Epilogue::Bias, logits)
    }

    /// Queries, keys and values of all rows; keys and values go to the cache.
    fn write_cache(
        &self,
        exec: &mut CpuExec,
        state: &mut DecoderState,
        layer: &Layer,
        index: usize,
    ) -> Result<(), ShapeError> {
        let sizes = &self.sizes;
        let tokens = state.rows.ids.len();
        let normed = grown(&mut state.normed, tokens * sizes.hidden);
        rmsnorm(exec, &layer.attention_norm, &state.x[..tokens * sizes.hidden], normed)?;
        let qkv = grown(&mut state.wide, tokens * sizes.qkv_width());
        layer.qkv.run(exec, normed, Epilogue::Bias, qkv)?;
        if let Some((query_norm, key_norm)) = &layer.head_norms {
            rmsnorm_heads(exec, query_norm, sizes.query_columns(), qkv)?;
            rmsnorm_heads(exec, key_norm, sizes.key_columns(), qkv)?;
        }
        for columns in [sizes.query_columns(), sizes.key_columns()] {
            rope(exec, &self.rope, &state.rows.positions, columns, qkv)?;
        }
        let rows = KvRows {
            rows: qkv,
            stride: sizes.qkv_width(),
            keys: sizes.query_width(),
            values: sizes.query_width() + sizes.kv_width(),
        };
        write_kv(exec, &mut state.cache, index, rows, &state.rows.slots)
    }

    /// Attention of the queries in `wide`, into `context`.
    fn attend(
        &self,
        exec: &mut CpuExec,
        state: &mut DecoderState,
        (layer, index): (&Layer, usize),
        spans: &[Span<'_>],
    ) -> Result<(), ShapeError> {
        let sizes = &self.sizes;
        let tokens = state.rows.ids.len();
        let batch = PagedBatch {
            layer: index,
            heads: sizes.heads,
            qkv: &state.wide[..tokens * sizes.qkv_width()],
            stride: sizes.qkv_width(),
            spans,
            window: layer.window,
            scale: (sizes.head_dims as f32).sqrt().recip(),
        };
        let context = grown(&mut state.context, tokens * sizes.query_width());
        paged_attention(exec, &state.cache, &batch, context)
    }

    /// The rest of a layer for the first `rows` rows of `context` and `x`.
    fn feed(&self, exec: &mut CpuExec, state: &mut DecoderState, layer: &Layer, rows: usize) -> Result<(), ShapeError> {
        let sizes = &self.sizes;
        let x = grown(&mut state.x, rows * sizes.hidden);
        let hidden = grown(&mut state.hidden, rows * sizes.hidden);
        let context = &state.context[..rows * sizes.query_width()];
        layer
            .attention_out
            .run(exec, context, Epilogue::BiasResidual(x), hidden)?;
        let normed = grown(&mut state.normed, rows * sizes.hidden);
        rmsnorm(exec, &layer.mlp_norm, hidden, normed)?;
        let gate_up = grown(&mut state.wide, rows * 2 * sizes.intermediate);
        layer.gate_up.run(exec, normed, Epilogue::Bias, gate_up)?;
        let gated = grown(&mut state.gated, rows * sizes.intermediate);
        swiglu(exec, gate_up, sizes.intermediate, gated)?;
        layer.down.run(exec, gated, Epilogue::BiasResidual(hidden), x)
    }
}

/// Moves the wanted rows to the front.
fn narrow(rows: &mut [f32], width: usize, wanted: &[u32]) {
    for (to, from) in wanted.iter().enumerate() {
        let from = *from as usize * width;
        rows.copy_within(from..from + width, to * width);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(tokens: &[u32], first_position: u32, blocks: &[u32], logits: LogitRows) -> StepSpan {
        StepSpan {
            tokens: tokens.to_vec(),
            first_position,
            blocks: blocks.to_vec(),
            logits,
        }
    }

    #[test]
    fn a_step_is_laid_flat() {
        let batch = StepBatch {
            spans: vec![
                span(&[7, 8, 9], 15, &[4, 2], LogitRows::Last),
                span(&[5], 0, &[1], LogitRows::None),
                span(&[3, 4], 16, &[0, 3, 9], LogitRows::All),
            ],
        };
        let mut rows = Rows::default();
        // A second time gives the same: nothing is left over.
        for _ in 0..2 {
            rows.lay(&batch);
            assert_eq!(rows.ids, [7, 8, 9, 5, 3, 4]);
            assert_eq!(rows.positions, [15, 16, 17, 0, 16, 17]);
            assert_eq!(rows.slots, [79, 32, 33, 16, 48, 49]);
            assert_eq!(rows.wanted, [2, 4, 5]);
        }
        let of = |is_last| -> Vec<(u32, u32, u32, usize)> {
            let spans = queries(&batch, is_last);
            let facts = |span: &Span<'_>| (span.query_start, span.query_len, span.context_len, span.blocks.len());
            spans.iter().map(facts).collect()
        };
        assert_eq!(of(false), [(0, 3, 18, 2), (3, 1, 1, 1), (4, 2, 18, 2)]);
        assert_eq!(of(true), [(2, 1, 18, 2), (4, 2, 18, 2)]);
    }

    #[test]
    fn wanted_rows_move_to_the_front() {
        let mut rows = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5];
        narrow(&mut rows, 2, &[1, 3]);
        assert_eq!(rows[..4], [1.0, 1.5, 3.0, 3.5]);
    }
}
