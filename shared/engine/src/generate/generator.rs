//! Generates: owns a backend, a scheduler and what each sequence needs; input: [`Generation`]s, output: [`Progress`] of each sequence, step by step.
//!
//! One thread calls [`Generator::step`] again and again while there is work; between steps sequences are added and cancelled.
//! What a sequence gives is a function of its own request alone: not of what runs beside it, of the size of the cache, or of steps that failed.

mod active;
mod answer;
mod generation;
mod report;
#[cfg(test)]
pub mod toy;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::backend::{GenerateBackend, GenerateInfo, LogitRows, StepBatch, StepSpan};
use super::sampling::Scratch;
use super::scheduler::{Limits, NewSequence, Phase, PlanEntry, Refusal, Scheduler, SeqId, StepPlan};
use crate::error::ComputeError;
use active::Active;

pub use answer::FinishReason;
pub use generation::Generation;
pub use report::{Occupancy, Progress, Step, StepStats};

/// Sizes that are not the model's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GeneratorOptions {
    /// Most sequences running at once.
    pub max_sequences: usize,
    /// Most tokens of a step: bounds how long a step takes, and so the gaps in the streams of others while a long prompt is computed.
    pub max_step_tokens: usize,
    /// Most sequences waiting for a place; more are refused.
    pub max_waiting: usize,
}

impl Default for GeneratorOptions {
    fn default() -> Self {
        Self {
            // Decodes of a CPU gain little from more rows, and each stream gets slower.
            max_sequences: 96,
            // Beside 64 decodes about a hundred tokens of a prompt: longer steps mean longer gaps in running streams.
            max_step_tokens: 160,
            // Choices of one request (128 at most) wait together.
            max_waiting: 256,
        }
    }
}

/// The generator of one loaded model.
#[derive(Debug)]
pub struct Generator {
    backend: Box<dyn GenerateBackend>,
    scheduler: Scheduler,
    active: HashMap<SeqId, Active>,
    /// Answers that were complete when they were added.
    complete: Vec<Progress>,
    scratch: Scratch,
}

impl Generator {
    /// A generator without sequences.
    pub fn new(backend: Box<dyn GenerateBackend>, options: GeneratorOptions) -> Self {
        let info = backend.info();
        let scheduler = Scheduler::new(Limits {
            max_sequences: options.max_sequences,
            max_step_tokens: options.max_step_tokens,
            block_tokens: info.block_tokens,
            blocks: info.blocks,
            max_context: info.max_tokens,
            max_waiting: options.max_waiting,
        });
        Self {
            backend,
            scheduler,
            active: HashMap::new(),
            complete: Vec::new(),
            scratch: Scratch::default(),
        }
    }

    /// What is known of the model.
    pub fn info(&self) -> &GenerateInfo {
        self.backend.info()
    }

    /// Whether a step would do nothing.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle() && self.complete.is_empty()
    }

    /// How full it is: what decides whether more work is fetched.
    pub fn occupancy(&self) -> Occupancy {
        let (running, waiting) = (self.scheduler.running(), self.scheduler.waiting());
        let places = self.scheduler.limits().max_sequences.saturating_sub(running);
        Occupancy {
            running,
            waiting,
            places: if waiting == 0 { places } else { 0 },
            free_blocks: self.scheduler.pool().free(),
            blocks: self.scheduler.pool().blocks(),
        }
    }

    /// Takes an answer to be generated; it starts with one of the next steps.
    pub fn add(&mut self, mut generation: Generation) -> Result<SeqId, Refusal> {
        let info = self.backend.info();
        generation.check(info.vocab_size)?;
        self.scheduler.check(generation.prompt.len())?;
        let room = self.scheduler.limits().max_context - generation.prompt.len();
        let mut active = Active::new(&mut generation, info, u32::try_from(room).unwrap_or(u32::MAX));
        for &token in &generation.resumed {
            let finish = active.resume(token)?;
            if finish.is_some() {
                let id = self.scheduler.next_id();
                let mut progress = active.progress(id, 0);
                progress.finish = finish;
                self.complete.push(progress);
                return Ok(id);
            }
        }
        let mut salt = generation.salt;
        if generation.prompt_logprobs.is_some() {
            // Tokens that are found in the cache have no logits, so nobody else's are used.
            salt.extend_from_slice(&self.scheduler.next_id().0.to_le_bytes());
        }
        let mut tokens = generation.prompt;
        tokens.extend(generation.resumed);
        let id = self.scheduler.add(NewSequence {
            tokens,
            priority: generation.priority,
            salt,
        })?;
        self.active.insert(id, active);
        Ok(id)
    }

    /// Ends a sequence that nobody wants any more; its place and blocks are free for the next step. False when it is unknown or finished.
    pub fn cancel(&mut self, id: SeqId) -> bool {
        let complete = self.complete.len();
        self.complete.retain(|progress| progress.id != id);
        self.active.remove(&id);
        self.scheduler.remove(id) || self.complete.len() < complete
    }

    /// Runs one step; without sequences it does nothing.
    ///
    /// After an error all sequences are as they were before, and the next step tries again what this one should have done; the caller decides
    /// how often that makes sense.
    pub fn step(&mut self) -> Result<Step, ComputeError> {
        let started = Instant::now();
        let plan = self.scheduler.plan();
        let mut stats = facts(&plan);
        let (entries, batch) = self.batch(plan);
        let mut progress = Vec::with_capacity(entries.len() + self.complete.len());
        if !entries.is_empty() {
            let logits = self.backend.step(&batch).and_then(|logits| {
                let expected: usize = batch.spans.iter().map(StepSpan::rows).sum();
                let given = logits.len();
                if given == expected {
                    Ok(logits)
                } else {
                    Err(ComputeError::LogitRows { given, expected })
                }
            });
            match logits {
                Ok(logits) => {
                    let rows: Vec<&[f32]> = logits.rows().collect();
                    stats.masking = self.advance(&entries, &batch, &rows, &mut progress);
                }
                Err(error) => {
                    self.scheduler.on_failure();
                    return Err(error);
                }
            }
        }
        progress.append(&mut self.complete);
        stats.busy = started.elapsed();
        Ok(Step { progress, stats })
    }

    /// What the backend is given for a plan, and what is kept of it.
    fn batch(&self, plan: StepPlan) -> (Vec<Entry>, StepBatch) {
        let split = |entry: PlanEntry| {
            let kept = Entry {
                id: entry.id,
                samples: entry.samples,
            };
            let active = self.active.get(&entry.id);
            let span = StepSpan {
                logits: active.map_or(LogitRows::None, |active| {
                    active.rows(entry.first_position, entry.tokens.len(), entry.samples)
                }),
                tokens: entry.tokens,
                first_position: entry.first_position,
                blocks: entry.blocks,
            };
            (kept, span)
        };
        let (entries, spans) = plan.entries.into_iter().map(split).unzip();
        (entries, StepBatch { spans })
    }

    /// Samples for the entries that reach their end, and reports the step to the scheduler. Gives the time that constraints took.
    fn advance(
        &mut self,
        entries: &[Entry],
        batch: &StepBatch,
        mut rows: &[&[f32]],
        progress: &mut Vec<Progress>,
    ) -> Duration {
        let mut sampled = Vec::with_capacity(entries.len());
        let mut finished = Vec::new();
        let mut masking = Duration::ZERO;
        for (entry, span) in entries.iter().zip(&batch.spans) {
            let (own, others) = rows.split_at(span.rows());
            rows = others;
            let Some(active) = self.active.get_mut(&entry.id) else {
                continue;
            };
            active.score(span, own);
            let mut made = active.progress(entry.id, span.tokens.len() as u32);
            let cached = self.scheduler.cached_tokens(entry.id).unwrap_or(0);
            made.cached_tokens =
                u32::try_from(cached).map_or(made.prompt_tokens, |cached| cached.min(made.prompt_tokens));
            if let Some(row) = own.last().filter(|_| entry.samples) {
                masking += active.choose(row, &mut self.scratch, &mut made);
                match (made.finish, made.tokens.first()) {
                    (None, Some(&token)) => sampled.push((entry.id, token)),
                    _ => finished.push(entry.id),
                }
            }
            progress.push(made);
        }
        self.scheduler.on_step(&sampled);
        for id in finished {
            self.scheduler.remove(id);
            self.active.remove(&id);
        }
        masking
    }
}

/// What is kept of a plan entry while the step runs.
struct Entry {
    id: SeqId,
    samples: bool,
}

fn facts(plan: &StepPlan) -> StepStats {
    let tokens = |phase| {
        let of_phase = plan.entries.iter().filter(|entry| entry.phase == phase);
        of_phase.map(|entry| entry.tokens.len() as u32).sum()
    };
    StepStats {
        prefill_tokens: tokens(Phase::Prefill),
        decode_tokens: tokens(Phase::Decode),
        sequences: plan.entries.len() as u32,
        preempted: plan.preempted.len() as u32,
        masking: Duration::ZERO,
        busy: Duration::ZERO,
    }
}

#[cfg(test)]
mod tests;
