//! The int8 product over register tiles of 6 x 16; input: f32 rows, output: every tile written once, blocks shared out over the team.
//!
//! AVX2 has no exact 8-bit multiply-add (`vpmaddubsw` saturates at 16 bits), so both sides are multiplied as i16 by `vpmaddwd`.
//! Zen 3, inner loop alone, 192 products: 7.4 cycles so, 6.0 with `vpmaddubsw`; the difference buys exact sums and 12-bit activations.

use std::ops::Range;

use super::{DEPTH_STEP, PIECE_DEPTH, PackedWeightsI8, QuantizedRows};
use crate::exec::CpuExec;
use crate::gemm::{Epilogue, Grid, Writer};
use crate::shared_mut::SharedMut;
use crate::simd::{Kernel, MAX_TILE_ROWS, PANEL, Simd, tile_rows};

/// How far ahead of the products weights are asked for; the processor's own prefetch stops at each page of 4 KiB.
const AHEAD_BYTES: usize = 4 * 1024;

pub(super) fn run(exec: &mut CpuExec, a: &[f32], weights: &PackedWeightsI8, epilogue: Epilogue<'_>, out: &mut [f32]) {
    let isa = exec.isa;
    exec.quantized.fill((&mut exec.team, isa), a, weights.depth);
    let grid = Grid::new(
        out.len() / weights.columns,
        weights.columns.div_ceil(PANEL),
        exec.team.threads(),
    );
    let product = Product {
        rows: &exec.quantized,
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
    rows: &'a QuantizedRows,
    weights: &'a PackedWeightsI8,
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
        let QuantizedRows { values, stride, scales } = self.product.rows;
        let weights = self.product.weights;
        let mut sums = [[simd.splat(0.0); 2]; R];
        // SAFETY: lengths were checked on entry: each quantized row has `stride` values, each panel `stride * 16`;
        // the grid keeps `row + R` and `panel` inside and gives each tile to one task only; scales are padded to whole panels.
        unsafe {
            let a = values.as_ptr().add(row * stride);
            let b = weights.panels.as_ptr().add(panel * stride * PANEL);
            for piece in (0..*stride).step_by(PIECE_DEPTH) {
                let mut acc = [[simd.zero_i32(); 2]; R];
                // Unrolled: the loop is bound by the number of instructions, and this saves most address arithmetic.
                for step in (piece..(*stride).min(piece + PIECE_DEPTH)).step_by(DEPTH_STEP) {
                    for line in (0..DEPTH_STEP * PANEL).step_by(64) {
                        simd.prefetch(b.wrapping_add(step * PANEL + line + AHEAD_BYTES).cast());
                    }
                    for k in (step..step + DEPTH_STEP).step_by(2) {
                        let low = simd.load_i8(b.add(k * PANEL));
                        let high = simd.load_i8(b.add((k + 1) * PANEL));
                        for (r, acc) in acc.iter_mut().enumerate() {
                            let x = simd.splat_pair(a.add(r * stride + k));
                            acc[0] = simd.madd(acc[0], x, low);
                            acc[1] = simd.madd(acc[1], x, high);
                        }
                    }
                }
                for (sums, acc) in sums.iter_mut().zip(acc) {
                    for half in 0..2 {
                        sums[half] = simd.add(sums[half], simd.to_f32(acc[half]));
                    }
                }
            }
            let by_column = weights.scales.as_ptr().add(panel * PANEL);
            let by_column = [simd.load(by_column), simd.load(by_column.add(8))];
            for (r, sums) in sums.iter_mut().enumerate() {
                let by_row = simd.splat(scales[row + r]);
                for half in 0..2 {
                    sums[half] = simd.mul(sums[half], simd.mul(by_row, by_column[half]));
                }
            }
            self.product.writer.write(simd, sums, row, panel);
        }
    }
}
