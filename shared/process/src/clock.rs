//! Time as a value that is passed in: the system's clock in production, one that a test moves by hand; gives unix milliseconds and monotonic microseconds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where a component reads the time; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    fake: Option<Arc<FakeState>>,
}

#[derive(Debug)]
struct FakeState {
    start_unix_ms: u64,
    elapsed_us: AtomicU64,
}

impl Clock {
    /// The clock of the system.
    #[must_use]
    pub fn real() -> Self {
        Self::default()
    }

    /// Milliseconds since 1970 in UTC; may jump when the system's clock is set.
    #[must_use]
    pub fn now_unix_ms(&self) -> u64 {
        match &self.fake {
            Some(fake) => fake.start_unix_ms + fake.elapsed_us.load(Ordering::Acquire) / 1_000,
            // A clock before 1970 reads as 1970; u64 holds milliseconds for 580 million years.
            None => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_millis() as u64),
        }
    }

    /// Microseconds since an arbitrary start, the same for all real clocks of this process; never goes back.
    #[must_use]
    pub fn monotonic_us(&self) -> u64 {
        static ORIGIN: OnceLock<Instant> = OnceLock::new();
        match &self.fake {
            Some(fake) => fake.elapsed_us.load(Ordering::Acquire),
            None => ORIGIN.get_or_init(Instant::now).elapsed().as_micros() as u64,
        }
    }
}

/// The hand that moves a fake [`Clock`].
#[derive(Clone, Debug)]
pub struct FakeClock {
    state: Arc<FakeState>,
}

impl FakeClock {
    /// A clock that stands still at the given time.
    #[must_use]
    pub fn new(start_unix_ms: u64) -> Self {
        Self {
            state: Arc::new(FakeState {
                start_unix_ms,
                elapsed_us: AtomicU64::new(0),
            }),
        }
    }

    /// A clock that shows the time of this hand; all of them move together.
    #[must_use]
    pub fn clock(&self) -> Clock {
        Clock {
            fake: Some(Arc::clone(&self.state)),
        }
    }

    /// Moves both times forward.
    pub fn advance(&self, by: Duration) {
        self.state.elapsed_us.fetch_add(by.as_micros() as u64, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fake_time_moves_only_by_hand() {
        let hand = FakeClock::new(1_700_000_000_000);
        let (one, two) = (hand.clock(), hand.clock().clone());
        assert_eq!((one.now_unix_ms(), one.monotonic_us()), (1_700_000_000_000, 0));
        hand.advance(Duration::from_micros(1_500));
        assert_eq!((one.now_unix_ms(), one.monotonic_us()), (1_700_000_000_001, 1_500));
        assert_eq!((two.now_unix_ms(), two.monotonic_us()), (1_700_000_000_001, 1_500));
    }

    #[test]
    fn real_time_is_shared_and_does_not_go_back() {
        let (one, two) = (Clock::real(), Clock::real());
        let first = one.monotonic_us();
        assert!(two.monotonic_us() >= first);
        // 2024-01-01: a clock in seconds or microseconds would miss this range.
        assert!((1_704_067_200_000..10_000_000_000_000).contains(&one.now_unix_ms()));
    }
}
