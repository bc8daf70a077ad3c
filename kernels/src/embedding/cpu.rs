//! Gathers and normalizes rows; input: checked ids and offsets, output: one row per token, tokens shared out over the team.

use std::ops::Range;

use super::{EmbeddingTables, Sequences};
use crate::exec::CpuExec;
use crate::gemm::share;
use crate::layernorm::cpu::normalize;
use crate::shared_mut::SharedMut;
use crate::simd::{Kernel, Simd};

/// Tokens of one task, as in layer normalization.
const TASK_TOKENS: usize = 64;

pub(super) fn run(exec: &mut CpuExec, tables: &EmbeddingTables, sequences: Sequences<'_>, out: &mut [f32]) {
    let ids = sequences.ids;
    let width = tables.width();
    let tasks = ids.len().div_ceil(TASK_TOKENS);
    let isa = exec.isa;
    let out = SharedMut::new(out);
    exec.team.run(tasks, &|task| {
        let tokens = share(ids.len(), tasks, task);
        isa.run(Rows {
            tables,
            sequences,
            // SAFETY: each task has its own tokens.
            out: unsafe { out.part(tokens.start * width..tokens.end * width) },
            tokens,
        });
    });
}

struct Rows<'a> {
    tables: &'a EmbeddingTables,
    sequences: Sequences<'a>,
    tokens: Range<usize>,
    out: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.tables.width();
        let Sequences { ids, cu_seqlens, .. } = self.sequences;
        // The sequence that holds the first token: the last offset not above it.
        let mut sequence = cu_seqlens
            .partition_point(|start| *start as usize <= self.tokens.start)
            .saturating_sub(1);
        for (token, row) in self.tokens.zip(self.out.chunks_exact_mut(width)) {
            while cu_seqlens[sequence + 1] as usize <= token {
                sequence += 1;
            }
            let position = token - cu_seqlens[sequence] as usize;
            let word = &self.tables.word[ids[token] as usize * width..][..width];
            let added = self.tables.row(self.sequences.type_of(sequence, position), position);
            for ((out, word), added) in row.iter_mut().zip(word).zip(added) {
                *out = word + added;
            }
            normalize(simd, &self.tables.norm, row);
        }
    }
}
