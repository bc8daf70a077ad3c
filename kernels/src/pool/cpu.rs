//! Pooling over vectors; input: checked slices, output: one row per sequence, sequences shared out over the team.

use super::{PoolOptions, Pooling};
use crate::exec::CpuExec;
use crate::shared_mut::SharedMut;
use crate::simd::{Kernel, Simd};

pub(super) fn run(exec: &mut CpuExec, options: PoolOptions, x: &[f32], cu_seqlens: &[u32], out: &mut [f32]) {
    let sequences = cu_seqlens.len() - 1;
    let width = out.len() / sequences;
    let isa = exec.isa;
    let out = SharedMut::new(out);
    exec.team.run(sequences, &|sequence| {
        let tokens = cu_seqlens[sequence] as usize..cu_seqlens[sequence + 1] as usize;
        isa.run(Sequence {
            options,
            x: &x[tokens.start * width..tokens.end * width],
            // SAFETY: each task has its own row.
            out: unsafe { out.part(sequence * width..(sequence + 1) * width) },
        });
    });
}

struct Sequence<'a> {
    options: PoolOptions,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Sequence<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.out.len();
        let whole = width / 8 * 8;
        let tokens = match self.options.pooling {
            Pooling::Mean => self.x.len() / width,
            Pooling::Cls => (self.x.len() / width).min(1),
        };
        let share = if tokens == 0 { 0.0 } else { 1.0 / tokens as f32 };
        let mut squares = 0.0;
        for at in (0..whole).step_by(8) {
            let mut sum = simd.splat(0.0);
            // SAFETY: `at + 8 <= width`, and `x` has `tokens` rows of that width.
            unsafe {
                for token in 0..tokens {
                    sum = simd.add(sum, simd.load(self.x.as_ptr().add(token * width + at)));
                }
                let mean = simd.mul(sum, simd.splat(share));
                squares += simd.sum(simd.mul(mean, mean));
                simd.store(self.out.as_mut_ptr().add(at), mean);
            }
        }
        for at in whole..width {
            let sum: f32 = (0..tokens).map(|token| self.x[token * width + at]).sum();
            self.out[at] = sum * share;
            squares += self.out[at] * self.out[at];
        }
        if self.options.normalize && squares > 0.0 {
            let factor = 1.0 / squares.sqrt();
            self.out.iter_mut().for_each(|x| *x *= factor);
        }
    }
}
