//! Picks one of the tokens of a row of adjusted logits; input: logits, parameters and a random number, output: a token id.

use std::cmp::Ordering;

use super::{Logprobs, SamplingParams};

/// Tokens whose scaled logit is this far below the largest are never drawn: e^-36 × 200,000 tokens is below the spacing of f32 at 1.
const NEGLIGIBLE: f32 = 36.0;
/// How many candidates are sorted first when only the likeliest matter; a nucleus is rarely larger.
const FIRST_SORTED: usize = 64;

/// Room for one row, reused from draw to draw.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(super) adjusted: Vec<f32>,
    pub(super) candidates: Vec<Candidate>,
}

/// A token that may be drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    /// Its logit, later its weight: probability × a common factor.
    value: f32,
    id: u32,
}

/// The larger value first, the lower id among equals.
fn order(a: &Candidate, b: &Candidate) -> Ordering {
    b.value.total_cmp(&a.value).then(a.id.cmp(&b.id))
}

/// The id of the largest logit, the lowest among equals; `None` when none is finite (NaN never is).
pub(super) fn likeliest(logits: &[f32]) -> Option<u32> {
    let max = largest(logits)?;
    let at = logits.iter().position(|logit| *logit == max)?;
    u32::try_from(at).ok()
}

/// The largest finite logit.
fn largest(logits: &[f32]) -> Option<f32> {
    // `max` passes over NaN; infinity has no place in a row, so such a row counts as broken.
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    max.is_finite().then_some(max)
}

/// Steps 4 to 8 of the module's list, for a temperature above 0; `uniform` is in [0, 1).
pub(super) fn draw(
    logits: &[f32],
    params: &SamplingParams,
    uniform: f64,
    candidates: &mut Vec<Candidate>,
) -> Option<u32> {
    let max = largest(logits)?;
    // A bound on scaled logits is a bound on logits: no exponential is computed for what falls out.
    let depth = if params.min_p > 0.0 {
        NEGLIGIBLE.min(-params.min_p.ln())
    } else {
        NEGLIGIBLE
    };
    let floor = max - depth * params.temperature;
    candidates.clear();
    for (id, &value) in (0_u32..).zip(logits) {
        if value >= floor {
            candidates.push(Candidate { value, id });
        }
    }
    let top_k = params.top_k as usize;
    if top_k > 0 && top_k < candidates.len() {
        candidates.select_nth_unstable_by(top_k - 1, order);
        candidates.truncate(top_k);
        candidates.sort_unstable_by(order);
    }
    let scale = 1.0 / params.temperature;
    for candidate in candidates.iter_mut() {
        candidate.value = ((candidate.value - max) * scale).exp();
    }
    if params.top_p < 1.0 {
        keep_nucleus(candidates, f64::from(params.top_p));
    }
    let total = weight(candidates);
    let target = uniform * total;
    let mut sum = 0.0;
    let reached = candidates.iter().find(|candidate| {
        sum += f64::from(candidate.value);
        sum > target
    });
    // Rounding may leave the sum at the target: then it is the last one.
    reached.or(candidates.last()).map(|candidate| candidate.id)
}

fn weight(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| f64::from(candidate.value)).sum()
}

/// Drops all but the smallest set of the likeliest whose weight reaches `share` of the whole.
fn keep_nucleus(candidates: &mut Vec<Candidate>, share: f64) {
    let wanted = share * weight(candidates);
    let mut sorted = FIRST_SORTED;
    loop {
        let part = sorted.min(candidates.len());
        if part < candidates.len() {
            candidates.select_nth_unstable_by(part, order);
        }
        candidates[..part].sort_unstable_by(order);
        let mut sum = 0.0;
        let last = candidates[..part].iter().position(|candidate| {
            sum += f64::from(candidate.value);
            sum >= wanted
        });
        if let Some(last) = last {
            candidates.truncate(last + 1);
            return;
        }
        if part == candidates.len() {
            // Rounding left the sum below the share: all are needed.
            return;
        }
        sorted *= 8;
    }
}

/// Log probabilities by the logits as they came: of one token, and of the `top` likeliest.
pub(super) fn logprobs(logits: &[f32], token: u32, top: usize) -> Logprobs {
    let Some(max) = largest(logits) else {
        return Logprobs::default();
    };
    let sum: f64 = logits
        .iter()
        .filter(|logit| !logit.is_nan())
        .map(|logit| f64::from((logit - max).exp()))
        .sum();
    // In f64, so that the likeliest token's is exact when it is near 0.
    let normalizer = f64::from(max) + sum.ln();
    let logprob = |logit: f32| (f64::from(logit) - normalizer) as f32;
    let mut best: Vec<Candidate> = Vec::with_capacity(top + 1);
    for (id, &value) in (0_u32..).zip(logits) {
        let is_full = best.len() == top;
        if value.is_nan() || is_full && best.last().is_none_or(|last| last.value >= value) {
            continue;
        }
        let at = best.partition_point(|other| other.value >= value);
        best.insert(at, Candidate { value, id });
        best.truncate(top);
    }
    let chosen = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    Logprobs {
        logprob: logprob(chosen),
        top: best.iter().map(|best| (best.id, logprob(best.value))).collect(),
    }
}
