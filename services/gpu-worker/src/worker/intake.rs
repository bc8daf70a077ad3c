//! The way into the worker's hands. Input: the queue's messages and cancellations. Output: requests in hand with their inputs
//! as tokens; what cannot be taken is refused, what nobody wants any more is dropped.

use bus::{Job, Message, PullEvent, Puller};
use engine::TokenIds;
use schemas::error::{ErrorCode, Failure};
use schemas::fleet::Operation;
use schemas::reply::{Accepted, Frame};
use tokio::time::Instant;

use super::{Tokenized, Worker};
use crate::admit::{self, Refusal};
use crate::encoder::EncoderTask;
use crate::job::{Held, Request};
use crate::parts::Parts;

/// Messages admitted together; the rest follows after the next step.
const ADMIT_AT_ONCE: usize = 256;

/// A request's key in hand, and what tokenization needs of it.
type Untokenized = (u64, EncoderTask);

impl Worker {
    /// Asks for as much as can start soon.
    pub(super) async fn refill(&mut self, puller: &mut Puller) {
        if self.hands.waiting_tokens() >= self.parts.config.queue.max_waiting_tokens || Instant::now() < self.pull_after
        {
            return;
        }
        if let Some(pull_after) = self.parts.pull(puller, self.hands.lane_load()).await {
            self.pull_after = pull_after;
        }
    }

    pub(super) async fn on_pulled(&mut self, event: PullEvent, puller: &mut Puller, draining: bool) {
        let mut jobs = Vec::new();
        let mut next = Some(event);
        while let Some(event) = next {
            match event {
                // Given back at the end: now it would come straight back to one of our own open pulls.
                PullEvent::Job(job) if draining => self.returned.push(job),
                PullEvent::Job(job) => jobs.push(job),
                PullEvent::Ended { consumer, reason, .. } => {
                    self.pull_after = Parts::pause_after(&consumer, &reason).unwrap_or(self.pull_after);
                }
            }
            next = if jobs.len() < ADMIT_AT_ONCE {
                puller.try_next()
            } else {
                None
            };
        }
        self.admit(jobs).await;
    }

    async fn admit(&mut self, jobs: Vec<Job>) {
        let now_ms = self.parts.context.clock.now_unix_ms();
        let mut admitted = Vec::with_capacity(jobs.len());
        for job in jobs {
            if job.delivered() > 1 {
                self.parts.metrics.redelivered.inc();
            }
            match admit::admit(&job, &self.parts.config.model.name, &self.parts.verifier, now_ms).await {
                Ok((request, _)) if self.parts.cancelled.contains_key(&request.request_id) => {
                    self.parts.desk.drop_cancelled(self.held(job, request));
                }
                Ok((request, task)) => match self.device.model().accept(task, &self.parts.config.model.name) {
                    Ok(task) => admitted.push(self.take(job, request, task)),
                    Err(refusal) => self.refuse(job, refusal).await,
                },
                Err(refusal) => self.refuse(job, refusal).await,
            }
        }
        if admitted.is_empty() {
            return;
        }
        if self.device.is_instant() {
            let results = admitted.into_iter().map(|request| self.tokenize_now(request)).collect();
            self.on_tokenized(results).await;
        } else {
            // Told before it is computed: when this worker dies, the gateway gives the work back at once.
            self.parts.desk.outbox.send(&self.parts.bus).await;
            self.tokenize_beside(admitted);
        }
    }

    /// Takes a request into hand; gives what tokenization needs of it.
    fn take(&mut self, job: Job, request: Request, task: EncoderTask) -> Untokenized {
        let mut held = self.held(job, request);
        if !self.device.is_instant() {
            let accepted = Accepted {
                worker: self.parts.context.instance.clone(),
                ack_subject: held.job.ack_subject().to_owned(),
            };
            let frame = held.frame(Frame::Accepted(accepted));
            self.parts.desk.outbox.push(&held.request.reply, frame);
        }
        (self.hands.take(held), task)
    }

    fn held(&self, job: Job, request: Request) -> Held {
        Held::new(job, request, self.device.model().operation() == Operation::Rank)
    }

    fn tokenize_now(&self, (key, task): Untokenized) -> (u64, Result<Vec<TokenIds>, Failure>) {
        (key, self.device.model().tokenize(&task))
    }

    fn tokenize_beside(&self, requests: Vec<Untokenized>) {
        let model = self.device.model().clone();
        let keys: Vec<u64> = requests.iter().map(|(key, _)| *key).collect();
        let task = tokio::task::spawn_blocking(move || {
            let one = |(key, task): Untokenized| (key, model.tokenize(&task));
            requests.into_iter().map(one).collect()
        });
        self.tokenizing.push(Box::pin(async move {
            task.await.unwrap_or_else(|error| {
                tracing::error!(%error, "the tokenizer panicked");
                let failure = || Failure::new(ErrorCode::Internal, "the input could not be tokenized");
                keys.into_iter().map(|key| (key, Err(failure()))).collect()
            })
        }));
    }

    async fn refuse(&mut self, job: Job, refusal: Refusal) {
        let malformed = self.parts.metrics.malformed.with_label_values(&["work"]);
        self.parts
            .desk
            .refuse(&self.parts.bus, (job, refusal), &malformed)
            .await;
    }

    pub(super) async fn on_tokenized(&mut self, results: Tokenized) {
        let now_us = self.parts.context.clock.monotonic_us();
        for (key, result) in results {
            match result {
                Ok(tokens) => {
                    if !self.hands.on_tokens(key, tokens, now_us)
                        && let Some(held) = self.hands.remove(key)
                    {
                        self.parts.desk.give_back(held);
                    }
                }
                Err(failure) => {
                    if let Some(held) = self.hands.remove(key) {
                        self.parts.desk.fail(held, failure);
                    }
                }
            }
        }
    }

    pub(super) async fn on_cancel(&mut self, message: &Message) {
        for request_id in self.parts.given_up(message) {
            if let Some(held) = self.hands.cancel(&request_id, self.running.is_some()) {
                self.parts.desk.drop_cancelled(held);
            }
        }
    }
}
