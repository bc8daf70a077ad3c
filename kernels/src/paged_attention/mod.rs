//! Causal attention over a key-value cache in blocks; input: query rows `[tokens, stride]` f32 and a cache, output: `[tokens, heads * dims]` f32.
//!
//! One call takes prefill chunks and decode rows of many sequences; the keys and values of their tokens must be in the cache already ([`write_kv`]).
//! Heads of a group share a key-value head (grouped queries); token `p` sees tokens `p - window + 1 ..= p` of its sequence.
//! Sums in f32. A context is cut at fixed positions into segments that are summed alone and merged in order, so a row's result is the same
//! bit for bit whatever else is in the batch, however a prompt is cut into chunks and however many threads run.
//! FLOPs: `4 * heads * dims` per query and visible token; bytes: `2 * kv_heads * dims` elements per visible token and 48 rows of a group.
//! Sources: paged blocks of Kwon et al. 2023 (arXiv 2309.06180), running softmax of Dao et al. 2022 (arXiv 2205.14135), and
//! a split context merged at the end as in Flash-Decoding.

mod cache;
mod cpu;
mod plan;
pub mod reference;
mod segment;
#[cfg(test)]
mod tests;

use crate::error::{ShapeError, expect_at_most, expect_index, expect_len, expect_multiple, expect_nonzero};
use crate::exec::CpuExec;

pub use cache::{KvCache, KvLayout, KvRows, KvStorage, write_kv};
pub(crate) use plan::Plan;

const OP: &str = "paged attention";

/// New tokens of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// Row of its first query.
    pub query_start: u32,
    /// Queries, one row each; they are the last tokens of the context.
    pub query_len: u32,
    /// Tokens of the sequence, the new ones included.
    pub context_len: u32,
    /// Blocks of the sequence in order; those that lie wholly before the window are not looked at.
    pub blocks: &'a [u32],
}

/// Queries of one layer and what they attend to.
#[derive(Debug, Clone, Copy)]
pub struct PagedBatch<'a> {
    /// Layer of the cache.
    pub layer: usize,
    /// Query heads, a multiple of the cache's heads; they are the first columns of a row.
    pub heads: usize,
    /// `[tokens, stride]`.
    pub qkv: &'a [f32],
    /// Elements of a row.
    pub stride: usize,
    /// Sequences in rising order of their rows; rows of no span are left as they are.
    pub spans: &'a [Span<'a>],
    /// Tokens a query sees, itself included; all when `None`.
    pub window: Option<u32>,
    /// Factor of the scores, usually `1 / sqrt(dims)`.
    pub scale: f32,
}

impl PagedBatch<'_> {
    /// First token that the token at `position` sees.
    #[inline(always)]
    fn first_visible(&self, position: usize) -> usize {
        match self.window {
            Some(window) => (position + 1).saturating_sub(window as usize),
            None => 0,
        }
    }

    fn check(&self, cache: &KvCache, outputs: usize) -> Result<(), ShapeError> {
        let layout = cache.layout();
        expect_index(OP, "layer", self.layer, cache.layers())?;
        expect_nonzero(OP, "heads", self.heads)?;
        expect_multiple(OP, "heads", self.heads, layout.kv_heads)?;
        let width = self.heads.saturating_mul(layout.dims);
        expect_at_most(OP, "heads", width, self.stride)?;
        let tokens = outputs / width;
        expect_len(OP, "out", outputs, tokens * width)?;
        expect_len(OP, "qkv", self.qkv.len(), tokens * self.stride)?;
        if let Some(window) = self.window {
            expect_nonzero(OP, "window", window as usize)?;
        }
        let mut free = 0;
        for span in self.spans {
            free = self.check_span(span, cache, (free, tokens))?;
        }
        Ok(())
    }

    /// Checks one span whose rows must lie in `free..tokens`; returns the first row after it.
    fn check_span(
        &self,
        span: &Span<'_>,
        cache: &KvCache,
        (free, tokens): (usize, usize),
    ) -> Result<usize, ShapeError> {
        let (start, queries) = (span.query_start as usize, span.query_len as usize);
        let context = span.context_len as usize;
        expect_at_most(OP, "row of the span before", free, start)?;
        expect_at_most(OP, "span's rows", start + queries, tokens)?;
        expect_at_most(OP, "span's queries", queries, context)?;
        let block_tokens = cache.layout().block_tokens;
        expect_at_most(OP, "context", context, span.blocks.len().saturating_mul(block_tokens))?;
        let first = self.first_visible(context - queries) / block_tokens;
        let last = context.div_ceil(block_tokens);
        for &block in span.blocks[..last].iter().skip(first) {
            expect_index(OP, "block", block as usize, cache.blocks())?;
        }
        Ok(start + queries)
    }
}

/// Fills the rows of `out` (`[tokens, heads * dims]`) that belong to a span with `softmax(scale q k^T) v` over the visible tokens.
pub fn paged_attention(
    exec: &mut CpuExec,
    cache: &KvCache,
    batch: &PagedBatch<'_>,
    out: &mut [f32],
) -> Result<(), ShapeError> {
    batch.check(cache, out.len())?;
    cpu::run(exec, cache, batch, out);
    Ok(())
}
