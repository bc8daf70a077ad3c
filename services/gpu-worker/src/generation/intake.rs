//! The way into the writer's hands. Input: the queue's messages and cancellations. Output: requests in hand, their prompts
//! being made; what cannot be taken is refused, what nobody wants any more is given up.

use bus::{Job, Message, PullEvent, Puller};
use schemas::error::{ErrorCode, Failure};
use schemas::generate::GenerateTask;
use schemas::reply::{Accepted, Frame};
use std::sync::Arc;
use tokio::time::Instant;

use super::prepare::{self, Origin};
use super::stepper::Command;
use super::writer::{Prepared, Writer};
use super::writing::{Ending, Writing};
use crate::admit;
use crate::credits::{self, LaneLoad};
use crate::job::Request;
use crate::parts::Parts;

impl Writer {
    /// Asks for as much as can start soon: what waits here could run on another worker.
    pub(super) async fn refill(&mut self, puller: &mut Puller) {
        if Instant::now() < self.pull_after {
            return;
        }
        if let Some(pull_after) = self
            .parts
            .pull(puller, self.lanes.map(|held| LaneLoad { held, outstanding: 0 }))
            .await
        {
            self.pull_after = pull_after;
        }
    }

    pub(super) async fn on_pulled(&mut self, event: PullEvent, draining: bool) {
        match event {
            // Given back at the end: now it would come straight back to one of our own open pulls.
            PullEvent::Job(job) if draining => self.returned.push(job),
            PullEvent::Job(job) => self.admit(job).await,
            PullEvent::Ended { consumer, reason, .. } => {
                self.pull_after = Parts::pause_after(&consumer, &reason).unwrap_or(self.pull_after);
            }
        }
    }

    async fn admit(&mut self, job: Job) {
        if job.delivered() > 1 {
            self.parts.metrics.redelivered.inc();
        }
        let model = &self.parts.config.model.name;
        let now_ms = self.parts.context.clock.now_unix_ms();
        let admitted = admit::admit(&job, model, &self.parts.verifier, now_ms).await;
        let admitted = admitted.and_then(|(request, task)| Ok((request, admit::generation(task, model)?)));
        match admitted {
            Ok((request, task)) if self.parts.cancelled.contains_key(&request.request_id) => {
                self.give_up_at_once(Writing::new(job, request, task), Ending::Cancelled);
            }
            Ok((request, task)) => self.take(job, request, task),
            Err(refusal) => {
                let malformed = self.parts.metrics.malformed.with_label_values(&["work"]);
                let (desk, bus) = (&mut self.parts.desk, &self.parts.bus);
                desk.refuse(bus, (job, refusal), &malformed).await;
            }
        }
    }

    /// Takes a request into hand, and tells its gateway so before it is computed: when this worker dies, the gateway gives
    /// the work back at once.
    fn take(&mut self, job: Job, request: Request, task: GenerateTask) {
        let origin = Origin {
            tenant: request.claims.tnt.clone(),
            priority: u8::try_from(credits::position(request.lane)).unwrap_or(u8::MAX),
            seed: task.seed(&request.request_id),
            now_unix_s: self.parts.context.clock.now_unix_ms() / 1_000,
        };
        let mut writing = Writing::new(job, request, task);
        let accepted = Accepted {
            worker: self.parts.context.instance.clone(),
            ack_subject: writing.job.ack_subject().to_owned(),
        };
        let frame = writing.frame(Frame::Accepted(accepted));
        self.parts.desk.outbox.push(&writing.request.reply, frame);
        let task = Arc::clone(&writing.task);
        let key = self.hold(writing);
        let model = Arc::clone(&self.text);
        let preparing = tokio::task::spawn_blocking(move || prepare::generations(&model, &task, &origin));
        self.preparing.push(Box::pin(async move {
            let result = preparing.await.unwrap_or_else(|error| {
                tracing::error!(%error, "making a prompt panicked");
                Err(Failure::new(ErrorCode::Internal, "the prompt could not be made"))
            });
            (key, result)
        }));
    }

    pub(super) async fn on_prepared(&mut self, (key, result): Prepared) {
        let Some(writing) = self.held.get_mut(&key) else {
            return; // Given up meanwhile.
        };
        match result {
            Ok(made) => {
                let generations = writing.on_made(made);
                if generations.is_empty() {
                    self.finish(key);
                    return;
                }
                writing.is_running = true;
                if !self.stepper.order(Command::Add { key, generations }).await {
                    self.is_broken = true;
                }
            }
            Err(failure) => {
                if let Some(writing) = self.release(key) {
                    self.fail(writing, failure);
                }
            }
        }
    }

    pub(super) async fn on_cancel(&mut self, message: &Message) {
        for request_id in self.parts.given_up(message) {
            if let Some(key) = self.by_request.get(&request_id).copied() {
                self.give_up(key, Ending::Cancelled).await;
            }
        }
    }
}
