//! What the shared tier is known to hold. Input: fingerprints it announces. Output: whether asking it is worth a round
//! trip. Two sets, the younger filled and the older dropped as a whole: bounded, and cheap for every announced answer.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::HashSet;
use process::Clock;

/// Fingerprints of answers in the shared tier; a wrong one costs a round trip, nothing more.
#[derive(Debug)]
pub struct KnownShared {
    sets: Mutex<Sets>,
    /// Most fingerprints of one set: half of all.
    capacity: usize,
    /// Answers do not live longer, so neither does a set.
    ttl_us: u64,
    clock: Clock,
}

#[derive(Debug, Default)]
struct Sets {
    young: HashSet<u64>,
    old: HashSet<u64>,
    young_since_us: u64,
}

impl KnownShared {
    /// Knows nothing yet; will know at most `capacity` fingerprints.
    #[must_use]
    pub fn new(capacity: usize, ttl: Duration, clock: Clock) -> Self {
        Self {
            sets: Mutex::default(),
            capacity: capacity.div_ceil(2),
            ttl_us: u64::try_from(ttl.as_micros()).unwrap_or(u64::MAX),
            clock,
        }
    }

    fn sets(&self) -> MutexGuard<'_, Sets> {
        // A set of numbers is whole after any panic.
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes one.
    pub fn insert(&self, fingerprint: u64) {
        let now_us = self.clock.monotonic_us();
        let mut sets = self.sets();
        if sets.young.len() >= self.capacity || now_us.saturating_sub(sets.young_since_us) > self.ttl_us {
            sets.old = std::mem::take(&mut sets.young);
            sets.young_since_us = now_us;
        }
        sets.young.insert(fingerprint);
    }

    /// Whether the shared tier said that it has it.
    #[must_use]
    pub fn contains(&self, fingerprint: u64) -> bool {
        let sets = self.sets();
        sets.young.contains(&fingerprint) || sets.old.contains(&fingerprint)
    }

    /// It was not there.
    pub fn remove(&self, fingerprint: u64) {
        let mut sets = self.sets();
        sets.young.remove(&fingerprint);
        sets.old.remove(&fingerprint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_known_within_the_bound() {
        let known = KnownShared::new(100, Duration::from_secs(60), Clock::real());
        for fingerprint in 0..1_000 {
            known.insert(fingerprint);
            assert!(known.contains(fingerprint));
        }
        let count = (0..1_000).filter(|fingerprint| known.contains(*fingerprint)).count();
        assert!((50..=100).contains(&count), "{count}");
        assert!((950..1_000).all(|fingerprint| known.contains(fingerprint)));
        known.remove(999);
        assert!(!known.contains(999));
    }

    #[test]
    fn what_is_older_than_two_lives_is_forgotten() {
        let time = process::FakeClock::new(0);
        let known = KnownShared::new(100, Duration::from_secs(60), time.clock());
        known.insert(1);
        for _ in 0..2 {
            time.advance(Duration::from_secs(61));
            known.insert(2);
        }
        assert!(known.contains(2) && !known.contains(1));
    }
}
