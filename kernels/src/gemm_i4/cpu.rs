//! The int4 product over register tiles of 6 x 16; input: f32 rows, output: every tile written once, blocks shared out over the team.
//!
//! `vpmaddubsw` takes 32 products of an unsigned half byte and an i8: it cannot saturate here, since two products are at most 3,810.

use std::ops::Range;

use super::quantize::QuantizedGroups;
use super::{CHUNK, MIDDLE, PackedWeightsI4};
use crate::exec::CpuExec;
use crate::gemm::{Epilogue, Grid, Writer};
use crate::shared_mut::SharedMut;
use crate::simd::{Kernel, MAX_TILE_ROWS, PANEL, Simd, tile_rows};

/// How far ahead of the products weights are asked for; the processor's own prefetch stops at each page of 4 KiB.
const AHEAD_BYTES: usize = 4 * 1024;
/// Bytes of a panel for a depth of 4, which one load takes.
const STEP_BYTES: usize = 4 * PANEL / 2;
const CACHE_LINE_BYTES: usize = 64;
const _: () = assert!(CHUNK as i32 / 4 * 2 * 15 * super::ACTIVATION_LIMIT as i32 <= i16::MAX as i32);

pub(super) fn run(exec: &mut CpuExec, a: &[f32], weights: &PackedWeightsI4, epilogue: Epilogue<'_>, out: &mut [f32]) {
    let isa = exec.isa;
    exec.quantized_groups.fill((&mut exec.team, isa), a, weights);
    let grid = Grid::new(
        out.len() / weights.columns,
        weights.columns.div_ceil(PANEL),
        exec.team.threads(),
    );
    let product = Product {
        rows: &exec.quantized_groups,
        weights,
        writer: Writer {
            columns: weights.columns,
            bias: &weights.bias,
            epilogue,
            out: SharedMut::new(out),
        },
    };
    exec.team.run(grid.tasks(), &|index| {
        let (rows, panels) = grid.task(index);
        isa.run(Block {
            product: &product,
            rows,
            panels,
        });
    });
}

struct Product<'a> {
    rows: &'a QuantizedGroups,
    weights: &'a PackedWeightsI4,
    writer: Writer<'a>,
}

struct Block<'a> {
    product: &'a Product<'a>,
    rows: Range<usize>,
    panels: Range<usize>,
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for panel in self.panels.clone() {
            let mut row = self.rows.start;
            while row < self.rows.end {
                let rows = tile_rows(self.rows.end - row);
                match rows {
                    1 => self.tile::<S, 1>(simd, row, panel),
                    2 => self.tile::<S, 2>(simd, row, panel),
                    3 => self.tile::<S, 3>(simd, row, panel),
                    4 => self.tile::<S, 4>(simd, row, panel),
                    5 => self.tile::<S, 5>(simd, row, panel),
                    _ => self.tile::<S, MAX_TILE_ROWS>(simd, row, panel),
                }
                row += rows;
            }
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    fn tile<S: Simd, const R: usize>(&self, simd: S, row: usize, panel: usize) {
        let Product { rows, weights, writer } = self.product;
        let (stride, groups) = (weights.stride(), weights.groups());
        let mut sums = [[simd.splat(0.0); 2]; R];
        // SAFETY: lengths were checked on entry: each quantized row has `stride` values and `groups` scales, each panel
        // `stride * 8` bytes and `groups * 16` scales and zeros; the grid keeps `row + R` and `panel` inside and gives each tile to one task only.
        unsafe {
            let a = rows.values.as_ptr().add(row * stride);
            let b = weights.panels.as_ptr().add(panel * stride * PANEL / 2);
            for group in 0..groups {
                let first = group * weights.group;
                let ks = first..stride.min(first + weights.group);
                let acc = dots::<S, R>(simd, (a, stride), b, ks);
                let at = (panel * groups + group) * PANEL;
                let scales = weights.scales.as_ptr().add(at);
                let scales = [simd.load_f16(scales), simd.load_f16(scales.add(8))];
                let zeros = match &weights.zeros {
                    Some(zeros) => [
                        simd.load_u8(zeros.as_ptr().add(at)),
                        simd.load_u8(zeros.as_ptr().add(at + 8)),
                    ],
                    None => [simd.splat(f32::from(MIDDLE)); 2],
                };
                for (r, (sums, acc)) in sums.iter_mut().zip(acc).enumerate() {
                    let [scale, sum] = *rows.scales.get_unchecked((row + r) * groups + group);
                    let (scale, less) = (simd.splat(scale), simd.splat(-sum));
                    for half in 0..2 {
                        // Whole numbers below 2^24: exact.
                        let dot = simd.fma(zeros[half], less, simd.to_f32(acc[half]));
                        sums[half] = simd.fma(dot, simd.mul(scale, scales[half]), sums[half]);
                    }
                }
            }
            writer.write(simd, sums, row, panel);
        }
    }
}

/// Sums of one group: `R` rows of `a` (leading dimension `lda`) times 16 columns, not yet scaled.
///
/// # Safety
/// `ks` is a whole number of chunks; `a` must be valid for reading up to its end at each of `R` rows, `b` for 8 bytes for each depth up to its end.
#[inline(always)]
unsafe fn dots<S: Simd, const R: usize>(
    simd: S,
    (a, lda): (*const i8, usize),
    b: *const u8,
    ks: Range<usize>,
) -> [[S::I32; 2]; R] {
    let mut acc = [[simd.zero_i32(); 2]; R];
    // SAFETY: as promised by the caller; the pair of ones is a local.
    unsafe {
        let ones = simd.splat_pair([1_i16, 1].as_ptr());
        for chunk in ks.step_by(CHUNK) {
            let bytes = chunk / 4 * STEP_BYTES;
            for line in (0..CHUNK / 4 * STEP_BYTES).step_by(CACHE_LINE_BYTES) {
                simd.prefetch(b.wrapping_add(bytes + line + AHEAD_BYTES));
            }
            let mut short = [[simd.zero_i16(); 2]; R];
            for step in 0..CHUNK / 4 {
                let (low, high) = simd.load_nibbles(b.add(bytes + step * STEP_BYTES));
                for (r, short) in short.iter_mut().enumerate() {
                    let x = simd.splat_quad(a.add(r * lda + chunk + step * 4));
                    short[0] = simd.madd_bytes(short[0], low, x);
                    short[1] = simd.madd_bytes(short[1], high, x);
                }
            }
            for (acc, short) in acc.iter_mut().zip(short) {
                for half in 0..2 {
                    acc[half] = simd.madd(acc[half], short[half], ones);
                }
            }
        }
    }
    acc
}
