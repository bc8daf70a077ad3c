//! Pulling work with exact credits. Input: how much can start soon, per consumer. Output: jobs, and what came back
//! unused. One inbox for all consumers of a worker; the broker never holds more credits than were asked for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::credits::{Ask, Credits, EndReason};
use crate::job::{Delivery, Job};
use crate::message::NO_RESPONDERS;
use crate::{Bus, BusError, Headers, Message, Subscription};

/// How often lost pulls are looked for; well below the shortest heartbeat that makes sense.
const SWEEP_EVERY: Duration = Duration::from_millis(250);

const IDLE_HEARTBEAT: u16 = 100;
const NO_MESSAGES: u16 = 404;
const REQUEST_TIMEOUT: u16 = 408;

/// One consumer of one stream. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConsumerRef {
    /// Stream.
    pub stream: Arc<str>,
    /// Consumer.
    pub consumer: Arc<str>,
}

impl ConsumerRef {
    /// Names a consumer.
    #[must_use]
    pub fn new(stream: &str, consumer: &str) -> Self {
        Self {
            stream: stream.into(),
            consumer: consumer.into(),
        }
    }
}

/// What pulling brings.
#[derive(Debug)]
pub enum PullEvent {
    /// Work.
    Job(Job),
    /// Credits came back: ask again when there is room.
    Ended {
        /// Whose.
        consumer: ConsumerRef,
        /// How many; they are no longer outstanding.
        unused_credits: u64,
        /// Why.
        reason: EndReason,
    },
}

#[derive(Debug)]
struct Source {
    consumer: ConsumerRef,
    next_subject: String,
    credits: Credits,
}

/// Pulls for all consumers of one worker. Owned by one task: `next` in its select, `request` between.
pub struct Puller {
    bus: Bus,
    epoch: watch::Receiver<u64>,
    /// Changes with every loss of the connection: pulls that an old connection left behind find nobody.
    inbox: String,
    subscription: Option<Subscription>,
    sources: Vec<Source>,
    last_id: u64,
    ready: VecDeque<PullEvent>,
    sweep: Interval,
    given_back: u64,
}

impl std::fmt::Debug for Puller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Puller")
            .field("inbox", &self.inbox)
            .field("sources", &self.sources)
            .finish_non_exhaustive()
    }
}

impl Puller {
    /// A puller without pulls.
    ///
    /// # Errors
    /// As [`Bus::subscribe`].
    pub async fn new(bus: &Bus) -> Result<Self, BusError> {
        let epoch = bus.epoch();
        let inbox = bus.new_inbox();
        let subscription = bus.subscribe(&format!("{inbox}.*"), None).await?;
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            bus: bus.clone(),
            epoch,
            inbox,
            subscription: Some(subscription),
            sources: Vec::new(),
            last_id: 0,
            ready: VecDeque::new(),
            sweep,
            given_back: 0,
        })
    }

    /// Asks for up to `batch` messages within `expires`; a pull without a sign of life for two heartbeats is lost.
    ///
    /// # Errors
    /// [`BusError::Disconnected`] and the like; nothing is outstanding then.
    pub async fn request(
        &mut self,
        consumer: &ConsumerRef,
        batch: u32,
        expires: Duration,
        idle_heartbeat: Duration,
    ) -> Result<(), BusError> {
        if batch == 0 {
            return Ok(());
        }
        self.follow_connection().await?;
        self.last_id += 1;
        let id = self.last_id;
        let at = self.source(consumer);
        let payload = format!(
            r#"{{"batch":{batch},"expires":{},"idle_heartbeat":{}}}"#,
            expires.as_nanos(),
            // The broker refuses a heartbeat over half the pull's time.
            idle_heartbeat.min(expires / 2).as_nanos()
        );
        let reply = format!("{}.{id:x}", self.inbox);
        let subject = self.sources[at].next_subject.as_str().into();
        let sent = self
            .bus
            .send(subject, Some(reply.into()), Headers::new(), payload.into());
        // Counted before it is sent: cancelled in between, the credits are taken back by the sweep, never exceeded.
        let ask = Ask {
            batch,
            expires,
            heartbeat: idle_heartbeat,
        };
        self.sources[at].credits.asked(id, ask, Instant::now());
        let sent = tokio::time::timeout(self.bus.request_timeout(), sent)
            .await
            .unwrap_or(Err(BusError::Disconnected));
        if sent.is_err() {
            self.sources[at].credits.ended(id, None);
        }
        sent
    }

    /// Messages of this consumer that may still come.
    #[must_use]
    pub fn outstanding(&self, consumer: &ConsumerRef) -> u64 {
        self.sources
            .iter()
            .find(|source| source.consumer == *consumer)
            .map_or(0, |source| source.credits.outstanding())
    }

    /// The same over all consumers.
    #[must_use]
    pub fn outstanding_total(&self) -> u64 {
        self.sources.iter().map(|source| source.credits.outstanding()).sum()
    }

    /// Jobs that came without a credit (late, from a pull thought lost) and were given back.
    #[must_use]
    pub fn given_back(&self) -> u64 {
        self.given_back
    }

    /// The next job or end of a pull; `None` when the bus is closed. Cancel-safe.
    pub async fn next(&mut self) -> Option<PullEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            match self.follow_connection().await {
                Ok(()) => {}
                Err(BusError::Closed) => return None,
                Err(_) => {
                    // The client takes no more while it reconnects: wait for the connection, not for a time.
                    self.bus.connected().wait_for(|up| *up).await.ok()?;
                    continue;
                }
            }
            let Some(subscription) = &mut self.subscription else {
                continue;
            };
            tokio::select! {
                biased;
                message = subscription.next() => self.take(message?),
                _ = self.epoch.changed() => {
                    // Seen by `follow_connection` as well.
                    self.epoch.mark_changed();
                }
                // Only after everything that has arrived is taken: a slow owner must not think its pulls lost.
                _ = self.sweep.tick() => self.sweep_lost(),
            }
        }
    }

    /// A job or end that has arrived already.
    pub fn try_next(&mut self) -> Option<PullEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let message = self.subscription.as_mut()?.try_next()?;
            self.take(message);
        }
    }

    /// Stops: asks for nothing more, waits until every pull has ended or `grace` has passed, then gives back what came
    /// meanwhile. Not sooner: the broker would hand a job that was given back to this worker's own open pulls again, and
    /// each time costs one of its deliveries. A worker that may still work should rather take jobs from
    /// [`Puller::next`] until nothing is outstanding, and close then.
    pub async fn close(mut self, grace: Duration) {
        let ends_at = Instant::now() + grace;
        let mut arrived = Vec::new();
        while self.outstanding_total() > 0 || !self.ready.is_empty() {
            match tokio::time::timeout_at(ends_at, self.next()).await {
                Ok(Some(PullEvent::Job(job))) => arrived.push(job),
                Ok(Some(PullEvent::Ended { .. })) => {}
                Ok(None) => break,
                Err(_) => {
                    tracing::warn!(
                        outstanding = self.outstanding_total(),
                        "pulls still open at the end of the grace"
                    );
                    break;
                }
            }
        }
        // Without its inbox the broker cannot serve a pull that is still open.
        self.subscription = None;
        for job in arrived {
            if let Err(error) = job.nak(None).await {
                tracing::debug!(%error, "job not given back");
            }
        }
    }

    fn source(&mut self, consumer: &ConsumerRef) -> usize {
        if let Some(at) = self.sources.iter().position(|source| source.consumer == *consumer) {
            return at;
        }
        self.sources.push(Source {
            consumer: consumer.clone(),
            next_subject: format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", consumer.stream, consumer.consumer),
            credits: Credits::new(Instant::now()),
        });
        self.sources.len() - 1
    }

    /// After a loss of the connection: takes what had arrived, ends all pulls, and listens on a new inbox.
    async fn follow_connection(&mut self) -> Result<(), BusError> {
        if self.epoch.has_changed().unwrap_or(false) {
            self.epoch.mark_unchanged();
            while let Some(message) = self.subscription.as_mut().and_then(Subscription::try_next) {
                self.take(message);
            }
            self.subscription = None;
            for source in &mut self.sources {
                let unused_credits = source.credits.clear();
                if unused_credits > 0 {
                    self.ready.push_back(PullEvent::Ended {
                        consumer: source.consumer.clone(),
                        unused_credits,
                        reason: EndReason::Disconnected,
                    });
                }
            }
        }
        if self.subscription.is_none() {
            self.inbox = self.bus.new_inbox();
            // Not proved by a round trip: the pulls follow on the same connection, in order.
            self.subscription = Some(self.bus.subscribe_unproved(&format!("{}.*", self.inbox), None).await?);
        }
        Ok(())
    }

    fn take(&mut self, message: Message) {
        if let Some(delivery) = message.reply.as_ref().and_then(Delivery::parse) {
            self.take_job(message, delivery);
        } else {
            self.take_status(&message);
        }
    }

    fn take_job(&mut self, message: Message, delivery: Delivery) {
        let owed = self
            .sources
            .iter_mut()
            .find(|source| {
                *source.consumer.stream == *delivery.stream() && *source.consumer.consumer == *delivery.consumer()
            })
            .is_some_and(|source| source.credits.received(Instant::now()));
        let job = Job::new(self.bus.clone(), message, delivery);
        if owed {
            self.ready.push_back(PullEvent::Job(job));
        } else {
            // Dropping gives it back.
            self.given_back += 1;
        }
    }

    fn take_status(&mut self, message: &Message) {
        let id = message
            .subject()
            .rsplit('.')
            .next()
            .and_then(|id| u64::from_str_radix(id, 16).ok());
        let (Some(id), Some(status)) = (id, message.status()) else {
            tracing::debug!(subject = message.subject(), "neither job nor status");
            return;
        };
        if status == IDLE_HEARTBEAT {
            for source in &mut self.sources {
                source.credits.heartbeat(id, Instant::now());
            }
            return;
        }
        let unused = message.headers.get_u64("Nats-Pending-Messages");
        for source in &mut self.sources {
            if let Some(unused_credits) = source.credits.ended(id, unused) {
                // A pull that was served in full ends without anything to say.
                if unused_credits > 0 {
                    let reason = end_reason(status, message.description().unwrap_or_default());
                    self.ready.push_back(PullEvent::Ended {
                        consumer: source.consumer.clone(),
                        unused_credits,
                        reason,
                    });
                }
                return;
            }
        }
    }

    fn sweep_lost(&mut self) {
        let now = Instant::now();
        for source in &mut self.sources {
            let unused_credits = source.credits.sweep(now);
            if unused_credits > 0 {
                let reason = EndReason::Lost;
                self.ready.push_back(PullEvent::Ended {
                    consumer: source.consumer.clone(),
                    unused_credits,
                    reason,
                });
            }
        }
    }
}

fn end_reason(status: u16, description: &str) -> EndReason {
    match status {
        NO_MESSAGES | REQUEST_TIMEOUT => EndReason::Expired,
        NO_RESPONDERS => EndReason::NoConsumer,
        // The broker has one status for all ends before time; this text is its constant for a consumer that is gone.
        409 if description.eq_ignore_ascii_case("Consumer Deleted") => EndReason::NoConsumer,
        _ => EndReason::Refused {
            status,
            description: description.to_owned(),
        },
    }
}
