//! One sequence between its steps; input: rows of logits, output: the next token and what follows from it.

use std::time::{Duration, Instant};

use super::answer::{Answer, Ending, FinishReason, Taken};
use super::generation::Generation;
use super::report::Progress;
use crate::generate::backend::{GenerateInfo, LogitRows, StepSpan};
use crate::generate::constraint::{Constraint, ConstraintError};
use crate::generate::sampling::{self, Allowed, Logprobs, Sampler, Scratch};
use crate::generate::scheduler::SeqId;

/// What a running sequence needs besides its blocks.
#[derive(Debug)]
pub(super) struct Active {
    sampler: Sampler,
    answer: Answer,
    constraint: Option<Constraint>,
    scores: Option<PromptScores>,
    /// Tokens that must not be chosen before `min_tokens`.
    ends: Vec<u32>,
    prompt_tokens: u32,
}

/// How likely the prompt's own tokens are, as far as they were computed.
#[derive(Debug)]
struct PromptScores {
    prompt: Vec<u32>,
    top: u8,
    /// Of the prompt's tokens from the second on.
    found: Vec<Logprobs>,
}

impl Active {
    /// Takes over what an answer needs; its tokens, priority and salt are the scheduler's. `room` is what the context leaves for the answer.
    pub(super) fn new(generation: &mut Generation, info: &GenerateInfo, room: u32) -> Self {
        let mut ends = generation.stop_tokens.clone();
        // A complete text of a grammar is over, whatever the model's end tokens mean otherwise.
        if !generation.ignore_eos || generation.constraint.is_some() {
            ends.extend_from_slice(&info.eos);
        }
        let ending = Ending {
            stop: &generation.stop,
            tokens: ends.clone(),
            min_tokens: generation.min_tokens,
            max_tokens: generation.max_tokens.map_or(room, |max| max.min(room)),
        };
        let scores = generation.prompt_logprobs.map(|top| PromptScores {
            prompt: generation.prompt.clone(),
            top,
            found: Vec::new(),
        });
        Self {
            sampler: Sampler::new(generation.sampling.clone(), generation.choice, &generation.prompt)
                .with_logprobs(generation.logprobs),
            answer: Answer::new(generation.detokenizer.clone(), ending, generation.calls.take()),
            constraint: generation.constraint.take(),
            scores,
            ends,
            prompt_tokens: u32::try_from(generation.prompt.len()).unwrap_or(u32::MAX),
        }
    }

    /// Goes through a token that was given out before, for what it leaves behind: counts, held-back text, perhaps the end.
    pub(super) fn resume(&mut self, token: u32) -> Result<Option<FinishReason>, ConstraintError> {
        self.sampler.accept(token);
        Ok(self.take(token)?.finish)
    }

    fn take(&mut self, token: u32) -> Result<Taken, ConstraintError> {
        let is_complete = match &mut self.constraint {
            None => false,
            Some(constraint) => {
                constraint.accept(token)?;
                constraint.is_complete()
            }
        };
        Ok(self.answer.take(token, is_complete))
    }

    /// What a step did that brought no token.
    pub(super) fn progress(&self, id: SeqId, step_tokens: u32) -> Progress {
        Progress {
            id,
            text: String::new(),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            prompt_logprobs: Vec::new(),
            calls: Vec::new(),
            finish: None,
            prompt_tokens: self.prompt_tokens,
            cached_tokens: 0,
            output_tokens: self.answer.tokens(),
            step_tokens,
        }
    }

    /// The rows that are needed of these positions.
    pub(super) fn rows(&self, first_position: u32, tokens: usize, samples: bool) -> LogitRows {
        let end = first_position as usize + tokens;
        let is_scored = self.scores.as_ref().is_some_and(|scores| {
            let next = scores.found.len();
            next + 1 < scores.prompt.len() && end > next
        });
        match samples {
            _ if is_scored => LogitRows::All,
            true => LogitRows::Last,
            false => LogitRows::None,
        }
    }

    /// Notes how likely the tokens behind these positions were; those that are known stay as they are.
    pub(super) fn score(&mut self, span: &StepSpan, rows: &[&[f32]]) {
        let Some(scores) = &mut self.scores else {
            return;
        };
        if span.logits != LogitRows::All {
            return;
        }
        for (position, row) in (span.first_position as usize..).zip(rows) {
            // Row `p` says what follows position `p`.
            if let Some(&token) = scores.prompt.get(position + 1)
                && position == scores.found.len()
            {
                scores.found.push(sampling::logprobs_of(row, token, scores.top));
            }
        }
    }

    /// Chooses the next token and notes what follows from it; gives the time that the constraint took.
    pub(super) fn choose(&mut self, row: &[f32], scratch: &mut Scratch, progress: &mut Progress) -> Duration {
        let started = Instant::now();
        let mask = match self.constraint.as_mut().map(Constraint::mask).transpose() {
            Ok(mask) => mask,
            Err(error) => return self.fail(&error, started, progress),
        };
        let masked = mask.as_ref().map_or(Duration::ZERO, |_| started.elapsed());
        let is_early = !self.answer.may_end();
        let allowed = Allowed {
            mask: mask.as_ref().map(|mask| mask.as_slice()),
            forbidden: if is_early { self.ends.as_slice() } else { &[] },
        };
        let mut sampled = self.sampler.sample(row, allowed, scratch);
        if sampled.is_none() && is_early && mask.is_some() {
            // Where the grammar leaves nothing but an end, the answer is as long as it can be.
            let forbidden = &[];
            sampled = self.sampler.sample(row, Allowed { forbidden, ..allowed }, scratch);
        }
        let Some(sampled) = sampled else {
            progress.finish = Some(FinishReason::NoToken);
            progress.text = self.answer.give_up();
            return masked;
        };
        let taken = match self.take(sampled.token) {
            Ok(taken) => taken,
            Err(error) => return self.fail(&error, started, progress),
        };
        progress.text = taken.text;
        progress.calls = taken.calls;
        progress.finish = taken.finish;
        progress.tokens.push(sampled.token);
        progress.logprobs.extend(sampled.logprobs);
        progress.output_tokens = self.answer.tokens();
        if let Some(scores) = self.scores.take() {
            progress.prompt_logprobs = scores.found;
        }
        masked
    }

    fn fail(&mut self, error: &ConstraintError, started: Instant, progress: &mut Progress) -> Duration {
        tracing::warn!(%error, "an answer ends early");
        progress.finish = Some(FinishReason::ConstraintFailed);
        progress.text = self.answer.give_up();
        started.elapsed()
    }
}
