//! Rotary position embedding over vectors; input: checked rows, output: heads rotated in place, rows shared out over the team.

use super::RopeTable;
use crate::exec::CpuExec;
use crate::gemm::share;
use crate::head_columns::HeadColumns;
use crate::shared_mut::SharedMut;
use crate::simd::{Kernel, Simd};

/// Elements of one task: about 5 µs, more than handing it to another thread costs.
const TASK_ELEMENTS: usize = 16 * 1024;

pub(super) fn run(exec: &mut CpuExec, table: &RopeTable, positions: &[u32], columns: HeadColumns, rows: &mut [f32]) {
    let tokens = positions.len();
    let tasks = (tokens * columns.heads * table.dims())
        .div_ceil(TASK_ELEMENTS)
        .min(tokens);
    let isa = exec.isa;
    let rows = SharedMut::new(rows);
    exec.team.run(tasks, &|task| {
        let tokens = share(tokens, tasks, task);
        isa.run(Rows {
            table,
            positions: &positions[tokens.clone()],
            columns,
            // SAFETY: each task has its own rows.
            rows: unsafe { rows.part(tokens.start * columns.stride..tokens.end * columns.stride) },
        });
    });
}

struct Rows<'a> {
    table: &'a RopeTable,
    positions: &'a [u32],
    columns: HeadColumns,
    rows: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let rows = self.rows.chunks_exact_mut(self.columns.stride);
        for (row, &position) in rows.zip(self.positions) {
            let (cos, sin) = self.table.turn(position);
            for head in self.columns.split(row, self.table.dims()) {
                let (low, high) = head.split_at_mut(self.table.half);
                rotate(simd, (cos, sin), low, high);
            }
        }
    }
}

/// Rotates the pairs of one head; all four slices have the same length.
#[inline(always)]
fn rotate<S: Simd>(simd: S, (cos, sin): (&[f32], &[f32]), low: &mut [f32], high: &mut [f32]) {
    let half = low.len();
    assert!(high.len() == half && cos.len() == half && sin.len() == half);
    let whole = half / 8 * 8;
    for at in (0..whole).step_by(8) {
        // SAFETY: `at + 8 <= half`, the length of all four.
        unsafe {
            let (c, s) = (simd.load(cos.as_ptr().add(at)), simd.load(sin.as_ptr().add(at)));
            let (x, y) = (simd.load(low.as_ptr().add(at)), simd.load(high.as_ptr().add(at)));
            simd.store(low.as_mut_ptr().add(at), simd.sub(simd.mul(x, c), simd.mul(y, s)));
            simd.store(high.as_mut_ptr().add(at), simd.fma(y, c, simd.mul(x, s)));
        }
    }
    for at in whole..half {
        let (x, y) = (low[at], high[at]);
        low[at] = x * cos[at] - y * sin[at];
        high[at] = y * cos[at] + x * sin[at];
    }
}
