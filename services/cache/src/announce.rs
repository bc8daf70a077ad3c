//! What gateways are told. Input: fingerprints of kept answers. Output: coalesced announcements, and the newest
//! fingerprints for gateways that start.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bus::{Bus, Headers};
use process::Shutdown;
use schemas::cache::CacheHeld;
use schemas::{subjects, wire};
use serde_bytes::ByteBuf;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::config::AnnounceConfig;
use crate::metrics::Metrics;

/// Bytes of one fingerprint on the wire.
const FINGERPRINT_BYTES: usize = 8;

/// Where kept answers are noted; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Announcer {
    waiting: mpsc::Sender<u64>,
    newest: Arc<Mutex<VecDeque<u64>>>,
    capacity: usize,
    metrics: Metrics,
}

/// The other end of an [`Announcer`].
#[derive(Debug)]
pub(crate) struct Announcements {
    waiting: mpsc::Receiver<u64>,
    interval: Duration,
    max: usize,
    metrics: Metrics,
}

pub(crate) fn announcer(config: &AnnounceConfig, metrics: &Metrics) -> (Announcer, Announcements) {
    let (sender, receiver) = mpsc::channel(config.queue);
    let announcer = Announcer {
        waiting: sender,
        newest: Arc::default(),
        capacity: config.index_fingerprints,
        metrics: metrics.clone(),
    };
    let announcements = Announcements {
        waiting: receiver,
        interval: Duration::from_millis(config.interval_ms),
        max: config.max_fingerprints,
        metrics: metrics.clone(),
    };
    (announcer, announcements)
}

impl Announcer {
    /// Notes an answer that is kept now; never waits.
    pub(crate) fn note(&self, fingerprint: u64) {
        let mut newest = self.newest();
        if newest.len() >= self.capacity {
            newest.pop_front();
        }
        newest.push_back(fingerprint);
        drop(newest);
        if self.waiting.try_send(fingerprint).is_err() {
            self.metrics.unannounced.inc();
        }
    }

    /// Up to `limit` fingerprints, newest first, each once. Some may be of answers that are gone: asking for one
    /// costs a miss.
    pub(crate) fn newest_first(&self, limit: usize) -> Vec<u64> {
        let newest = self.newest();
        let mut seen = HashSet::with_capacity(newest.len().min(limit));
        let fresh = newest.iter().rev().filter(|one| seen.insert(**one));
        fresh.take(limit).copied().collect()
    }

    /// Forgets what was noted, after a purge of everything.
    pub(crate) fn clear(&self) {
        self.newest().clear();
    }

    fn newest(&self) -> MutexGuard<'_, VecDeque<u64>> {
        // A list of numbers is whole after any panic.
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Announcements {
    /// Tells gateways of kept answers until the stop: what is left then would be asked of nobody.
    pub(crate) async fn run(mut self, bus: Bus, shutdown: Shutdown) -> anyhow::Result<()> {
        let mut batch = Vec::with_capacity(self.max);
        loop {
            tokio::select! {
                () = self.collect(&mut batch) => {}
                () = shutdown.stopping() => return Ok(()),
            }
            if batch.is_empty() {
                // All announcers are gone, so nothing will come.
                shutdown.stopping().await;
                return Ok(());
            }
            let count = batch.len() as u64;
            let body = wire::encode(&held(&batch))?;
            batch.clear();
            let told = bus.publish(subjects::CACHE_HELD, Headers::new(), body.into());
            match told.await {
                Ok(()) => self.metrics.announced.inc_by(count),
                // Gateways ask for the index when the connection is back.
                Err(error) => {
                    self.metrics.unannounced.inc_by(count);
                    tracing::debug!(%error, "announcement not sent");
                }
            }
        }
    }

    /// Waits for one fingerprint, then for more until the interval is over or the batch is full.
    async fn collect(&mut self, batch: &mut Vec<u64>) {
        if self.waiting.recv_many(batch, self.max).await == 0 {
            return;
        }
        let ends_at = Instant::now() + self.interval;
        while batch.len() < self.max {
            let more = self.waiting.recv_many(batch, self.max - batch.len());
            match tokio::time::timeout_at(ends_at, more).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }
}

/// Fingerprints as a message.
pub(crate) fn held(fingerprints: &[u64]) -> CacheHeld {
    let mut bytes = Vec::with_capacity(fingerprints.len() * FINGERPRINT_BYTES);
    for fingerprint in fingerprints {
        bytes.extend_from_slice(&fingerprint.to_le_bytes());
    }
    CacheHeld {
        fingerprints: ByteBuf::from(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> (Announcer, Announcements, Metrics) {
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let config = AnnounceConfig {
            interval_ms: 5,
            max_fingerprints: 3,
            queue: 8,
            index_fingerprints: 4,
        };
        let (announcer, announcements) = announcer(&config, &metrics);
        (announcer, announcements, metrics)
    }

    #[test]
    fn the_newest_are_remembered_once_each() {
        let (announcer, _announcements, _) = small();
        for fingerprint in [1, 2, 3, 4, 5, 4] {
            announcer.note(fingerprint);
        }
        assert_eq!(announcer.newest_first(10), [4, 5, 3]);
        assert_eq!(announcer.newest_first(1), [4]);
        assert!(announcer.newest_first(0).is_empty());
        announcer.clear();
        assert!(announcer.newest_first(10).is_empty());
    }

    #[tokio::test]
    async fn batches_are_full_or_end_with_the_interval() {
        let (announcer, mut announcements, metrics) = small();
        for fingerprint in 0..9 {
            announcer.note(fingerprint);
        }
        assert_eq!(metrics.unannounced.get(), 1, "the queue holds 8");
        let mut batch = Vec::new();
        for expected in [vec![0, 1, 2], vec![3, 4, 5], vec![6, 7]] {
            announcements.collect(&mut batch).await;
            assert_eq!(batch, expected);
            batch.clear();
        }
        drop(announcer);
        announcements.collect(&mut batch).await;
        assert!(batch.is_empty());
    }

    #[test]
    fn fingerprints_are_little_endian() {
        let bytes = held(&[1, u64::MAX - 1]).fingerprints.into_vec();
        let expected = [1, 0, 0, 0, 0, 0, 0, 0, 254, 255, 255, 255, 255, 255, 255, 255];
        assert_eq!(bytes, expected);
    }
}
