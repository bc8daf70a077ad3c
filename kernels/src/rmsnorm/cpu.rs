//! Root mean square normalization over vectors; input: checked rows, output: the rows normalized, shared out over the team.

use super::RmsNorm;
use crate::exec::CpuExec;
use crate::gemm::share;
use crate::head_columns::HeadColumns;
use crate::shared_mut::SharedMut;
use crate::simd::{Kernel, Simd};

/// Elements of one task: about 5 µs, more than handing it to another thread costs; a decode step of few rows stays on one.
const TASK_ELEMENTS: usize = 16 * 1024;
/// Vectors whose squares are summed side by side, so that one addition does not wait for the one before it.
const CHAINS: usize = 4;

pub(super) fn run(exec: &mut CpuExec, norm: &RmsNorm, input: &[f32], out: &mut [f32]) {
    let width = norm.width();
    let rows = input.len() / width;
    let tasks = input.len().div_ceil(TASK_ELEMENTS).min(rows);
    let isa = exec.isa;
    let out = SharedMut::new(out);
    exec.team.run(tasks, &|task| {
        let rows = share(rows, tasks, task);
        let range = rows.start * width..rows.end * width;
        isa.run(Rows {
            norm,
            input: &input[range.clone()],
            // SAFETY: each task has its own rows.
            out: unsafe { out.part(range) },
        });
    });
}

pub(super) fn run_heads(exec: &mut CpuExec, norm: &RmsNorm, columns: HeadColumns, rows: &mut [f32]) {
    let tokens = rows.len() / columns.stride;
    let tasks = (tokens * columns.heads * norm.width())
        .div_ceil(TASK_ELEMENTS)
        .min(tokens);
    let isa = exec.isa;
    let rows = SharedMut::new(rows);
    exec.team.run(tasks, &|task| {
        let tokens = share(tokens, tasks, task);
        isa.run(Heads {
            norm,
            columns,
            // SAFETY: each task has its own rows.
            rows: unsafe { rows.part(tokens.start * columns.stride..tokens.end * columns.stride) },
        });
    });
}

struct Rows<'a> {
    norm: &'a RmsNorm,
    input: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.norm.width();
        let rows = self.input.chunks_exact(width).zip(self.out.chunks_exact_mut(width));
        for (from, to) in rows {
            // SAFETY: both rows have the norm's width.
            unsafe { normalize(simd, self.norm, from.as_ptr(), to.as_mut_ptr()) };
        }
    }
}

struct Heads<'a> {
    norm: &'a RmsNorm,
    columns: HeadColumns,
    rows: &'a mut [f32],
}

impl Kernel for Heads<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for row in self.rows.chunks_exact_mut(self.columns.stride) {
            for head in self.columns.split(row, self.norm.width()) {
                let at = head.as_mut_ptr();
                // SAFETY: the head has the norm's width; it is read and written through one pointer.
                unsafe { normalize(simd, self.norm, at, at) };
            }
        }
    }
}

/// Normalizes one row.
///
/// # Safety
/// `from` must be valid for reading and `to` for writing the norm's width; they may be the same.
#[inline(always)]
unsafe fn normalize<S: Simd>(simd: S, norm: &RmsNorm, from: *const f32, to: *mut f32) {
    let width = norm.width();
    let whole = width / 8 * 8;
    let blocks = width / (8 * CHAINS) * (8 * CHAINS);
    let mut squares = [simd.splat(0.0); CHAINS];
    for at in (0..blocks).step_by(8 * CHAINS) {
        for (chain, squares) in squares.iter_mut().enumerate() {
            // SAFETY: `at + 32 <= blocks <= width`.
            let x = unsafe { simd.load(from.add(at + chain * 8)) };
            *squares = simd.fma(x, x, *squares);
        }
    }
    for at in (blocks..whole).step_by(8) {
        // SAFETY: `at + 8 <= whole <= width`.
        let x = unsafe { simd.load(from.add(at)) };
        squares[0] = simd.fma(x, x, squares[0]);
    }
    let squares = simd.add(simd.add(squares[0], squares[1]), simd.add(squares[2], squares[3]));
    let mut total = simd.sum(squares);
    for at in whole..width {
        // SAFETY: `at < width`.
        let x = unsafe { *from.add(at) };
        total += x * x;
    }
    let factor = 1.0 / (total / width as f32 + norm.epsilon).sqrt();
    let by_factor = simd.splat(factor);
    for at in (0..whole).step_by(8) {
        // SAFETY: `at + 8 <= whole <= width`, the length of both rows and of the weight.
        unsafe {
            let weight = simd.load(norm.weight.as_ptr().add(at));
            let y = simd.mul(simd.mul(simd.load(from.add(at)), by_factor), weight);
            simd.store(to.add(at), y);
        }
    }
    for at in whole..width {
        // SAFETY: `at < width`, the length of both rows.
        unsafe { *to.add(at) = *from.add(at) * factor * norm.weight[at] };
    }
}
