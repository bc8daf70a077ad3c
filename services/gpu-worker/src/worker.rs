//! The loop of the worker: pull, admit, batch, compute, answer, bill, settle. Input: events of queue, device and callers.
//! Output: answers. One task owns everything in hand; what takes time runs beside it and comes back as an event.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bus::{Bus, ConsumerRef, EndReason, Job, PullEvent, Puller, Subscription};
use engine::TokenIds;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use moka::sync::Cache;
use process::Context;
use schemas::error::Failure;
use schemas::ids::RequestId;
use schemas::reply::{Accepted, Frame};
use schemas::streams::WORK_ACK_WAIT_MS;
use schemas::wire;
use schemas::work::Cancel;
use tokio::time::{Instant, MissedTickBehavior};

use crate::admit::{self, Refusal};
use crate::compute::{Computed, Device, Running};
use crate::config::Config;
use crate::credits;
use crate::finish::Desk;
use crate::hands::{Batch, Hands, LANES};
use crate::identity::Verifier;
use crate::job::{Held, Request};
use crate::metrics::Metrics;
use crate::publish;
use crate::stats::Stats;

/// Signs of life for work in hand: four within the queue's ack wait.
const PROGRESS_EVERY: Duration = Duration::from_millis(WORK_ACK_WAIT_MS / 4);
/// Pause before pulling again from a queue that is not there: it is being made anew after a restart of the broker.
const NO_QUEUE_PAUSE: Duration = Duration::from_millis(100);
/// Time between two looks for passed deadlines; clients are told by their gateway, here only work is saved.
const EXPIRE_EVERY: Duration = Duration::from_millis(50);
/// Longest time a finished request waits to be billed with others; answers do not wait for it.
const SETTLE_TOGETHER: Duration = Duration::from_millis(5);
/// Finished requests that are billed at once without waiting for more.
const SETTLE_AT_ONCE: usize = 256;
/// Messages admitted together; the rest follows after the next step.
const ADMIT_AT_ONCE: usize = 256;

type Settling = Pin<Box<dyn Future<Output = ()> + Send>>;
type Tokenizing = Pin<Box<dyn Future<Output = Vec<(u64, Result<Vec<TokenIds>, Failure>)>> + Send>>;

/// The worker at work.
pub struct Worker {
    parts: Parts,
    /// The batch that is being computed, with its token ids in case it must be done again.
    running: Option<Running>,
    running_tokens: Option<Vec<TokenIds>>,
    tokenizing: FuturesUnordered<Tokenizing>,
    settling: FuturesUnordered<Settling>,
    /// Work that came during the drain.
    returned: Vec<Job>,
    pull_after: Instant,
    /// When to look for passed deadlines again.
    expire_at: Instant,
    /// When what is finished is billed at the latest.
    settle_at: Option<Instant>,
}

/// What the loop is woken by.
enum Event {
    Computed(Computed),
    Tokenized(Vec<(u64, Result<Vec<TokenIds>, Failure>)>),
    Pulled(PullEvent),
    Cancel(bus::Message),
    Settled,
    Progress,
    Due,
    Drain,
    Closed,
}

/// The parts a worker is made of.
pub struct Parts {
    pub(crate) bus: Bus,
    pub(crate) context: Context,
    pub(crate) config: Config,
    pub(crate) device: Device,
    pub(crate) verifier: Arc<Verifier>,
    pub(crate) metrics: Metrics,
    pub(crate) stats: Arc<Stats>,
    pub(crate) desk: Desk,
    pub(crate) hands: Hands,
    pub(crate) consumers: [ConsumerRef; 3],
    pub(crate) cancelled: Cache<RequestId, ()>,
}

impl Worker {
    /// A worker with empty hands.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            running: None,
            running_tokens: None,
            tokenizing: FuturesUnordered::new(),
            settling: FuturesUnordered::new(),
            returned: Vec::new(),
            pull_after: Instant::now(),
            expire_at: Instant::now(),
            settle_at: None,
        }
    }

    /// Works until the drain is over.
    pub async fn run(mut self, mut puller: Puller, mut cancels: Cancels) {
        let mut progress = tokio::time::interval(PROGRESS_EVERY);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut draining = false;
        let mut due = None;
        loop {
            if !draining {
                self.refill(&mut puller).await;
            } else if self.is_empty() && puller.outstanding_total() == 0 {
                return self.give_all_back().await;
            }
            let event = self
                .next_event(&mut puller, &mut cancels, (&mut progress, due, draining))
                .await;
            match event {
                Event::Pulled(event) => self.on_pulled(event, &mut puller, draining).await,
                Event::Computed(computed) => self.on_computed(computed).await,
                Event::Tokenized(results) => self.on_tokenized(results).await,
                Event::Cancel(message) => self.on_cancel(&message).await,
                Event::Progress => self.sign_of_life().await,
                Event::Settled | Event::Due => {}
                Event::Drain => {
                    draining = true;
                    tracing::info!(in_hand = self.parts.hands.count(), "worker is draining");
                }
                Event::Closed => return,
            }
            due = self.step().await;
        }
    }

    async fn give_all_back(&mut self) {
        for job in self.returned.drain(..) {
            if let Err(error) = job.nak(None).await {
                tracing::debug!(%error, "work not given back, the queue's own wait will do it");
            }
        }
    }

    fn is_empty(&self) -> bool {
        let settled = self.settling.is_empty() && self.parts.desk.settlement.is_empty();
        self.parts.hands.count() == 0 && settled && self.tokenizing.is_empty()
    }

    async fn next_event(
        &mut self,
        puller: &mut Puller,
        cancels: &mut Cancels,
        (progress, due, draining): (&mut tokio::time::Interval, Option<Instant>, bool),
    ) -> Event {
        let running = &mut self.running;
        let paused = (self.pull_after > Instant::now()).then_some(self.pull_after);
        tokio::select! {
            biased;
            () = self.parts.context.shutdown.forced() => Event::Closed,
            computed = async { match running { Some(running) => running.await, None => std::future::pending().await } } => {
                Event::Computed(computed)
            }
            Some(results) = self.tokenizing.next(), if !self.tokenizing.is_empty() => Event::Tokenized(results),
            event = puller.next() => event.map_or(Event::Closed, Event::Pulled),
            Some(message) = cancels.next() => Event::Cancel(message),
            Some(()) = self.settling.next(), if !self.settling.is_empty() => Event::Settled,
            () = self.parts.context.shutdown.stopping(), if !draining => Event::Drain,
            _ = progress.tick() => Event::Progress,
            () = until(due) => Event::Due,
            () = until(paused) => Event::Due,
        }
    }

    /// Asks for as much as can start soon.
    async fn refill(&mut self, puller: &mut Puller) {
        if self.parts.hands.waiting_tokens() >= self.parts.config.queue.max_waiting_tokens
            || Instant::now() < self.pull_after
        {
            return;
        }
        let mut load = self.parts.hands.lane_load();
        for (lane, consumer) in load.iter_mut().zip(&self.parts.consumers) {
            lane.outstanding = u32::try_from(puller.outstanding(consumer)).unwrap_or(u32::MAX);
        }
        let queue = &self.parts.config.queue;
        let expires = Duration::from_millis(queue.pull_expires_ms);
        let heartbeat = Duration::from_millis(queue.pull_heartbeat_ms);
        for (consumer, pull) in self.parts.consumers.iter().zip(credits::next_pulls(queue.slots, load)) {
            if pull == 0 {
                continue;
            }
            if let Err(error) = puller.request(consumer, pull, expires, heartbeat).await {
                tracing::debug!(%error, "nothing pulled now");
                self.pull_after = Instant::now() + NO_QUEUE_PAUSE;
                return;
            }
        }
    }

    async fn on_pulled(&mut self, event: PullEvent, puller: &mut Puller, draining: bool) {
        let mut jobs = Vec::new();
        let mut next = Some(event);
        while let Some(event) = next {
            match event {
                // Given back at the end: now it would come straight back to one of our own open pulls.
                PullEvent::Job(job) if draining => self.returned.push(job),
                PullEvent::Job(job) => jobs.push(job),
                PullEvent::Ended {
                    reason: EndReason::Expired | EndReason::Disconnected,
                    ..
                } => {}
                PullEvent::Ended { consumer, reason, .. } => {
                    tracing::debug!(?reason, consumer = %consumer.consumer, "pull ended");
                    self.pull_after = Instant::now() + NO_QUEUE_PAUSE;
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
                Ok(request) if self.parts.cancelled.contains_key(&request.request_id) => {
                    self.parts.desk.drop_cancelled(Held::new(job, request));
                }
                Ok(request) => admitted.push(self.take(job, request)),
                Err(refusal) => self.refuse(job, refusal).await,
            }
        }
        if admitted.is_empty() {
            return;
        }
        if self.parts.device.is_instant() {
            let results = admitted.into_iter().map(|request| self.tokenize_now(request)).collect();
            self.on_tokenized(results).await;
        } else {
            // Told before it is computed: when this worker dies, the gateway gives the work back at once.
            self.parts.desk.outbox.send(&self.parts.bus).await;
            self.tokenize_beside(admitted);
        }
    }

    /// Takes a request into hand; gives what tokenization needs of it.
    fn take(&mut self, job: Job, request: Request) -> (u64, Vec<schemas::work::EmbedInput>, schemas::work::Truncate) {
        let mut held = Held::new(job, request);
        let inputs = std::mem::take(&mut held.request.inputs);
        let truncate = held.request.truncate;
        if !self.parts.device.is_instant() {
            let accepted = Accepted {
                worker: self.parts.context.instance.clone(),
                ack_subject: held.job.ack_subject().to_owned(),
            };
            let frame = held.frame(Frame::Accepted(accepted));
            self.parts.desk.outbox.push(&held.request.reply, frame);
        }
        (self.parts.hands.take(held), inputs, truncate)
    }

    fn tokenize_now(
        &self,
        (key, inputs, truncate): (u64, Vec<schemas::work::EmbedInput>, schemas::work::Truncate),
    ) -> (u64, Result<Vec<TokenIds>, Failure>) {
        (key, admit::tokenize(self.parts.device.model(), &inputs, truncate))
    }

    fn tokenize_beside(&self, requests: Vec<(u64, Vec<schemas::work::EmbedInput>, schemas::work::Truncate)>) {
        let model = self.parts.device.model().clone();
        let keys: Vec<u64> = requests.iter().map(|(key, ..)| *key).collect();
        let task = tokio::task::spawn_blocking(move || {
            let one = |(key, inputs, truncate): (u64, Vec<_>, _)| (key, admit::tokenize(&model, &inputs, truncate));
            requests.into_iter().map(one).collect()
        });
        self.tokenizing.push(Box::pin(async move {
            task.await.unwrap_or_else(|error| {
                tracing::error!(%error, "the tokenizer panicked");
                let failure = || Failure::new(schemas::error::ErrorCode::Internal, "the input could not be tokenized");
                keys.into_iter().map(|key| (key, Err(failure()))).collect()
            })
        }));
    }

    async fn refuse(&mut self, job: Job, refusal: Refusal) {
        match refusal {
            Refusal::Expired => self.parts.desk.expire(job),
            Refusal::Malformed(failure) => {
                self.parts.metrics.malformed.with_label_values(&["work"]).inc();
                self.parts.desk.bury(&self.parts.bus, job, failure).await;
            }
            Refusal::Unauthorized(failure) => self.parts.desk.reject(job, failure, "unauthorized"),
            Refusal::Invalid(failure) => self.parts.desk.reject(job, failure, "failed"),
        }
    }

    async fn on_tokenized(&mut self, results: Vec<(u64, Result<Vec<TokenIds>, Failure>)>) {
        let now_us = self.parts.context.clock.monotonic_us();
        for (key, result) in results {
            match result {
                Ok(tokens) => {
                    if !self.parts.hands.on_tokens(key, tokens, now_us)
                        && let Some(held) = self.parts.hands.remove(key)
                    {
                        self.parts.desk.give_back(held);
                    }
                }
                Err(failure) => {
                    if let Some(held) = self.parts.hands.remove(key) {
                        self.parts.desk.fail(held, failure);
                    }
                }
            }
        }
    }

    async fn on_cancel(&mut self, message: &bus::Message) {
        let cancel: Cancel = match wire::decode(&message.payload) {
            Ok(cancel) => cancel,
            Err(error) => {
                self.parts.metrics.malformed.with_label_values(&["cancel"]).inc();
                tracing::warn!(%error, "cancellation cannot be read");
                return;
            }
        };
        for request_id in &cancel.request_ids {
            // It may be on its way to this worker; it is not begun then.
            self.parts.cancelled.insert(*request_id, ());
            if let Some(held) = self.parts.hands.cancel(request_id, self.running.is_some()) {
                self.parts.desk.drop_cancelled(held);
            }
        }
    }

    async fn on_computed(&mut self, computed: Computed) {
        self.running = None;
        let tokens = self.running_tokens.take();
        self.finish(computed, tokens).await;
    }

    async fn finish(&mut self, computed: Computed, tokens: Option<Vec<TokenIds>>) {
        self.parts.desk.count_batch(&computed);
        let finished = self.parts.hands.on_computed(computed, tokens);
        for held in finished.done {
            self.parts.desk.answer(held);
        }
        for held in finished.cancelled {
            self.parts.desk.drop_cancelled(held);
        }
        if let Some((held, reason)) = finished.failed {
            self.parts.desk.compute_failed(&self.parts.bus, held, &reason).await;
        }
    }

    /// Starts what can start, sends what is to be sent. Gives the time at which a waiting batch is due.
    async fn step(&mut self) -> Option<Instant> {
        let mut due = None;
        self.expire();
        while self.running.is_none() && !self.must_settle_first() {
            match self.parts.hands.next_batch(self.parts.context.clock.monotonic_us()) {
                Ok(batch) if batch.items.is_empty() => {}
                Ok(batch) => self.start(batch).await,
                Err(at_us) => {
                    due = at_us.map(|at_us| self.instant(at_us));
                    break;
                }
            }
        }
        self.parts.desk.outbox.send(&self.parts.bus).await;
        due = earlier(due, self.settle());
        self.parts
            .stats
            .note(self.parts.hands.count(), self.parts.hands.waiting_tokens());
        self.parts
            .metrics
            .in_hand
            .set(i64::try_from(self.parts.hands.count()).unwrap_or(i64::MAX));
        self.parts
            .metrics
            .waiting_tokens
            .set(i64::try_from(self.parts.hands.waiting_tokens()).unwrap_or(i64::MAX));
        due
    }

    /// Hands what is finished over to be billed and settled, several steps together: their cost events share a message, and
    /// the client has its answer already. Gives the time at which it is due when it waits for more.
    fn settle(&mut self) -> Option<Instant> {
        let waiting = &self.parts.desk.settlement;
        if waiting.is_empty() {
            return None;
        }
        let due = *self.settle_at.get_or_insert_with(|| Instant::now() + SETTLE_TOGETHER);
        let is_urgent = self.parts.context.shutdown.is_stopping() || self.parts.hands.next_is_alone();
        if !is_urgent && waiting.jobs.len() < SETTLE_AT_ONCE && Instant::now() < due {
            return Some(due);
        }
        self.settle_at = None;
        let settlement = std::mem::take(&mut self.parts.desk.settlement);
        let give_up = self.parts.context.shutdown.hard().clone();
        let settled = publish::settle(self.parts.bus.clone(), settlement, self.parts.metrics.clone(), give_up);
        self.settling.push(Box::pin(settled));
        None
    }

    /// Before a suspect is begun, what is finished leaves the process: if the suspect kills it, nobody else comes again.
    fn must_settle_first(&self) -> bool {
        let unsettled = !self.settling.is_empty() || !self.parts.desk.settlement.is_empty();
        unsettled && self.parts.hands.next_is_alone()
    }

    fn instant(&self, at_us: u64) -> Instant {
        Instant::now() + Duration::from_micros(at_us.saturating_sub(self.parts.context.clock.monotonic_us()))
    }

    fn expire(&mut self) {
        if Instant::now() < self.expire_at {
            return;
        }
        self.expire_at = Instant::now() + EXPIRE_EVERY;
        for key in self.parts.hands.expired(self.parts.context.clock.now_unix_ms()) {
            if let Some(held) = self.parts.hands.remove(key) {
                self.parts.desk.expire_held(held);
            }
        }
    }

    async fn start(&mut self, batch: Batch) {
        let now_ms = self.parts.context.clock.now_unix_ms();
        for item in &batch.items {
            if let Some(held) = self.parts.hands.get_mut(item.key) {
                held.on_started(now_ms);
            }
        }
        if self.parts.device.is_instant() {
            let computed = self.parts.device.compute_now(batch.items, &batch.tokens);
            self.finish(computed, Some(batch.tokens)).await;
        } else {
            self.running = Some(self.parts.device.compute(batch.items, batch.tokens.clone()));
            self.running_tokens = Some(batch.tokens);
        }
    }

    async fn sign_of_life(&mut self) {
        let hands = &self.parts.hands;
        for held in hands.iter() {
            if let Err(error) = held.job.in_progress().await {
                tracing::debug!(%error, "no sign of life sent");
                return;
            }
        }
    }
}

/// The consumers of a model's lanes, in the order of [`LANES`].
#[must_use]
pub fn consumers(slug: &str) -> [ConsumerRef; 3] {
    let stream = schemas::streams::work_stream_name(slug);
    LANES.map(|lane| ConsumerRef::new(&stream, schemas::streams::lane_consumer_name(lane)))
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Cancellations, those for the model and those for this worker, as one stream.
pub struct Cancels {
    model: Subscription,
    own: Subscription,
}

impl Cancels {
    /// Joins both.
    #[must_use]
    pub fn new(model: Subscription, own: Subscription) -> Self {
        Self { model, own }
    }

    /// The next one; `None` when the bus is closed. Cancel-safe.
    async fn next(&mut self) -> Option<bus::Message> {
        tokio::select! {
            message = self.own.next() => message,
            message = self.model.next() => message,
        }
    }
}
