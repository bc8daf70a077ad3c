//! The loop of a worker that writes text: it waits for what comes next and hands it on. Input: events of queue, model and
//! callers. Output: answers. One task owns everything in hand; the model runs beside it on its own thread.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bus::{Job, PullEvent, Puller};
use engine::generate::TextModel;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use schemas::error::Failure;
use schemas::ids::RequestId;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::Generative;
use super::prepare::Made;
use super::stepper::{Outcome, Stepper};
use super::writing::Writing;
use crate::credits;
use crate::parts::{self, Parts};
use crate::settle::Settler;
use crate::worker::{Cancels, PROGRESS_EVERY, until};

/// Time between two looks for passed deadlines while nothing else happens.
const IDLE_LOOK: Duration = Duration::from_millis(50);

/// A request's key in hand, and what is to be generated for it or why nothing is.
pub(super) type Prepared = (u64, Result<Made, Failure>);
type Preparing = Pin<Box<dyn Future<Output = Prepared> + Send>>;

/// The worker at work.
pub(crate) struct Writer {
    pub(super) parts: Parts,
    pub(super) text: Arc<TextModel>,
    pub(super) stepper: Stepper,
    pub(super) held: HashMap<u64, Writing>,
    pub(super) by_request: HashMap<RequestId, u64>,
    next_key: u64,
    /// Requests held, by lane.
    pub(super) lanes: [u32; 3],
    pub(super) preparing: FuturesUnordered<Preparing>,
    settler: Settler,
    /// Work that came during the drain.
    pub(super) returned: Vec<Job>,
    pub(super) pull_after: Instant,
    pub(super) expire_at: Instant,
    /// The model's thread is gone.
    pub(super) is_broken: bool,
}

/// What the loop is woken by.
enum Event {
    Outcome(Outcome),
    Prepared(Prepared),
    Pulled(PullEvent),
    Cancel(bus::Message),
    Progress,
    Due,
    Drain,
    Broken,
    Closed,
}

/// The model's thread ended although nobody asked for it; all work went back to the queue.
#[derive(Debug, thiserror::Error)]
#[error("the model's thread ended")]
pub(crate) struct ModelThreadEnded;

impl Writer {
    /// A writer with empty hands; starts the model's thread.
    pub(crate) fn new(parts: Parts, model: Generative) -> Self {
        let settler = Settler::new(parts.bus.clone(), parts.metrics.clone(), parts.context.shutdown.clone());
        Self {
            parts,
            text: model.text,
            stepper: Stepper::start(model.generator),
            held: HashMap::new(),
            by_request: HashMap::new(),
            next_key: 0,
            lanes: [0; 3],
            preparing: FuturesUnordered::new(),
            settler,
            returned: Vec::new(),
            pull_after: Instant::now(),
            expire_at: Instant::now(),
            is_broken: false,
        }
    }

    /// Works until the drain is over.
    ///
    /// # Errors
    /// [`ModelThreadEnded`].
    pub(crate) async fn run(mut self, mut puller: Puller, mut cancels: Cancels) -> Result<(), ModelThreadEnded> {
        let mut progress = tokio::time::interval(PROGRESS_EVERY);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut draining = false;
        let mut due = None;
        loop {
            if !draining {
                self.refill(&mut puller).await;
            } else if self.is_empty() && puller.outstanding_total() == 0 {
                parts::give_back(std::mem::take(&mut self.returned)).await;
                self.stepper.stop().await;
                return Ok(());
            }
            let event = self
                .next_event(&mut puller, &mut cancels, (&mut progress, due, draining))
                .await;
            match event {
                Event::Outcome(outcome) => self.on_outcome(outcome).await,
                Event::Prepared(prepared) => self.on_prepared(prepared).await,
                Event::Pulled(event) => {
                    self.on_pulled(event, draining).await;
                    while let Some(event) = puller.try_next() {
                        self.on_pulled(event, draining).await;
                    }
                }
                Event::Cancel(message) => self.on_cancel(&message).await,
                Event::Progress => parts::sign_of_life(self.held.values().map(|writing| &writing.job)).await,
                Event::Due => {}
                Event::Drain => {
                    draining = true;
                    tracing::info!(in_hand = self.held.len(), "worker is draining");
                }
                // Dropping what is held gives it back.
                Event::Broken => return Err(ModelThreadEnded),
                Event::Closed => return Ok(()),
            }
            if self.is_broken {
                return Err(ModelThreadEnded);
            }
            due = self.after_event().await;
        }
    }

    async fn next_event(
        &mut self,
        puller: &mut Puller,
        cancels: &mut Cancels,
        (progress, due, draining): (&mut Interval, Option<Instant>, bool),
    ) -> Event {
        let paused = (self.pull_after > Instant::now()).then_some(self.pull_after);
        tokio::select! {
            biased;
            () = self.parts.context.shutdown.forced() => Event::Closed,
            // Before more work: who leaves frees a place in the very next step.
            Some(message) = cancels.next() => Event::Cancel(message),
            outcome = self.stepper.next() => outcome.map_or(Event::Broken, Event::Outcome),
            Some(prepared) = self.preparing.next(), if !self.preparing.is_empty() => Event::Prepared(prepared),
            event = puller.next() => event.map_or(Event::Closed, Event::Pulled),
            () = self.settler.arrived() => Event::Due,
            () = self.parts.context.shutdown.stopping(), if !draining => Event::Drain,
            _ = progress.tick() => Event::Progress,
            () = until(due) => Event::Due,
            () = until(paused) => Event::Due,
        }
    }

    /// Sends what is to be sent, keeps deadlines, shows how busy it is. Gives the time to look again.
    async fn after_event(&mut self) -> Option<Instant> {
        self.expire().await;
        self.parts.desk.outbox.send(&self.parts.bus).await;
        let settle_at = self.settler.settle(&mut self.parts.desk.settlement, false);
        let waiting = self.held.values().filter(|writing| !writing.has_run());
        let waiting_tokens = waiting.map(Writing::prompt_tokens).sum::<u64>();
        self.parts
            .stats
            .note(self.held.len(), usize::try_from(waiting_tokens).unwrap_or(usize::MAX));
        self.parts
            .metrics
            .waiting_tokens
            .set(i64::try_from(waiting_tokens).unwrap_or(i64::MAX));
        let in_hand = i64::try_from(self.held.len()).unwrap_or(i64::MAX);
        self.parts.metrics.in_hand.set(in_hand);
        let look_at = (!self.held.is_empty()).then(|| Instant::now() + IDLE_LOOK);
        crate::worker::step::earlier(settle_at, look_at)
    }

    fn is_empty(&self) -> bool {
        let settled = self.settler.is_empty() && self.parts.desk.settlement.is_empty();
        self.held.is_empty() && settled && self.preparing.is_empty()
    }

    /// Takes a request into hand; gives its key.
    pub(super) fn hold(&mut self, writing: Writing) -> u64 {
        let key = self.next_key;
        self.next_key += 1;
        self.lanes[credits::position(writing.request.lane)] += 1;
        self.by_request.insert(writing.request.request_id, key);
        self.held.insert(key, writing);
        key
    }

    /// Lets go of a request.
    pub(super) fn release(&mut self, key: u64) -> Option<Writing> {
        let writing = self.held.remove(&key)?;
        self.lanes[credits::position(writing.request.lane)] -= 1;
        if self.by_request.get(&writing.request.request_id) == Some(&key) {
            self.by_request.remove(&writing.request.request_id);
        }
        Some(writing)
    }
}
