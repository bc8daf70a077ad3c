//! Attention on the register tile of the products; input: checked slices, output: each (sequence, head) computed once, shared out over the team.
//!
//! Keys are packed transposed and values as they are, both in panels of 16, so that scores and weighted sums use the same tile as `gemm`.

use std::cell::RefCell;
use std::ops::Range;

use super::Heads;
use crate::exec::CpuExec;
use crate::gemm::share;
use crate::shared_mut::SharedMut;
use crate::simd::math::exp2;
use crate::simd::{Kernel, MAX_TILE_ROWS, PANEL, Simd, tile, tile_rows};

/// Tasks per thread to aim for; sequences differ in length, so more than in the products.
const TASKS_PER_THREAD: usize = 8;
/// Stands for minus infinity in padded scores: its exponential is zero, and no NaN can come of it.
const MASKED: f32 = -1e30;

thread_local! {
    /// Packed keys, packed values and scores of one head; kept, so that nothing is allocated after the longest sequence was seen.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

pub(super) fn run(exec: &mut CpuExec, heads: Heads, qkv: &[f32], cu_seqlens: &[u32], out: &mut [f32]) {
    let items = (cu_seqlens.len() - 1) * heads.count;
    let tasks = if exec.team.threads() == 1 {
        1
    } else {
        items.min(exec.team.threads() * TASKS_PER_THREAD)
    };
    let isa = exec.isa;
    let out = SharedMut::new(out);
    exec.team.run(tasks, &|task| {
        SCRATCH.with_borrow_mut(|scratch| {
            isa.run(Items {
                heads,
                qkv,
                cu_seqlens,
                out,
                items: share(items, tasks, task),
                scratch,
            });
        });
    });
}

/// A run of (sequence, head) pairs, heads fastest.
struct Items<'a> {
    heads: Heads,
    qkv: &'a [f32],
    cu_seqlens: &'a [u32],
    out: SharedMut<'a, f32>,
    items: Range<usize>,
    scratch: &'a mut Vec<f32>,
}

impl Kernel for Items<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.heads.width();
        for item in self.items {
            let (sequence, head) = (item / self.heads.count, item % self.heads.count);
            let start = self.cu_seqlens[sequence] as usize;
            let length = self.cu_seqlens[sequence + 1] as usize - start;
            if length == 0 {
                continue;
            }
            let head = Head {
                dims: self.heads.dims,
                width,
                length,
                qkv: &self.qkv[start * 3 * width..(start + length) * 3 * width],
                at: head * self.heads.dims,
            };
            let mut scratch = Scratch::cut(self.scratch, &head);
            scratch.fill(&head);
            head.attend(simd, &mut scratch, &self.out, start);
        }
    }
}

/// One head of one sequence.
struct Head<'a> {
    dims: usize,
    width: usize,
    length: usize,
    /// `[length, 3 * width]`.
    qkv: &'a [f32],
    /// Column of the head inside `width`.
    at: usize,
}

/// The parts of the scratch memory for one head.
struct Scratch<'a> {
    /// `[panels of length, dims, 16]`: keys, transposed.
    keys: &'a mut [f32],
    /// `[panels of dims, length, 16]`.
    values: &'a mut [f32],
    /// `[6, length rounded up to panels]`.
    scores: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    #[inline(always)]
    fn cut(scratch: &'a mut Vec<f32>, head: &Head<'_>) -> Self {
        let padded = head.length.next_multiple_of(PANEL);
        let keys = padded * head.dims;
        let values = head.dims.next_multiple_of(PANEL) * head.length;
        let total = keys + values + MAX_TILE_ROWS * padded;
        if scratch.len() < total {
            scratch.resize(total, 0.0);
        }
        let (keys, rest) = scratch[..total].split_at_mut(keys);
        let (values, scores) = rest.split_at_mut(values);
        Self { keys, values, scores }
    }

    /// Packs the keys transposed (zeros beyond the length) and the values in panels (zeros beyond the head's size).
    #[inline(always)]
    fn fill(&mut self, head: &Head<'_>) {
        let (dims, width, length) = (head.dims, head.width, head.length);
        for (panel, keys) in self.keys.chunks_exact_mut(dims * PANEL).enumerate() {
            let first = panel * PANEL;
            let count = PANEL.min(length - first);
            if count < PANEL {
                keys.fill(0.0);
            }
            for lane in 0..count {
                let key = &head.qkv[(first + lane) * 3 * width + width + head.at..][..dims];
                for (slot, key) in keys[lane..].iter_mut().step_by(PANEL).zip(key) {
                    *slot = *key;
                }
            }
        }
        for (panel, values) in self.values.chunks_exact_mut(length * PANEL).enumerate() {
            let first = panel * PANEL;
            let count = PANEL.min(dims - first);
            for (token, slots) in values.chunks_exact_mut(PANEL).enumerate() {
                let from = token * 3 * width + 2 * width + head.at + first;
                if count == PANEL {
                    slots.copy_from_slice(&head.qkv[from..][..PANEL]);
                } else {
                    slots.fill(0.0);
                    slots[..count].copy_from_slice(&head.qkv[from..][..count]);
                }
            }
        }
    }
}

impl Head<'_> {
    #[inline(always)]
    fn attend<S: Simd>(&self, simd: S, scratch: &mut Scratch<'_>, out: &SharedMut<'_, f32>, start: usize) {
        let mut row = 0;
        while row < self.length {
            let rows = tile_rows(self.length - row);
            // SAFETY: rows `row..row + rows` of this head belong to this task alone.
            unsafe {
                match rows {
                    1 => self.tile::<S, 1>(simd, scratch, row, (out, start)),
                    2 => self.tile::<S, 2>(simd, scratch, row, (out, start)),
                    3 => self.tile::<S, 3>(simd, scratch, row, (out, start)),
                    4 => self.tile::<S, 4>(simd, scratch, row, (out, start)),
                    5 => self.tile::<S, 5>(simd, scratch, row, (out, start)),
                    _ => self.tile::<S, MAX_TILE_ROWS>(simd, scratch, row, (out, start)),
                }
            }
            row += rows;
        }
    }

    /// `R` query rows: scores, softmax, weighted sum of the values.
    ///
    /// # Safety
    /// `row + R <= length`, and no other task writes this head of these rows.
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize>(
        &self,
        simd: S,
        scratch: &mut Scratch<'_>,
        row: usize,
        (out, start): (&SharedMut<'_, f32>, usize),
    ) {
        let padded = self.length.next_multiple_of(PANEL);
        let scores = scratch.scores.as_mut_ptr();
        // SAFETY: `fill` and `cut` sized keys, values and scores for this head; `qkv` has `length` rows of `3 * width`;
        // the caller owns this head of these rows of `out`.
        unsafe {
            let mut largest = [simd.splat(MASKED); R];
            let query = self.qkv.as_ptr().add(row * 3 * self.width + self.at);
            for panel in 0..padded / PANEL {
                let keys = scratch.keys.as_ptr().add(panel * self.dims * PANEL);
                let acc = tile::<S, f32, R>(simd, query, 3 * self.width, keys, self.dims);
                let last = panel + 1 == padded / PANEL;
                for (r, acc) in acc.into_iter().enumerate() {
                    let to = scores.add(r * padded + panel * PANEL);
                    simd.store(to, acc[0]);
                    simd.store(to.add(8), acc[1]);
                    let acc = if last {
                        let end = std::slice::from_raw_parts_mut(to, PANEL);
                        end[self.length - panel * PANEL..].fill(MASKED);
                        [simd.load(to), simd.load(to.add(8))]
                    } else {
                        acc
                    };
                    largest[r] = simd.max(largest[r], simd.max(acc[0], acc[1]));
                }
            }
            let mut inverse = [0.0; R];
            for (r, inverse) in inverse.iter_mut().enumerate() {
                let row = std::slice::from_raw_parts_mut(scores.add(r * padded), padded);
                *inverse = 1.0 / exponentials(simd, row, simd.max_lane(largest[r]), self.dims);
            }
            for panel in 0..self.dims.div_ceil(PANEL) {
                let values = scratch.values.as_ptr().add(panel * self.length * PANEL);
                let acc = tile::<S, f32, R>(simd, scores, padded, values, self.length);
                let count = PANEL.min(self.dims - panel * PANEL);
                for (r, acc) in acc.into_iter().enumerate() {
                    let factor = simd.splat(inverse[r]);
                    let acc = [simd.mul(acc[0], factor), simd.mul(acc[1], factor)];
                    let at = (start + row + r) * self.width + self.at + panel * PANEL;
                    if count == PANEL {
                        simd.store(out.pointer(at), acc[0]);
                        simd.store(out.pointer(at + 8), acc[1]);
                    } else {
                        let mut wide = [0.0_f32; PANEL];
                        simd.store(wide.as_mut_ptr(), acc[0]);
                        simd.store(wide.as_mut_ptr().add(8), acc[1]);
                        out.part(at..at + count).copy_from_slice(&wide[..count]);
                    }
                }
            }
        }
    }
}

/// Replaces scores by `e^((score - largest) / sqrt(dims))` and returns their sum; the length is a multiple of 16.
#[inline(always)]
fn exponentials<S: Simd>(simd: S, row: &mut [f32], largest: f32, dims: usize) -> f32 {
    let scale = std::f32::consts::LOG2_E / (dims as f32).sqrt();
    let (factor, shift) = (simd.splat(scale), simd.splat(-largest * scale));
    let mut sums = [simd.splat(0.0); 2];
    for sixteen in row.chunks_exact_mut(PANEL) {
        // Two at a time, so that the additions of one do not wait for the other.
        for (half, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the chunk has 16 elements.
            unsafe {
                let at = sixteen.as_mut_ptr().add(half * 8);
                let e = exp2(simd, simd.fma(simd.load(at), factor, shift));
                simd.store(at, e);
                *sum = simd.add(*sum, e);
            }
        }
    }
    simd.sum(simd.add(sums[0], sums[1]))
}
