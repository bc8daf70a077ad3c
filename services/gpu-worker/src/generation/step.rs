//! What follows from a step of the model, and the ends of requests. Input: outcomes of the model's thread, deadlines.
//! Output: frames, shares of time, bills and verdicts on messages.

use std::time::Duration;

use engine::generate::{Progress, StepStats};
use schemas::cost::CostKind;
use schemas::error::Failure;
use schemas::reply::Frame;
use schemas::streams::MAX_WORK_DELIVERIES;
use tokio::time::Instant;

use super::prepare;
use super::stepper::{ChoiceProgress, Command, Outcome};
use super::writer::Writer;
use super::writing::{Ending, Writing};
use crate::dead;
use crate::finish::{RETRY_PAUSE, deadline_passed};
use crate::job::shares;
use crate::publish::Verdict;

/// Time between two looks for passed deadlines; clients are told by their gateway, here only work is saved.
const EXPIRE_EVERY: Duration = Duration::from_millis(50);

impl Writer {
    pub(super) async fn on_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Step { progress, stats } => self.on_step(progress, stats),
            Outcome::Refused { key, refusal } => {
                let Some(writing) = self.release(key) else {
                    return;
                };
                match prepare::failure(&refusal, &writing.task.prompt) {
                    Some(failure) => self.fail(writing, failure),
                    None => {
                        self.parts.desk.count("given_back");
                        let verdict = Verdict::GiveBack(RETRY_PAUSE);
                        self.parts.desk.settlement.jobs.push((writing.job, verdict));
                    }
                }
            }
            Outcome::Gone { key } => {
                if let Some(writing) = self.release(key) {
                    let ending = writing.ending.unwrap_or(Ending::Cancelled);
                    self.give_up_at_once(writing, ending);
                }
            }
            Outcome::Broken { reason } => {
                let running = self.held.iter().filter(|(_, writing)| writing.is_running);
                for key in running.map(|(key, _)| *key).collect::<Vec<u64>>() {
                    if let Some(writing) = self.release(key) {
                        self.compute_failed(writing, &reason).await;
                    }
                }
            }
        }
    }

    /// Shares the step's time over those who took part, by tokens, exactly; then sends what is new.
    fn on_step(&mut self, progress: Vec<ChoiceProgress>, stats: StepStats) {
        self.count_step(&stats);
        let now_ms = self.parts.context.clock.now_unix_ms();
        let busy_ns = u64::try_from(stats.busy.as_nanos()).unwrap_or(u64::MAX);
        let tokens = |progress: &Progress| u64::from(progress.step_tokens);
        let weights: Vec<u64> = progress.iter().map(|made| tokens(&made.progress)).collect();
        let mut touched = Vec::with_capacity(progress.len());
        for (made, share_ns) in progress.into_iter().zip(shares(busy_ns, &weights)) {
            let key = made.key;
            if let Some(writing) = self.held.get_mut(&key) {
                writing.on_progress(&self.text, made, share_ns, now_ms);
                if touched.last() != Some(&key) {
                    touched.push(key);
                }
            }
        }
        touched.sort_unstable();
        touched.dedup();
        for key in touched {
            self.after_step(key);
        }
    }

    fn count_step(&self, stats: &StepStats) {
        let tokens = u64::from(stats.prefill_tokens) + u64::from(stats.decode_tokens);
        let metrics = &self.parts.metrics;
        metrics.batch_items.observe(f64::from(stats.sequences));
        metrics.batch_tokens.observe(tokens as f64);
        metrics.compute_seconds.observe(stats.busy.as_secs_f64());
        metrics.busy_seconds.inc_by(stats.busy.as_secs_f64());
        metrics.tokens.inc_by(tokens);
        metrics.preempted.inc_by(u64::from(stats.preempted));
        metrics.masking_seconds.inc_by(stats.masking.as_secs_f64());
        self.parts.stats.on_batch(tokens, stats.busy);
    }

    fn after_step(&mut self, key: u64) {
        let Some(writing) = self.held.get_mut(&key) else {
            return;
        };
        if writing.ending.is_some() {
            return; // Nobody listens; it ends when the model has let go of it.
        }
        if writing.is_whole() {
            self.finish(key);
        } else if let Some(frame) = writing.text_frame() {
            self.parts.desk.outbox.push(&writing.request.reply, frame);
        }
    }

    /// All choices have ended: the request is answered, billed, and its message acknowledged.
    pub(super) fn finish(&mut self, key: u64) {
        let Some(mut writing) = self.release(key) else {
            return;
        };
        if let Some(failure) = writing.broken() {
            return self.fail(writing, failure);
        }
        self.parts.desk.count("done");
        let frame = writing.done_frame();
        let desk = &mut self.parts.desk;
        desk.outbox.push(&writing.request.reply, frame);
        desk.bill(&writing.request, CostKind::Computed, writing.spent());
        desk.settlement.jobs.push((writing.job, Verdict::Ack));
    }

    /// A request that cannot be served; what ran of it is billed as the client's own.
    pub(super) fn fail(&mut self, mut writing: Writing, failure: Failure) {
        self.parts.desk.count("failed");
        let frame = writing.frame(Frame::Failed(failure));
        let desk = &mut self.parts.desk;
        desk.outbox.push(&writing.request.reply, frame);
        if writing.has_run() {
            desk.bill(&writing.request, CostKind::Cancelled, writing.spent());
        }
        let verdict = Verdict::Term("refused".to_owned());
        desk.settlement.jobs.push((writing.job, verdict));
    }

    /// Lets go of a request that the model may have; it ends once the model has confirmed it.
    pub(super) async fn give_up(&mut self, key: u64, ending: Ending) {
        let Some(writing) = self.held.get_mut(&key) else {
            return;
        };
        if writing.ending.is_some() {
            return;
        }
        if writing.is_running {
            writing.ending = Some(ending);
            if !self.stepper.order(Command::Cancel { key }).await {
                self.is_broken = true;
            }
        } else if let Some(writing) = self.release(key) {
            self.give_up_at_once(writing, ending);
        }
    }

    /// Ends a request that nothing runs for: what ran is billed.
    pub(super) fn give_up_at_once(&mut self, mut writing: Writing, ending: Ending) {
        let (outcome, reason) = match ending {
            Ending::Cancelled => ("cancelled", "cancelled"),
            Ending::Expired => ("expired", "deadline passed"),
        };
        self.parts.desk.count(outcome);
        let desk = &mut self.parts.desk;
        if ending == Ending::Expired {
            let frame = writing.frame(Frame::Failed(deadline_passed()));
            desk.outbox.push(&writing.request.reply, frame);
        }
        if writing.has_run() {
            desk.bill(&writing.request, CostKind::Cancelled, writing.spent());
        }
        let verdict = Verdict::Term(reason.to_owned());
        desk.settlement.jobs.push((writing.job, verdict));
    }

    /// The model's steps fail: tried again by somebody, and dead after the last attempt.
    async fn compute_failed(&mut self, mut writing: Writing, reason: &str) {
        if writing.has_run() {
            self.parts.desk.bill(&writing.request, CostKind::Waste, writing.spent());
        }
        let delivered = i64::try_from(writing.job.delivered()).unwrap_or(i64::MAX);
        if delivered < MAX_WORK_DELIVERIES {
            self.parts.desk.count("given_back");
            let verdict = Verdict::GiveBack(RETRY_PAUSE * u32::try_from(delivered).unwrap_or(1));
            self.parts.desk.settlement.jobs.push((writing.job, verdict));
            return;
        }
        self.parts.desk.count("dead");
        let frame = writing.frame(Frame::Failed(dead::poisoned()));
        self.parts.desk.outbox.push(&writing.request.reply, frame);
        let (desk, bus) = (&mut self.parts.desk, &self.parts.bus);
        desk.move_to_dead(bus, writing.job, reason).await;
    }

    pub(super) async fn expire(&mut self) {
        if Instant::now() < self.expire_at {
            return;
        }
        self.expire_at = Instant::now() + EXPIRE_EVERY;
        let now_ms = self.parts.context.clock.now_unix_ms();
        let is_late = |writing: &Writing| {
            writing
                .request
                .deadline_ms
                .is_some_and(|deadline_ms| deadline_ms <= now_ms)
        };
        let late = self.held.iter().filter(|(_, writing)| is_late(writing));
        for key in late.map(|(key, _)| *key).collect::<Vec<u64>>() {
            self.give_up(key, Ending::Expired).await;
        }
    }
}
