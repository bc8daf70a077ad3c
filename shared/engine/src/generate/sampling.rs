//! Chooses the next token of a sequence; input: a row of logits and what was generated so far, output: a token and, when asked for, log probabilities.
//!
//! The order of the steps is that of vLLM (and, where it has them, of transformers):
//! 1. Tokens that are not allowed (constrained output, end tokens before `min_tokens`) get no probability.
//! 2. `logit_bias` is added.
//! 3. Penalties: `repetition_penalty` over prompt and output (a positive logit is divided by it, a negative one multiplied), then
//!    `frequency_penalty` × count and `presence_penalty`, both over the output alone.
//! 4. Temperature 0: the largest logit, the lowest id among equals. Else logits are divided by the temperature.
//! 5. `min_p`: tokens less likely than `min_p` × the likeliest are dropped.
//! 6. `top_k`: the k likeliest stay (ties: lower ids first). 0 keeps all.
//! 7. `top_p`: the smallest set whose share of what is left reaches `top_p` stays.
//! 8. One of the rest is drawn with its renormalized probability.
//!
//! Log probabilities are those of the model itself: taken from the logits as they came, before all these steps.
//!
//! The random number of a draw is a function of (seed, choice, number of tokens generated before), nothing else: a sequence gives the same tokens
//! whatever runs beside it, after its blocks were taken and computed again, and when another worker continues it.

mod draw;
mod random;

use std::collections::{HashMap, HashSet};

pub use draw::Scratch;

/// Below this a temperature is taken as 0: dividing by it would overflow (vLLM's bound).
const MIN_TEMPERATURE: f32 = 1e-5;
/// Most alternatives that can be asked for with a token (OpenAI's bound).
pub const MAX_TOP_LOGPROBS: u8 = 20;

/// How tokens are chosen; the defaults change nothing of the model's distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 takes the likeliest; higher is more random.
    pub temperature: f32,
    /// Share of probability to draw from, in (0, 1].
    pub top_p: f32,
    /// How many of the likeliest to draw from; 0 for all.
    pub top_k: u32,
    /// Least probability relative to the likeliest, in [0, 1].
    pub min_p: f32,
    /// Above 1 makes what the prompt or the output has less likely.
    pub repetition_penalty: f32,
    /// Subtracted once from the logits of tokens that the output has.
    pub presence_penalty: f32,
    /// Subtracted for each time the output has a token.
    pub frequency_penalty: f32,
    /// Equal seeds give equal outputs.
    pub seed: u64,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            logit_bias: Vec::new(),
        }
    }
}

/// A parameter is outside its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("`{name}` is {value}, it must be {expected}")]
pub struct ParameterError {
    /// The parameter.
    pub name: &'static str,
    /// Its value.
    pub value: f64,
    /// What it may be.
    pub expected: &'static str,
}

impl SamplingParams {
    /// Greedy: the likeliest token each time.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }

    /// Whether no random number is drawn.
    pub fn is_greedy(&self) -> bool {
        self.temperature < MIN_TEMPERATURE
    }

    /// Checks the ranges; `vocab` is the number of tokens.
    pub fn check(&self, vocab: usize) -> Result<(), ParameterError> {
        let finite = |value: f32| value.is_finite();
        let rules: [(&'static str, f32, bool, &'static str); 6] = [
            ("temperature", self.temperature, self.temperature >= 0.0, "0 or more"),
            (
                "top_p",
                self.top_p,
                self.top_p > 0.0 && self.top_p <= 1.0,
                "above 0, at most 1",
            ),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                self.repetition_penalty > 0.0,
                "above 0",
            ),
            (
                "presence_penalty",
                self.presence_penalty,
                self.presence_penalty.abs() <= 2.0,
                "from -2 to 2",
            ),
            (
                "frequency_penalty",
                self.frequency_penalty,
                self.frequency_penalty.abs() <= 2.0,
                "from -2 to 2",
            ),
        ];
        for (name, value, holds, expected) in rules {
            if !holds || !finite(value) {
                return Err(ParameterError {
                    name,
                    value: f64::from(value),
                    expected,
                });
            }
        }
        for &(id, bias) in &self.logit_bias {
            if id as usize >= vocab {
                return Err(ParameterError {
                    name: "logit_bias",
                    value: f64::from(id),
                    expected: "given for tokens of the vocabulary",
                });
            }
            if !finite(bias) {
                return Err(ParameterError {
                    name: "logit_bias",
                    value: f64::from(bias),
                    expected: "finite",
                });
            }
        }
        Ok(())
    }
}

/// Which tokens may be chosen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allowed<'a> {
    /// Bit `id % 32` of word `id / 32` is set for allowed ids; ids beyond its end are not allowed. `None` allows all.
    pub mask: Option<&'a [u32]>,
    /// Ids that are not allowed in any case.
    pub forbidden: &'a [u32],
}

/// A token that was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// Its log probability and the likeliest ones, when asked for.
    pub logprobs: Option<Logprobs>,
}

/// Log probabilities of one place.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Logprobs {
    /// That of the chosen token.
    pub logprob: f32,
    /// The likeliest tokens with theirs, the likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// Chooses the tokens of one sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    choice: u32,
    logprobs: Option<u8>,
    /// Tokens generated so far.
    generated: u64,
    /// How often the output has a token; kept only when a penalty needs it.
    counts: HashMap<u32, u32>,
    /// Tokens of prompt and output; kept only when `repetition_penalty` needs it.
    seen: HashSet<u32>,
}

impl Sampler {
    /// For choice `choice` of a request (choices of equal seeds differ) whose prompt is given.
    pub fn new(params: SamplingParams, choice: u32, prompt: &[u32]) -> Self {
        let repeats = params.repetition_penalty != 1.0;
        Self {
            seen: if repeats {
                prompt.iter().copied().collect()
            } else {
                HashSet::new()
            },
            params,
            choice,
            logprobs: None,
            generated: 0,
            counts: HashMap::new(),
        }
    }

    /// Asks for log probabilities with so many alternatives, [`MAX_TOP_LOGPROBS`] at most.
    #[must_use]
    pub fn with_logprobs(mut self, top: Option<u8>) -> Self {
        self.logprobs = top.map(|top| top.min(MAX_TOP_LOGPROBS));
        self
    }

    /// Notes a token of the output that was not sampled here (it was generated by another worker).
    pub fn accept(&mut self, token: u32) {
        self.generated += 1;
        if self.params.presence_penalty != 0.0 || self.params.frequency_penalty != 0.0 {
            *self.counts.entry(token).or_default() += 1;
        }
        if self.params.repetition_penalty != 1.0 {
            self.seen.insert(token);
        }
    }

    /// Chooses and notes the next token; `None` when no allowed token has a finite logit.
    pub fn sample(&mut self, logits: &[f32], allowed: Allowed<'_>, scratch: &mut Scratch) -> Option<Sampled> {
        let Scratch { adjusted, candidates } = scratch;
        let row = if self.changes_logits(&allowed) {
            adjusted.clear();
            adjusted.extend_from_slice(logits);
            self.adjust(adjusted, &allowed);
            adjusted.as_slice()
        } else {
            logits
        };
        let token = if self.params.is_greedy() {
            draw::likeliest(row)?
        } else {
            let uniform = random::uniform(self.params.seed, self.choice, self.generated);
            draw::draw(row, &self.params, uniform, candidates)?
        };
        self.accept(token);
        Some(Sampled {
            token,
            logprobs: self.logprobs.map(|top| draw::logprobs(logits, token, usize::from(top))),
        })
    }

    fn changes_logits(&self, allowed: &Allowed<'_>) -> bool {
        allowed.mask.is_some()
            || !allowed.forbidden.is_empty()
            || !self.params.logit_bias.is_empty()
            || !self.counts.is_empty()
            || !self.seen.is_empty()
    }

    /// Steps 1 to 3 of the module's list.
    fn adjust(&self, logits: &mut [f32], allowed: &Allowed<'_>) {
        if let Some(mask) = allowed.mask {
            for (index, chunk) in logits.chunks_mut(32).enumerate() {
                let bits = mask.get(index).copied().unwrap_or(0);
                if bits == u32::MAX {
                    continue;
                }
                for (bit, logit) in chunk.iter_mut().enumerate() {
                    if bits >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
        for &id in allowed.forbidden {
            change(logits, id, |_| f32::NEG_INFINITY);
        }
        for &(id, bias) in &self.params.logit_bias {
            change(logits, id, |logit| logit + bias);
        }
        let repetition = self.params.repetition_penalty;
        for &id in &self.seen {
            change(logits, id, |logit| {
                if logit > 0.0 {
                    logit / repetition
                } else {
                    logit * repetition
                }
            });
        }
        for (&id, &count) in &self.counts {
            let penalty = self.params.frequency_penalty * count as f32 + self.params.presence_penalty;
            change(logits, id, |logit| logit - penalty);
        }
    }
}

/// Log probabilities of a token by a row of logits as it came, with so many alternatives, [`MAX_TOP_LOGPROBS`] at most.
pub(super) fn logprobs_of(logits: &[f32], token: u32, top: u8) -> Logprobs {
    draw::logprobs(logits, token, usize::from(top.min(MAX_TOP_LOGPROBS)))
}

fn change(logits: &mut [f32], id: u32, how: impl FnOnce(f32) -> f32) {
    if let Some(logit) = logits.get_mut(id as usize) {
        *logit = how(*logit);
    }
}

#[cfg(test)]
mod tests;
