//! The end of every request. Input: requests that are whole, refused, failed, cancelled or late. Output: their last frames,
//! the facts to be booked and the verdict on their messages, collected until the step sends them.

use std::sync::Arc;
use std::time::Duration;

use bus::{Bus, Job};
use process::Clock;
use prometheus::IntCounter;
use schemas::cost::CostKind;
use schemas::error::Failure;
use schemas::reply::{Frame, ReplyFrame};
use schemas::streams::MAX_WORK_DELIVERIES;
use schemas::wire;

use crate::admit::{self, Refusal};
use crate::compute::Computed;
use crate::dead::{self, Corpse};
use crate::job::{Held, Reporter, Request, Spent};
use crate::metrics::Metrics;
use crate::publish::{Outbox, Settlement, Verdict};
use crate::stats::Stats;

/// Wait before a failed request is tried again, per attempt so far: another worker may be luckier.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Where requests end.
pub struct Desk {
    /// Frames to send.
    pub outbox: Outbox,
    /// Messages to settle.
    pub settlement: Settlement,
    model: String,
    reporter: Reporter,
    clock: Clock,
    metrics: Metrics,
    stats: Arc<Stats>,
}

impl Desk {
    /// An empty desk.
    #[must_use]
    pub fn new(model: String, reporter: Reporter, clock: Clock, metrics: Metrics, stats: Arc<Stats>) -> Self {
        Self {
            outbox: Outbox::default(),
            settlement: Settlement::default(),
            model,
            reporter,
            clock,
            metrics,
            stats,
        }
    }

    /// Counts a request that is over.
    pub(crate) fn count(&self, outcome: &str) {
        self.metrics.requests.with_label_values(&[outcome]).inc();
        self.stats.on_finished();
    }

    /// Notes what a batch took.
    pub fn count_batch(&mut self, computed: &Computed) {
        let tokens: u64 = computed.items.iter().map(|item| item.tokens).sum();
        self.metrics.batch_items.observe(computed.items.len() as f64);
        self.metrics.batch_tokens.observe(tokens as f64);
        self.metrics.compute_seconds.observe(computed.busy.as_secs_f64());
        self.metrics.busy_seconds.inc_by(computed.busy.as_secs_f64());
        self.metrics.tokens.inc_by(tokens);
        self.stats.on_batch(tokens, computed.busy);
    }

    /// A request is whole: it is answered, billed, and its message acknowledged.
    pub fn answer(&mut self, mut held: Held) {
        self.count("done");
        let frames = held.answer();
        for frame in frames {
            self.outbox.push(&held.request.reply, frame);
        }
        self.bill(&held.request, CostKind::Computed, held.spent());
        self.settlement.jobs.push((held.job, Verdict::Ack));
    }

    /// Notes the fact to be booked about a request.
    pub fn bill(&mut self, request: &Request, kind: CostKind, spent: Spent) {
        let event = request.cost(kind, spent, &self.model, (&self.reporter, self.clock.now_unix_ms()));
        if kind == CostKind::Computed {
            self.metrics.queue_seconds.observe(event.queue_us as f64 / 1e6);
            tracing::debug!(
                request_id = %request.request_id,
                trace_id = request.trace_id,
                input_tokens = event.input_tokens,
                output_tokens = event.output_tokens,
                compute_ns = event.compute_ns,
                "request computed"
            );
        }
        self.settlement.events.push(event);
    }

    /// A message that was not admitted.
    pub async fn refuse(&mut self, bus: &Bus, (job, refusal): (Job, Refusal), malformed: &IntCounter) {
        match refusal {
            Refusal::Expired => self.expire(job),
            Refusal::Malformed(failure) => {
                malformed.inc();
                self.bury(bus, job, failure).await;
            }
            Refusal::Unauthorized(failure) => self.reject(job, failure, "unauthorized"),
            Refusal::Invalid(failure) => self.reject(job, failure, "failed"),
        }
    }

    /// The client has left: what ran is billed, the rest is not begun.
    pub fn drop_cancelled(&mut self, held: Held) {
        self.count("cancelled");
        self.bill_if_run(&held, CostKind::Cancelled);
        self.settlement
            .jobs
            .push((held.job, Verdict::Term("cancelled".to_owned())));
    }

    /// The deadline of a request in hand passed before all of it was begun.
    pub fn expire_held(&mut self, mut held: Held) {
        self.count("expired");
        let failure = deadline_passed();
        let frame = held.frame(Frame::Failed(failure));
        self.outbox.push(&held.request.reply, frame);
        self.bill_if_run(&held, CostKind::Cancelled);
        self.settlement
            .jobs
            .push((held.job, Verdict::Term("deadline passed".to_owned())));
    }

    /// The deadline passed before the message was admitted.
    pub fn expire(&mut self, job: Job) {
        self.count("expired");
        self.tell(&job, deadline_passed());
        self.settlement
            .jobs
            .push((job, Verdict::Term("deadline passed".to_owned())));
    }

    /// A message that may not be served.
    pub fn reject(&mut self, job: Job, failure: Failure, outcome: &str) {
        self.count(outcome);
        tracing::info!(subject = job.subject(), %failure, "work refused");
        self.tell(&job, failure);
        self.settlement.jobs.push((job, Verdict::Term("refused".to_owned())));
    }

    /// A message that cannot be read: kept as a dead letter.
    pub async fn bury(&mut self, bus: &Bus, job: Job, failure: Failure) {
        self.count("malformed");
        tracing::warn!(subject = job.subject(), %failure, "work cannot be read");
        let reason = failure.message.clone();
        self.tell(&job, failure);
        self.move_to_dead(bus, job, &reason).await;
    }

    /// A request whose inputs the model does not take.
    pub fn fail(&mut self, mut held: Held, failure: Failure) {
        self.count("failed");
        let frame = held.frame(Frame::Failed(failure));
        self.outbox.push(&held.request.reply, frame);
        self.settlement
            .jobs
            .push((held.job, Verdict::Term("refused".to_owned())));
    }

    /// A request for which there is no room: somebody else may have some.
    pub fn give_back(&mut self, held: Held) {
        self.count("given_back");
        self.settlement.jobs.push((held.job, Verdict::GiveBack(RETRY_PAUSE)));
    }

    /// A request that failed although it ran alone: tried again, and dead after the last attempt.
    pub async fn compute_failed(&mut self, bus: &Bus, mut held: Held, reason: &str) {
        tracing::error!(request_id = %held.request.request_id, attempt = held.attempt(), reason, "compute failed");
        self.bill_if_run(&held, CostKind::Waste);
        if i64::from(held.attempt()) < MAX_WORK_DELIVERIES {
            self.count("given_back");
            let pause = RETRY_PAUSE * held.attempt();
            self.settlement.jobs.push((held.job, Verdict::GiveBack(pause)));
            return;
        }
        self.count("dead");
        let frame = held.frame(Frame::Failed(dead::poisoned()));
        self.outbox.push(&held.request.reply, frame);
        self.move_to_dead(bus, held.job, reason).await;
    }

    /// Keeps a message as a dead letter.
    pub(crate) async fn move_to_dead(&mut self, bus: &Bus, job: Job, reason: &str) {
        match dead::bury(bus, &Corpse::of_job(&job), reason, self.clock.now_unix_ms()).await {
            Ok(()) => {
                self.metrics.dead_letters.inc();
                self.settlement
                    .jobs
                    .push((job, Verdict::Term("dead letter".to_owned())));
            }
            Err(error) => {
                tracing::warn!(%error, "dead letter not stored, the message goes back to the queue");
                self.settlement.jobs.push((job, Verdict::GiveBack(RETRY_PAUSE)));
            }
        }
    }

    fn bill_if_run(&mut self, held: &Held, kind: CostKind) {
        if held.has_run() {
            self.bill(&held.request, kind, held.spent());
        }
    }

    /// Answers a message that never became a request, if it says whom.
    fn tell(&mut self, job: &Job, failure: Failure) {
        let Some(reply) = admit::reply_to(job) else {
            return;
        };
        let Ok(work) = wire::decode_as::<RequestOnly>(reply.format, &job.payload) else {
            tracing::debug!(
                subject = job.subject(),
                "sender cannot be answered, its request id cannot be read"
            );
            return;
        };
        let attempt = u32::try_from(job.delivered()).unwrap_or(u32::MAX);
        let frame = ReplyFrame {
            request_id: work.request_id,
            attempt,
            sequence: 0,
            frame: Frame::Failed(failure),
        };
        self.outbox.push(&reply, frame);
    }
}

/// As much of a work message as an answer needs; the rest may be malformed.
#[derive(serde::Deserialize)]
struct RequestOnly {
    request_id: schemas::ids::RequestId,
}

pub(crate) fn deadline_passed() -> Failure {
    Failure::new(
        schemas::error::ErrorCode::DeadlineExceeded,
        "the deadline passed before the work was begun",
    )
}
