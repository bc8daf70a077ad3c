//! How busy the worker is, for its heartbeats. Input: notes of the loop. Output: a consistent enough picture, read by the
//! task that beats.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use schemas::fleet::WorkerBeat;

/// Weight of the newest batch in the running mean, as a power of two: 1/8.
const MEAN_SHIFT: u32 = 3;

/// Counters shared by the loop and the heart beat.
#[derive(Debug, Default)]
pub struct Stats {
    in_hand: AtomicU64,
    waiting_tokens: AtomicU64,
    finished: AtomicU64,
    tokens: AtomicU64,
    busy_ns: AtomicU64,
    batch_us: AtomicU64,
}

impl Stats {
    /// What is held now.
    pub fn note(&self, in_hand: usize, waiting_tokens: usize) {
        self.in_hand.store(in_hand as u64, Ordering::Relaxed);
        self.waiting_tokens.store(waiting_tokens as u64, Ordering::Relaxed);
    }

    /// A request is over.
    pub fn on_finished(&self) {
        self.finished.fetch_add(1, Ordering::Relaxed);
    }

    /// A batch is over.
    pub fn on_batch(&self, tokens: u64, busy: Duration) {
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
        self.busy_ns
            .fetch_add(u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let newest_us = u64::try_from(busy.as_micros()).unwrap_or(u64::MAX);
        let mean_us = self.batch_us.load(Ordering::Relaxed);
        // One writer, so reading and storing apart loses nothing.
        let next_us = if mean_us == 0 {
            newest_us
        } else {
            mean_us - (mean_us >> MEAN_SHIFT) + (newest_us >> MEAN_SHIFT)
        };
        self.batch_us.store(next_us, Ordering::Relaxed);
    }

    /// The heart beat's part.
    #[must_use]
    pub fn beat(&self, model: &str, slots: u32, device: &str) -> WorkerBeat {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        WorkerBeat {
            model: model.to_owned(),
            slots,
            in_hand: u32::try_from(read(&self.in_hand)).unwrap_or(u32::MAX),
            waiting_tokens: read(&self.waiting_tokens),
            finished_total: read(&self.finished),
            tokens_total: read(&self.tokens),
            busy_ns_total: read(&self.busy_ns),
            batch_us: read(&self.batch_us),
            device: device.to_owned(),
            pid: std::process::id(),
        }
    }
}
