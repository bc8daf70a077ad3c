//! What a worker is made of, whatever its model does. Input: nothing. Output: one value that both loops own, with what both
//! do in the same way: pull, note why a pull ended, hear of cancellations.

use std::sync::Arc;
use std::time::Duration;

use bus::{Bus, ConsumerRef, EndReason, Job, Message, Puller};
use moka::sync::Cache;
use process::Context;
use schemas::ids::RequestId;
use schemas::wire;
use schemas::work::Cancel;
use tokio::time::Instant;

use crate::config::Config;
use crate::credits::{self, LaneLoad};
use crate::finish::Desk;
use crate::identity::Verifier;
use crate::metrics::Metrics;
use crate::stats::Stats;

/// Pause before pulling again from a queue that is not there: it is being made anew after a restart of the broker.
const NO_QUEUE_PAUSE: Duration = Duration::from_millis(100);

/// The parts a worker is made of.
pub(crate) struct Parts {
    pub(crate) bus: Bus,
    pub(crate) context: Context,
    pub(crate) config: Config,
    pub(crate) verifier: Arc<Verifier>,
    pub(crate) metrics: Metrics,
    pub(crate) stats: Arc<Stats>,
    pub(crate) desk: Desk,
    /// The lanes' consumers, most urgent first.
    pub(crate) consumers: [ConsumerRef; 3],
    /// Requests that were given up and may still be on their way here.
    pub(crate) cancelled: Cache<RequestId, ()>,
    /// Requests held at most.
    pub(crate) slots: u32,
}

impl Parts {
    /// Asks for what the lanes have room for beside what they hold. Gives when to ask again, if that failed.
    pub(crate) async fn pull(&self, puller: &mut Puller, mut load: [LaneLoad; 3]) -> Option<Instant> {
        for (lane, consumer) in load.iter_mut().zip(&self.consumers) {
            lane.outstanding = u32::try_from(puller.outstanding(consumer)).unwrap_or(u32::MAX);
        }
        let queue = &self.config.queue;
        let expires = Duration::from_millis(queue.pull_expires_ms);
        let heartbeat = Duration::from_millis(queue.pull_heartbeat_ms);
        for (consumer, pull) in self.consumers.iter().zip(credits::next_pulls(self.slots, load)) {
            if pull == 0 {
                continue;
            }
            if let Err(error) = puller.request(consumer, pull, expires, heartbeat).await {
                tracing::debug!(%error, "nothing pulled now");
                return Some(Instant::now() + NO_QUEUE_PAUSE);
            }
        }
        None
    }

    /// When to pull again after a pull has ended, unless at once.
    pub(crate) fn pause_after(consumer: &ConsumerRef, reason: &EndReason) -> Option<Instant> {
        if matches!(reason, EndReason::Expired | EndReason::Disconnected) {
            return None;
        }
        tracing::debug!(?reason, consumer = %consumer.consumer, "pull ended");
        Some(Instant::now() + NO_QUEUE_PAUSE)
    }

    /// The requests that a message gives up. They may be on their way to this worker; they are not begun then.
    pub(crate) fn given_up(&self, message: &Message) -> Vec<RequestId> {
        match wire::decode::<Cancel>(&message.payload) {
            Ok(cancel) => {
                for request_id in &cancel.request_ids {
                    self.cancelled.insert(*request_id, ());
                }
                cancel.request_ids
            }
            Err(error) => {
                self.metrics.malformed.with_label_values(&["cancel"]).inc();
                tracing::warn!(%error, "cancellation cannot be read");
                Vec::new()
            }
        }
    }
}

/// Gives messages back that came when no more could be begun.
pub(crate) async fn give_back(jobs: Vec<Job>) {
    for job in jobs {
        if let Err(error) = job.nak(None).await {
            tracing::debug!(%error, "work not given back, the queue's own wait will do it");
        }
    }
}

/// Tells the queue that messages in hand are being worked on.
pub(crate) async fn sign_of_life(jobs: impl Iterator<Item = &Job>) {
    for job in jobs {
        if let Err(error) = job.in_progress().await {
            tracing::debug!(%error, "no sign of life sent");
            return;
        }
    }
}
