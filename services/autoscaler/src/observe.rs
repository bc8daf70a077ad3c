//! Everything the autoscaler sees. Input: heartbeats, model cards and the broker's figures. Output: the workers and the
//! queue of a model, each with its age.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bus::{Bus, JetStreamError, Subscription, WatchEvent};
use process::Clock;
use schemas::fleet::{Beat, ModelCard};
use schemas::work::Lane;
use schemas::{ids, streams, wire};

use crate::beats::Beats;
use crate::decide::{QueueDepth, WorkersSeen};
use crate::metrics::Metrics;
use crate::signal::SignalState;

/// Longest wait for the broker's figures of one model; a late figure is as good as none.
const QUEUE_TIMEOUT: Duration = Duration::from_millis(900);

/// Sees.
#[derive(Debug)]
pub struct Observer {
    bus: Bus,
    clock: Clock,
    metrics: Metrics,
    stale_after_ms: u64,
    started_ms: u64,
    beats: Mutex<Beats>,
    /// True names of models with a card, by slug.
    cards: Mutex<BTreeMap<String, String>>,
    queues: Mutex<HashMap<String, QueueSeen>>,
}

/// The last look at a queue.
#[derive(Debug, Clone, Copy)]
struct QueueSeen {
    depth: QueueDepth,
    at_ms: u64,
    /// When nothing waited.
    empty_at_ms: Option<u64>,
}

impl Observer {
    /// Sees nothing yet.
    #[must_use]
    pub fn new(bus: Bus, clock: Clock, metrics: Metrics, stale_after_ms: u64) -> Self {
        let started_ms = clock.monotonic_us() / 1_000;
        Self {
            bus,
            clock,
            metrics,
            stale_after_ms,
            started_ms,
            beats: Mutex::default(),
            cards: Mutex::default(),
            queues: Mutex::default(),
        }
    }

    /// Milliseconds since an arbitrary start.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.clock.monotonic_us() / 1_000
    }

    /// How long it has been looking, in milliseconds.
    #[must_use]
    pub fn uptime_ms(&self) -> u64 {
        self.now_ms().saturating_sub(self.started_ms)
    }

    /// Supervisors that are alive.
    #[must_use]
    pub fn supervisors(&self) -> Vec<String> {
        lock(&self.beats).supervisors(self.now_ms(), self.stale_after_ms)
    }

    /// Models that have a card or live workers, each once, in order.
    #[must_use]
    pub fn models(&self) -> Vec<String> {
        let mut models = lock(&self.beats).models(self.now_ms(), self.stale_after_ms);
        models.extend(lock(&self.cards).values().cloned());
        models.sort_unstable();
        models.dedup();
        models
    }

    /// The workers of a model.
    #[must_use]
    pub fn workers(&self, model: &str) -> SignalState<WorkersSeen> {
        lock(&self.beats).workers(model, self.now_ms(), self.stale_after_ms)
    }

    /// The queue of a model as it was at the last look.
    #[must_use]
    pub fn queue(&self, model: &str) -> SignalState<QueueDepth> {
        match lock(&self.queues).get(model) {
            Some(seen) => {
                let age_ms = self.now_ms().saturating_sub(seen.at_ms);
                SignalState::of(seen.depth, age_ms, self.stale_after_ms)
            }
            None => SignalState::Missing,
        }
    }

    /// Asks the broker for the queue of a model.
    ///
    /// # Errors
    /// When it does not answer in time; the last look stays, and ages.
    pub async fn look_at_queue(&self, model: &str) -> Result<(), JetStreamError> {
        let slug = ids::model_slug(model);
        let looked = tokio::time::timeout(QUEUE_TIMEOUT, self.figures(&slug)).await;
        let figures = looked.map_err(|_| bus::BusError::Timeout {
            subject: streams::work_stream_name(&slug),
            after_ms: QUEUE_TIMEOUT.as_millis() as u64,
        });
        let (mut depth, first_time) = figures.map_err(JetStreamError::from)??;
        let now_ms = self.now_ms();
        let mut queues = lock(&self.queues);
        let empty_at_ms = queues.get(model).and_then(|seen| seen.empty_at_ms);
        let (oldest_ms, empty_at_ms) = oldest(depth.queued, self.age_ms(first_time), empty_at_ms, now_ms);
        depth.oldest_ms = oldest_ms;
        let seen = QueueSeen {
            depth,
            at_ms: now_ms,
            empty_at_ms,
        };
        queues.insert(model.to_owned(), seen);
        Ok(())
    }

    /// Forgets what is long gone.
    pub fn forget_old(&self) {
        let now_ms = self.now_ms();
        lock(&self.beats).forget_silent(now_ms);
        let kept = self.models();
        lock(&self.queues).retain(|model, _| kept.binary_search(model).is_ok());
    }

    /// Follows heartbeats until the bus is closed.
    pub async fn follow_beats(&self, mut subscription: Subscription) {
        while let Some(message) = subscription.next().await {
            match wire::decode::<Beat>(&message.payload) {
                Ok(beat) => {
                    let (service, instance) = (beat.service.clone(), beat.instance.clone());
                    if !lock(&self.beats).note(beat, self.now_ms()) {
                        tracing::warn!(service, instance, "too many instances, heartbeat ignored");
                    }
                }
                Err(error) => {
                    self.metrics.malformed("beat");
                    tracing::warn!(%error, subject = message.subject(), "unreadable heartbeat");
                }
            }
        }
    }

    /// Follows the model cards until the bus is closed.
    ///
    /// # Errors
    /// When the bucket is gone.
    pub async fn follow_cards(&self) -> Result<(), JetStreamError> {
        let mut watch = self.bus.kv(&streams::models_bucket()).await?.watch();
        loop {
            match watch.next().await? {
                WatchEvent::Put(entry) => match wire::decode::<ModelCard>(&entry.value) {
                    Ok(card) => {
                        lock(&self.cards).insert(entry.key, card.name);
                    }
                    Err(error) => {
                        self.metrics.malformed("card");
                        tracing::warn!(%error, key = entry.key, "unreadable model card");
                    }
                },
                WatchEvent::Delete { key, .. } => {
                    lock(&self.cards).remove(&key);
                }
                WatchEvent::Reset => lock(&self.cards).clear(),
                WatchEvent::InitialDone => {}
            }
        }
    }

    /// Waiting and held messages of all lanes, and when the first message of the stream was stored.
    async fn figures(&self, slug: &str) -> Result<(QueueDepth, Option<SystemTime>), JetStreamError> {
        let stream = streams::work_stream_name(slug);
        let mut depth = QueueDepth::default();
        for lane in Lane::ALL {
            let name = streams::lane_consumer_name(lane);
            // A consumer that does not exist is an error, not a zero: its messages would look like a full stream's.
            let info = self.bus.consumer_info(&stream, name).await?;
            depth.queued = depth.queued.saturating_add(info.pending);
            depth.in_hand = depth.in_hand.saturating_add(info.ack_pending);
        }
        let first_time = self.bus.stream_info(&stream).await?.first_time;
        Ok((depth, first_time))
    }

    fn age_ms(&self, stored: Option<SystemTime>) -> Option<u64> {
        let stored_ms = stored?.duration_since(UNIX_EPOCH).ok()?.as_millis();
        let stored_ms = u64::try_from(stored_ms).ok()?;
        Some(self.clock.now_unix_ms().saturating_sub(stored_ms))
    }
}

/// An upper bound of the oldest waiting message's age, and when nothing waited. The stream's first message may be in a
/// worker's hand, and what waits now came after the last time nothing waited: the smaller of both bounds counts.
fn oldest(queued: u64, first_age_ms: Option<u64>, empty_at_ms: Option<u64>, now_ms: u64) -> (u64, Option<u64>) {
    if queued == 0 {
        return (0, Some(now_ms));
    }
    let since_empty_ms = empty_at_ms.map(|at| now_ms.saturating_sub(at));
    let bounds = [first_age_ms, since_empty_ms];
    (bounds.into_iter().flatten().min().unwrap_or(0), empty_at_ms)
}

/// Each change under these locks is one call on a map; a panic in between leaves it whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_bound_of_the_age_counts() {
        let cases = [
            // queued, first, empty at, now -> oldest, empty at
            ((0, Some(9_000), Some(1), 50), (0, Some(50))),
            ((3, Some(9_000), Some(1_000), 1_400), (400, Some(1_000))),
            ((3, Some(300), Some(1_000), 9_000), (300, Some(1_000))),
            ((3, Some(300), None, 9_000), (300, None)),
            ((3, None, None, 9_000), (0, None)),
        ];
        for ((queued, first, empty, now), expected) in cases {
            assert_eq!(oldest(queued, first, empty, now), expected);
        }
    }
}
