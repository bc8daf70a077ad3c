//! The loop of the worker: it waits for what comes next and hands it on. Input: events of queue, device and callers. Output:
//! answers. One task owns everything in hand; what takes time runs beside it and comes back as an event.
//!
//! `worker/intake.rs` is the way in (pull, admit, tokenize, cancel), `worker/step.rs` the way out (batch, answer, settle).

mod intake;
pub(crate) mod step;

use std::pin::Pin;
use std::time::Duration;

use bus::{ConsumerRef, Job, PullEvent, Puller, Subscription};
use engine::TokenIds;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use schemas::error::Failure;
use schemas::streams::WORK_ACK_WAIT_MS;
use tokio::time::{Instant, MissedTickBehavior};

use crate::compute::{Computed, Device, Running};
use crate::hands::{Hands, LANES};
use crate::parts::{self, Parts};
use crate::settle::Settler;

/// Signs of life for work in hand: four within the queue's ack wait.
pub(crate) const PROGRESS_EVERY: Duration = Duration::from_millis(WORK_ACK_WAIT_MS / 4);

/// Requests by their key in hand, each with its inputs as tokens or why there are none.
type Tokenized = Vec<(u64, Result<Vec<TokenIds>, Failure>)>;
type Tokenizing = Pin<Box<dyn Future<Output = Tokenized> + Send>>;

/// The worker at work.
pub(crate) struct Worker {
    parts: Parts,
    device: Device,
    hands: Hands,
    /// The batch that is being computed, with its token ids in case it must be done again.
    running: Option<Running>,
    running_tokens: Option<Vec<TokenIds>>,
    tokenizing: FuturesUnordered<Tokenizing>,
    settler: Settler,
    /// Work that came during the drain.
    returned: Vec<Job>,
    pull_after: Instant,
    /// When to look for passed deadlines again.
    expire_at: Instant,
}

/// What the loop is woken by.
enum Event {
    Computed(Computed),
    Tokenized(Tokenized),
    Pulled(PullEvent),
    Cancel(bus::Message),
    Settled,
    Progress,
    Due,
    Drain,
    Closed,
}

impl Worker {
    /// A worker with empty hands.
    #[must_use]
    pub(crate) fn new(parts: Parts, device: Device, hands: Hands) -> Self {
        let settler = Settler::new(parts.bus.clone(), parts.metrics.clone(), parts.context.shutdown.clone());
        Self {
            parts,
            device,
            hands,
            running: None,
            running_tokens: None,
            tokenizing: FuturesUnordered::new(),
            settler,
            returned: Vec::new(),
            pull_after: Instant::now(),
            expire_at: Instant::now(),
        }
    }

    /// Works until the drain is over.
    pub(crate) async fn run(mut self, mut puller: Puller, mut cancels: Cancels) {
        let mut progress = tokio::time::interval(PROGRESS_EVERY);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut draining = false;
        let mut due = None;
        loop {
            if !draining {
                self.refill(&mut puller).await;
            } else if self.is_empty() && puller.outstanding_total() == 0 {
                return parts::give_back(self.returned).await;
            }
            let event = self
                .next_event(&mut puller, &mut cancels, (&mut progress, due, draining))
                .await;
            match event {
                Event::Pulled(event) => self.on_pulled(event, &mut puller, draining).await,
                Event::Computed(computed) => self.on_computed(computed).await,
                Event::Tokenized(results) => self.on_tokenized(results).await,
                Event::Cancel(message) => self.on_cancel(&message).await,
                Event::Progress => parts::sign_of_life(self.hands.iter().map(|held| &held.job)).await,
                Event::Settled | Event::Due => {}
                Event::Drain => {
                    draining = true;
                    tracing::info!(in_hand = self.hands.count(), "worker is draining");
                }
                Event::Closed => return,
            }
            due = self.step().await;
        }
    }

    fn is_empty(&self) -> bool {
        let settled = self.settler.is_empty() && self.parts.desk.settlement.is_empty();
        self.hands.count() == 0 && settled && self.tokenizing.is_empty()
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
            () = self.settler.arrived() => Event::Settled,
            () = self.parts.context.shutdown.stopping(), if !draining => Event::Drain,
            _ = progress.tick() => Event::Progress,
            () = until(due) => Event::Due,
            () = until(paused) => Event::Due,
        }
    }
}

/// The consumers of a model's lanes, in the order of [`LANES`].
#[must_use]
pub fn consumers(slug: &str) -> [ConsumerRef; 3] {
    let stream = schemas::streams::work_stream_name(slug);
    LANES.map(|lane| ConsumerRef::new(&stream, schemas::streams::lane_consumer_name(lane)))
}

pub(crate) async fn until(instant: Option<Instant>) {
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
    pub(crate) async fn next(&mut self) -> Option<bus::Message> {
        tokio::select! {
            message = self.own.next() => message,
            message = self.model.next() => message,
        }
    }
}
