//! Attention of a few query rows over one segment of a context; input: scaled queries and a layer of the cache, output: running sums that can be merged.
//!
//! Scores of a tile of rows and up to 128 tokens stay in the first-level cache; both products use the tile of `gemm` on the cache's panels.

use std::ops::Range;

use super::KvLayout;
use super::cpu::Attention;
use super::plan::{SEGMENT, Unit, state_len};
use crate::simd::math::exp2;
use crate::simd::{Ahead, MAX_TILE_ROWS, PANEL, PanelElement, Simd, tile_onto, tile_rows};

/// Tokens whose scores are held at once; with 128 dims in f32 their keys are 64 KiB, which stay in the second-level cache for all rows of a unit.
const CHUNK: usize = 128;
/// Stands for minus infinity: no NaN can come of its differences.
const MASKED: f32 = -1e30;

/// What a thread needs for one unit, cut out of one piece of memory.
pub(super) struct Memory<'a> {
    /// `[rows, dims]`.
    pub(super) queries: &'a mut [f32],
    /// `[6, CHUNK]`: scores, then their exponentials.
    pub(super) weights: &'a mut [f32],
    /// Sums over one segment.
    pub(super) part: State<'a>,
    /// Sums over all segments so far.
    pub(super) total: State<'a>,
}

impl<'a> Memory<'a> {
    #[inline(always)]
    pub(super) fn cut(memory: &'a mut Vec<f32>, layout: KvLayout, rows: usize) -> Self {
        let (queries, weights, state) = (rows * layout.dims, MAX_TILE_ROWS * CHUNK, state_len(layout, rows));
        let length = queries + weights + 2 * state;
        if memory.len() < length {
            memory.resize(length, 0.0);
        }
        let (queries, rest) = memory[..length].split_at_mut(queries);
        let (weights, rest) = rest.split_at_mut(weights);
        let (part, total) = rest.split_at_mut(state);
        Self {
            queries,
            weights,
            part: State::cut(part, rows),
            total: State::cut(total, rows),
        }
    }
}

/// Running sums of the rows of a unit.
pub(super) struct State<'a> {
    /// `[rows, dims rounded up to panels]`: values, weighted by `2^(score - largest)`.
    sums: &'a mut [f32],
    /// Largest score of each row.
    largest: &'a mut [f32],
    /// Sum of the weights of each row.
    weights: &'a mut [f32],
}

impl<'a> State<'a> {
    /// Takes memory of [`state_len`] elements.
    #[inline(always)]
    pub(super) fn cut(memory: &'a mut [f32], rows: usize) -> Self {
        let sums = memory.len() - 2 * rows;
        let (sums, rest) = memory.split_at_mut(sums);
        let (largest, weights) = rest.split_at_mut(rows);
        Self { sums, largest, weights }
    }

    /// Nothing seen yet.
    #[inline(always)]
    pub(super) fn clear(&mut self) {
        self.sums.fill(0.0);
        self.largest.fill(MASKED);
        self.weights.fill(0.0);
    }

    /// Takes over the sums of a state of the same size.
    #[inline(always)]
    pub(super) fn copy_from(&mut self, state: &[f32]) {
        let (sums, rest) = state.split_at(self.sums.len());
        let (largest, weights) = rest.split_at(self.largest.len());
        self.sums.copy_from_slice(sums);
        self.largest.copy_from_slice(largest);
        self.weights.copy_from_slice(weights);
    }

    #[inline(always)]
    fn row(&mut self, row: usize) -> &mut [f32] {
        let width = self.sums.len() / self.largest.len();
        &mut self.sums[row * width..][..width]
    }

    /// Makes `largest` at least `score`, and what was summed before relative to it.
    #[inline(always)]
    fn raise(&mut self, row: usize, score: f32) {
        // Exactly one when nothing changes, which is most of the time.
        if score > self.largest[row] {
            let factor = (self.largest[row] - score).exp2();
            self.largest[row] = score;
            self.weights[row] *= factor;
            for sum in self.row(row) {
                *sum *= factor;
            }
        }
    }

    /// Adds the sums of another state; rows that saw nothing there stay as they are.
    #[inline(always)]
    pub(super) fn merge(&mut self, other: &State<'_>) {
        let width = self.sums.len() / self.largest.len();
        for row in 0..self.largest.len() {
            if other.weights[row] == 0.0 {
                continue;
            }
            self.raise(row, other.largest[row]);
            let factor = (other.largest[row] - self.largest[row]).exp2();
            self.weights[row] += other.weights[row] * factor;
            let from = &other.sums[row * width..][..width];
            for (sum, from) in self.row(row).iter_mut().zip(from) {
                *sum += from * factor;
            }
        }
    }

    /// The mean of the values, weighted: the result of a row.
    #[inline(always)]
    pub(super) fn finish(&self, row: usize, out: &mut [f32]) {
        let width = self.sums.len() / self.largest.len();
        let factor = 1.0 / self.weights[row];
        for (out, sum) in out.iter_mut().zip(&self.sums[row * width..][..width]) {
            *out = sum * factor;
        }
    }
}

/// A chunk of tokens: where its panels stand in keys and values.
struct Chunk {
    /// First token, at the start of a panel.
    first: usize,
    /// Tokens that some row of the unit sees.
    tokens: Range<usize>,
    keys: [usize; CHUNK / PANEL],
    values: [usize; CHUNK / PANEL],
}

impl<W: PanelElement> Attention<'_, W> {
    /// Adds the tokens of one segment to `state`, which is clear.
    #[inline(always)]
    pub(super) fn segment<S: Simd>(
        &self,
        simd: S,
        (unit, segment): (&Unit, usize),
        (queries, weights): (&[f32], &mut [f32]),
        state: &mut State<'_>,
    ) {
        let start = unit.start.max(segment * SEGMENT);
        let end = unit.tokens().end.min((segment + 1) * SEGMENT);
        let rows = unit.queries * self.group;
        assert!(queries.len() == rows * self.layout.dims && weights.len() == MAX_TILE_ROWS * CHUNK);
        let mut first = start / CHUNK * CHUNK;
        while first < end {
            let chunk = self.chunk(unit, start.max(first)..end.min(first + CHUNK));
            let mut row = 0;
            while row < rows {
                let height = tile_rows(rows - row);
                let work = (unit, &chunk, row);
                match height {
                    1 => self.tile::<S, 1>(simd, work, (queries, &mut *weights), state),
                    2 => self.tile::<S, 2>(simd, work, (queries, &mut *weights), state),
                    3 => self.tile::<S, 3>(simd, work, (queries, &mut *weights), state),
                    4 => self.tile::<S, 4>(simd, work, (queries, &mut *weights), state),
                    5 => self.tile::<S, 5>(simd, work, (queries, &mut *weights), state),
                    _ => self.tile::<S, MAX_TILE_ROWS>(simd, work, (queries, &mut *weights), state),
                }
                row += height;
            }
            first += CHUNK;
        }
    }

    /// Finds the panels of a chunk.
    #[inline(always)]
    fn chunk(&self, unit: &Unit, tokens: Range<usize>) -> Chunk {
        let KvLayout {
            kv_heads,
            dims,
            block_tokens,
        } = self.layout;
        let blocks = self.batch.spans[unit.span].blocks;
        let mut chunk = Chunk {
            first: tokens.start / PANEL * PANEL,
            tokens,
            keys: [0; CHUNK / PANEL],
            values: [0; CHUNK / PANEL],
        };
        let panels = (chunk.first..chunk.tokens.end).step_by(PANEL);
        for (token, (keys, values)) in panels.zip(chunk.keys.iter_mut().zip(&mut chunk.values)) {
            let head = blocks[token / block_tokens] as usize * kv_heads + unit.head;
            *keys = head * self.layout.key_len() + token % block_tokens * dims;
            *values = head * self.layout.value_len() + token % block_tokens * PANEL;
        }
        chunk
    }

    /// `R` query rows over the tokens of a chunk that they see.
    #[inline(always)]
    fn tile<S: Simd, const R: usize>(
        &self,
        simd: S,
        (unit, chunk, row): (&Unit, &Chunk, usize),
        (queries, weights): (&[f32], &mut [f32]),
        state: &mut State<'_>,
    ) {
        let position = |row: usize| unit.position + row / self.group;
        let start = chunk.tokens.start.max(self.batch.first_visible(position(row)));
        let end = chunk.tokens.end.min(position(row + R - 1) + 1);
        if start >= end {
            return;
        }
        let panels = (start - chunk.first) / PANEL..(end - chunk.first).div_ceil(PANEL);
        self.scores::<S, R>(
            simd,
            (chunk, panels.clone()),
            &queries[row * self.layout.dims..],
            weights,
        );
        for r in 0..R {
            let position = position(row + r);
            let from = start.max(self.batch.first_visible(position)) - chunk.first;
            let to = end.min(position + 1).max(chunk.first) - chunk.first;
            let row_weights = &mut weights[r * CHUNK..][..panels.end * PANEL];
            weigh(simd, row_weights, from..to, (&mut *state, row + r));
        }
        let tokens = start - chunk.first..end - chunk.first;
        self.sums::<S, R>(simd, (chunk, tokens), weights, (state, row));
    }

    /// Scores of `R` rows with the keys of some panels.
    #[inline(always)]
    fn scores<S: Simd, const R: usize>(
        &self,
        simd: S,
        (chunk, panels): (&Chunk, Range<usize>),
        queries: &[f32],
        scores: &mut [f32],
    ) {
        let dims = self.layout.dims;
        assert!(queries.len() >= R * dims && scores.len() >= R * CHUNK);
        for panel in panels {
            let keys = &self.layer.keys[chunk.keys[panel]..][..dims * PANEL];
            // SAFETY: `queries` has `R` rows of `dims`, `keys` is one panel of that depth; `scores` has `R` rows of `CHUNK`.
            unsafe {
                let mut acc = [[simd.splat(0.0); 2]; R];
                let values = self.layer.values.as_ptr().wrapping_add(chunk.values[panel]);
                let ahead = Ahead {
                    from: values.cast(),
                    step: PANEL * size_of::<W>(),
                };
                tile_onto(
                    simd,
                    &mut acc,
                    (queries.as_ptr(), dims),
                    (keys.as_ptr(), dims),
                    Some(ahead),
                );
                for (r, acc) in acc.into_iter().enumerate() {
                    let to = scores.as_mut_ptr().add(r * CHUNK + panel * PANEL);
                    simd.store(to, acc[0]);
                    simd.store(to.add(8), acc[1]);
                }
            }
        }
    }

    /// Adds the values of some tokens (counted from the chunk's first), weighted, to the sums of `R` rows.
    #[inline(always)]
    fn sums<S: Simd, const R: usize>(
        &self,
        simd: S,
        (chunk, tokens): (&Chunk, Range<usize>),
        weights: &[f32],
        (state, row): (&mut State<'_>, usize),
    ) {
        let width = self.layout.dims.next_multiple_of(PANEL);
        let sums = &mut state.sums[row * width..][..R * width];
        assert!(weights.len() >= R * CHUNK && tokens.end <= CHUNK);
        for column in (0..width).step_by(PANEL) {
            let mut acc = [[simd.splat(0.0); 2]; R];
            // SAFETY: `sums` has `R` rows of `width`, and `column + 16 <= width`; weights and values as the slices say.
            unsafe {
                let at = sums.as_mut_ptr().add(column);
                for (r, acc) in acc.iter_mut().enumerate() {
                    *acc = [simd.load(at.add(r * width)), simd.load(at.add(r * width + 8))];
                }
                for panel in tokens.start / PANEL..tokens.end.div_ceil(PANEL) {
                    // Tokens that no row sees are left out: their slots may hold anything, and zero times NaN is NaN.
                    let from = tokens.start.max(panel * PANEL);
                    let to = tokens.end.min((panel + 1) * PANEL);
                    let values = chunk.values[panel] + column * self.layout.block_tokens + (from % PANEL) * PANEL;
                    let values = &self.layer.values[values..][..(to - from) * PANEL];
                    let weights = (weights.as_ptr().add(from), CHUNK);
                    tile_onto(simd, &mut acc, weights, (values.as_ptr(), to - from), None);
                }
                for (r, acc) in acc.into_iter().enumerate() {
                    simd.store(at.add(r * width), acc[0]);
                    simd.store(at.add(r * width + 8), acc[1]);
                }
            }
        }
    }
}

/// Turns the scores of one row into weights, zero outside `visible`, and adds their sum to the state.
///
/// Only panels with a visible token are looked at, so the result does not depend on what other rows see.
#[inline(always)]
fn weigh<S: Simd>(simd: S, weights: &mut [f32], visible: Range<usize>, (state, row): (&mut State<'_>, usize)) {
    if visible.is_empty() {
        weights.fill(0.0);
        return;
    }
    let panels = visible.start / PANEL * PANEL..visible.end.next_multiple_of(PANEL);
    weights[panels.start..visible.start].fill(MASKED);
    weights[visible.end..panels.end].fill(MASKED);
    let scores = &mut weights[panels];
    let mut largest = simd.splat(MASKED);
    for eight in scores.chunks_exact(8) {
        // SAFETY: the chunk has 8 elements.
        largest = simd.max(largest, unsafe { simd.load(eight.as_ptr()) });
    }
    state.raise(row, simd.max_lane(largest));
    let by_lane = simd.splat(state.largest[row]);
    let mut sums = [simd.splat(0.0); 2];
    for sixteen in scores.chunks_exact_mut(PANEL) {
        // Two at a time, so that the additions of one do not wait for the other.
        for (half, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the chunk has 16 elements.
            unsafe {
                let at = sixteen.as_mut_ptr().add(half * 8);
                let weight = exp2(simd, simd.sub(simd.load(at), by_lane));
                simd.store(at, weight);
                *sum = simd.add(*sum, weight);
            }
        }
    }
    state.weights[row] += simd.sum(simd.add(sums[0], sums[1]));
    weights[..visible.start].fill(0.0);
    weights[visible.end..].fill(0.0);
}
