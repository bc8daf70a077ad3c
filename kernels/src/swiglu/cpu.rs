//! The gated product over vectors; input: checked slices, output: each piece of a row written once, pieces shared out over the team.

use std::ops::Range;

use crate::exec::CpuExec;
use crate::gemm::share;
use crate::shared_mut::SharedMut;
use crate::simd::math::silu;
use crate::simd::{Kernel, Simd};

/// Outputs of one task: about 5 µs, more than handing it to another thread costs.
const TASK_ELEMENTS: usize = 8 * 1024;
/// Outputs of a piece, so that a single long row can be shared out too; a multiple of the eight lanes.
const PIECE: usize = 2 * 1024;

pub(super) fn run(exec: &mut CpuExec, gate_up: &[f32], width: usize, out: &mut [f32]) {
    let by_row = width.div_ceil(PIECE);
    let pieces = out.len() / width * by_row;
    let tasks = out.len().div_ceil(TASK_ELEMENTS).min(pieces);
    let isa = exec.isa;
    let out = SharedMut::new(out);
    exec.team.run(tasks, &|task| {
        for piece in share(pieces, tasks, task) {
            let (row, columns) = (piece / by_row, share_of_row(width, piece % by_row));
            let (gate, up) = gate_up[row * 2 * width..(row + 1) * 2 * width].split_at(width);
            isa.run(Piece {
                gate: &gate[columns.clone()],
                up: &up[columns.clone()],
                // SAFETY: each piece belongs to one task.
                out: unsafe { out.part(row * width + columns.start..row * width + columns.end) },
            });
        }
    });
}

/// Columns of piece `index` of a row.
fn share_of_row(width: usize, index: usize) -> Range<usize> {
    index * PIECE..((index + 1) * PIECE).min(width)
}

struct Piece<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let length = self.out.len();
        assert!(self.gate.len() == length && self.up.len() == length);
        let whole = length / 8 * 8;
        for at in (0..whole).step_by(8) {
            // SAFETY: `at + 8 <= length`, the length of all three.
            unsafe {
                let gate = silu(simd, simd.load(self.gate.as_ptr().add(at)));
                let y = simd.mul(gate, simd.load(self.up.as_ptr().add(at)));
                simd.store(self.out.as_mut_ptr().add(at), y);
            }
        }
        let rest = self.out[whole..].iter_mut().zip(&self.gate[whole..]);
        for ((y, gate), up) in rest.zip(&self.up[whole..]) {
            *y = gate / (1.0 + (-gate).exp()) * up;
        }
    }
}
