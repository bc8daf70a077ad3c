//! Drives a decoder's backend by hand; input: sequences and how many tokens each runs, output: logits and greedy answers.
//!
//! Blocks are given out in no order, so that a backend which ignores the block table fails.

use std::num::NonZeroUsize;
use std::path::Path;

use engine::Precision;
use engine::generate::{CpuGenerateBackend, GenerateBackend, GenerateOptions, LogitRows, StepBatch, StepSpan};

pub(crate) fn load(directory: &Path, precision: Precision, threads: usize) -> CpuGenerateBackend {
    let options = GenerateOptions {
        precision,
        threads: NonZeroUsize::new(threads).unwrap(),
        ..GenerateOptions::default()
    };
    CpuGenerateBackend::load(directory, options).unwrap()
}

/// A sequence with its place in the cache.
#[derive(Clone)]
pub(crate) struct Sequence {
    pub(crate) tokens: Vec<u32>,
    done: usize,
    blocks: Vec<u32>,
}

/// Sequences number `0..count` of `prompts`, each with room for its context, in blocks spread over the cache.
pub(crate) fn sequences(prompts: &[&[u32]], context: usize) -> Vec<Sequence> {
    let each = context.div_ceil(16);
    let all = each * prompts.len();
    // A step that shares no factor with the number of blocks visits each once.
    let step = (all / 2 + 1..).find(|step| gcd(*step, all) == 1).unwrap();
    let place = |index: usize| (index * step % all) as u32;
    let sequence = |(index, tokens): (usize, &&[u32])| Sequence {
        tokens: tokens.to_vec(),
        done: 0,
        blocks: (index * each..(index + 1) * each).map(place).collect(),
    };
    prompts.iter().enumerate().map(sequence).collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Sequence {
    pub(crate) fn remaining(&self) -> usize {
        self.tokens.len() - self.done
    }

    /// Its next `count` tokens, or as many as there are.
    pub(crate) fn span(&mut self, count: usize, logits: LogitRows) -> StepSpan {
        let count = count.min(self.remaining());
        let span = StepSpan {
            tokens: self.tokens[self.done..self.done + count].to_vec(),
            first_position: self.done as u32,
            blocks: self.blocks.clone(),
            logits,
        };
        self.done += count;
        span
    }
}

/// All logits of each sequence when it runs `counts` tokens at a time (the last count again and again), all sequences in the same steps.
pub(crate) fn logits(
    backend: &mut dyn GenerateBackend,
    sequences: &mut [Sequence],
    counts: &[&[usize]],
) -> Vec<Vec<f32>> {
    let mut all = vec![Vec::new(); sequences.len()];
    let mut step = 0;
    while sequences.iter().any(|sequence| sequence.remaining() > 0) {
        let mut batch = StepBatch::default();
        let mut owners = Vec::new();
        for (index, sequence) in sequences.iter_mut().enumerate() {
            let count = *counts[index].get(step).or(counts[index].last()).unwrap();
            if sequence.remaining() > 0 && count > 0 {
                let span = sequence.span(count, LogitRows::All);
                owners.extend(std::iter::repeat_n(index, span.tokens.len()));
                batch.spans.push(span);
            }
        }
        step += 1;
        if batch.spans.is_empty() {
            continue;
        }
        let logits = backend.step(&batch).unwrap();
        assert_eq!(logits.len(), owners.len());
        for (owner, row) in owners.into_iter().zip(logits.rows()) {
            all[owner].extend_from_slice(row);
        }
    }
    all
}

/// Appends greedy tokens to each sequence until `end` says so; prompts run whole in the first step.
pub(crate) fn greedy(
    backend: &mut dyn GenerateBackend,
    sequences: &mut [Sequence],
    end: impl Fn(&[u32], usize) -> bool,
) -> Vec<Vec<u32>> {
    let mut answers = vec![Vec::new(); sequences.len()];
    let mut running: Vec<usize> = (0..sequences.len()).collect();
    while !running.is_empty() {
        let span = |index: &usize| sequences[*index].span(usize::MAX, LogitRows::Last);
        let batch = StepBatch {
            spans: running.iter().map(span).collect(),
        };
        let logits = backend.step(&batch).unwrap();
        for (index, row) in running.iter().zip(logits.rows()) {
            let token = best(row);
            answers[*index].push(token);
            sequences[*index].tokens.push(token);
        }
        running.retain(|index| !end(&answers[*index], *index));
    }
    answers
}

/// The token with the largest logit, the first of equals.
pub(crate) fn best(logits: &[f32]) -> u32 {
    let first_best = |best: usize, next: usize| if logits[next] > logits[best] { next } else { best };
    (0..logits.len()).reduce(first_best).unwrap() as u32
}
