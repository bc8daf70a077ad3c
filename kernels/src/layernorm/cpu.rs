//! Layer normalization over vectors; input: checked rows, output: the rows normalized in place, shared out over the team.

use super::LayerNorm;
use crate::exec::CpuExec;
use crate::gemm::share;
use crate::shared_mut::SharedMut;
use crate::simd::{Kernel, Simd};

/// Rows of one task: about 10 µs at a width of 384, several times the cost of handing it over.
const TASK_ROWS: usize = 64;

pub(super) fn run(exec: &mut CpuExec, norm: &LayerNorm, residual: Option<&[f32]>, x: &mut [f32]) {
    let width = norm.width();
    let rows = x.len() / width;
    let tasks = rows.div_ceil(TASK_ROWS);
    let isa = exec.isa;
    let x = SharedMut::new(x);
    exec.team.run(tasks, &|task| {
        let rows = share(rows, tasks, task);
        let range = rows.start * width..rows.end * width;
        isa.run(Rows {
            norm,
            residual: residual.map(|residual| &residual[range.clone()]),
            // SAFETY: each task has its own rows.
            x: unsafe { x.part(range) },
        });
    });
}

struct Rows<'a> {
    norm: &'a LayerNorm,
    residual: Option<&'a [f32]>,
    x: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.norm.width();
        for (index, row) in self.x.chunks_exact_mut(width).enumerate() {
            if let Some(residual) = self.residual {
                for (x, residual) in row.iter_mut().zip(&residual[index * width..]) {
                    *x += residual;
                }
            }
            normalize(simd, self.norm, row);
        }
    }
}

/// Normalizes one row of the norm's width.
#[inline(always)]
pub(crate) fn normalize<S: Simd>(simd: S, norm: &LayerNorm, row: &mut [f32]) {
    let width = norm.width();
    assert_eq!(row.len(), width);
    let whole = width / 8 * 8;
    // SAFETY, for each load and store below: `at + 8 <= whole <= width`, the length of row, weight and bias.
    let mut sum = simd.splat(0.0);
    for at in (0..whole).step_by(8) {
        // SAFETY: see above.
        sum = simd.add(sum, unsafe { simd.load(row.as_ptr().add(at)) });
    }
    let mean = (simd.sum(sum) + row[whole..].iter().sum::<f32>()) / width as f32;
    let by_lane = simd.splat(mean);
    let mut squares = simd.splat(0.0);
    for at in (0..whole).step_by(8) {
        // SAFETY: see above.
        let centered = simd.sub(unsafe { simd.load(row.as_ptr().add(at)) }, by_lane);
        squares = simd.fma(centered, centered, squares);
    }
    let rest: f32 = row[whole..].iter().map(|x| (x - mean) * (x - mean)).sum();
    let variance = (simd.sum(squares) + rest) / width as f32;
    let factor = 1.0 / (variance + norm.epsilon).sqrt();
    let by_factor = simd.splat(factor);
    for at in (0..whole).step_by(8) {
        // SAFETY: see above.
        unsafe {
            let centered = simd.sub(simd.load(row.as_ptr().add(at)), by_lane);
            let weight = simd.load(norm.weight.as_ptr().add(at));
            let bias = simd.load(norm.bias.as_ptr().add(at));
            let y = simd.fma(simd.mul(centered, by_factor), weight, bias);
            simd.store(row.as_mut_ptr().add(at), y);
        }
    }
    let rest = row[whole..].iter_mut().zip(&norm.weight[whole..]);
    for ((x, weight), bias) in rest.zip(&norm.bias[whole..]) {
        *x = (*x - mean) * factor * weight + bias;
    }
}
