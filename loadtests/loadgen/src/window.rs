//! One measured window. Input: latencies while it is open. Output: counts and quantiles.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;

/// Longest latency that is told apart, in nanoseconds: one minute, the gateway's own deadline.
const LONGEST_NS: u64 = 60_000_000_000;
/// Digits kept of a latency.
const DIGITS: u8 = 3;

/// Collects what happens while it is open.
#[derive(Debug)]
pub struct Recorder {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    open: bool,
    latencies_ns: Histogram<u64>,
    failures: BTreeMap<u16, u64>,
}

/// What a window saw.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Latencies of the answers with status 200, in nanoseconds.
    pub latencies_ns: Histogram<u64>,
    /// Other answers, by status.
    pub failures: BTreeMap<u16, u64>,
}

impl Recorder {
    /// A closed one.
    ///
    /// # Errors
    /// Never; the bounds are constants that fit.
    pub fn new() -> anyhow::Result<Self> {
        let latencies_ns = Histogram::new_with_bounds(1, LONGEST_NS, DIGITS).context("histogram bounds")?;
        Ok(Self {
            state: Mutex::new(State {
                open: false,
                latencies_ns,
                failures: BTreeMap::new(),
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on it counts.
    pub fn open(&self) {
        self.state().open = true;
    }

    /// From now on it does not; gives what was seen.
    pub fn close(&self) -> Seen {
        let mut state = self.state();
        state.open = false;
        let failures = std::mem::take(&mut state.failures);
        let empty = Histogram::new_from(&state.latencies_ns);
        Seen {
            latencies_ns: std::mem::replace(&mut state.latencies_ns, empty),
            failures,
        }
    }

    /// Notes an answer.
    pub fn note(&self, status: u16, latency: Duration) {
        let mut state = self.state();
        if !state.open {
            return;
        }
        if status == 200 {
            state
                .latencies_ns
                .saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(LONGEST_NS));
        } else {
            *state.failures.entry(status).or_default() += 1;
        }
    }
}

/// The value in the middle; of an even number the mean of the two.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_happens_in_the_window_counts() {
        let recorder = Recorder::new().unwrap();
        recorder.note(200, Duration::from_micros(1));
        recorder.open();
        recorder.note(200, Duration::from_micros(100));
        recorder.note(200, Duration::from_secs(3_600));
        recorder.note(429, Duration::from_micros(1));
        let seen = recorder.close();
        recorder.note(200, Duration::from_micros(1));
        assert_eq!(seen.latencies_ns.len(), 2);
        assert!(seen.latencies_ns.max() >= LONGEST_NS && seen.latencies_ns.min() <= 100_100);
        assert_eq!(seen.failures, BTreeMap::from([(429, 1)]));
        recorder.open();
        assert_eq!(recorder.close().latencies_ns.len(), 0);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
