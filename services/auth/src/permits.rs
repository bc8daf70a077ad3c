//! Request permits. Input: a key's limit and how many permits a gateway asks for. Output: how many it gets.
//!
//! The specification: in any span of time, the permits given for a key are at most `burst` + `per_minute` × span.
//! Gateways admit requests only with permits, and permits are given here only, so the sum over all gateways keeps the
//! limit however many there are. A gateway may use its permits for a short time (`valid_ms`) and loses unused ones:
//! what was given counts as used. One limiter (governor, GCRA) holds all keys of one limit.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use governor::clock::Clock as _;
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::keyed::DashMapStateStore;
use governor::{NotUntil, Quota, RateLimiter};
use process::Clock;
use schemas::policy::{Held, RequestLimit};

/// Largest `per_minute` and `burst` of a limit: times in nanoseconds stay far inside 64 bits
/// (one per minute × a million = 6·10^16), and who needs more needs no limit.
pub(crate) const MAX_LIMIT: u32 = 1_000_000;

type Limiter = RateLimiter<String, DashMapStateStore<String>, Time, StateInformationMiddleware>;

/// The service's clock as governor wants it.
#[derive(Clone, Debug)]
struct Time(Clock);

impl governor::clock::Clock for Time {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Duration::from_micros(self.0.monotonic_us()).into()
    }
}

/// All limits and what is left of them.
#[derive(Debug)]
pub(crate) struct Permits {
    time: Time,
    valid_ms: u64,
    /// By `per_minute` and `burst`. Read while permits are taken, written when limiters come or go: a limiter that
    /// somebody takes from is never dropped under them, or its key would start afresh.
    limiters: RwLock<HashMap<(u32, u32), Limiter>>,
}

impl Permits {
    /// Permits by a clock, each of use for `valid_ms`.
    pub(crate) fn new(clock: Clock, valid_ms: u64) -> Self {
        Self {
            time: Time(clock),
            valid_ms,
            limiters: RwLock::default(),
        }
    }

    /// As many permits as there are, from `least` to `most`, else none.
    pub(crate) fn take(&self, kid: &str, limit: Option<RequestLimit>, least: u32, most: u32) -> Held {
        let least = least.max(1);
        let most = most.max(least);
        let Some(limit) = limit else {
            return Held {
                granted: most,
                valid_ms: self.valid_ms,
                remaining: u32::MAX,
                reset_ms: 0,
                retry_after_ms: 0,
            };
        };
        let id = (limit.per_minute.clamp(1, MAX_LIMIT), limit.burst.clamp(1, MAX_LIMIT));
        if least > id.1 {
            // More than a whole burst is never there; the honest answer is the longest wait there is.
            let whole_ms = ceil_ms(quota(id).burst_size_replenished_in());
            return self.none(0, whole_ms, whole_ms);
        }
        loop {
            {
                let limiters = self.limiters.read().unwrap_or_else(PoisonError::into_inner);
                if let Some(limiter) = limiters.get(&id) {
                    return self.take_from(limiter, kid, least, most);
                }
            }
            let mut limiters = self.limiters.write().unwrap_or_else(PoisonError::into_inner);
            limiters.entry(id).or_insert_with(|| limiter(id, self.time.clone()));
        }
    }

    fn take_from(&self, limiter: &Limiter, kid: &str, least: u32, most: u32) -> Held {
        let key = kid.to_owned();
        let mut wanted = least;
        let mut held = self.none(0, 0, 0);
        // First the fewest, which also tells what is left; then as much of that as is wanted. The second try fails only
        // when another asker was faster: then half of it, so the loop ends.
        while let Some(cells) = NonZeroU32::new(wanted) {
            match limiter.check_key_n(&key, cells) {
                Ok(Ok(state)) => {
                    held.granted += wanted;
                    held.remaining = state.remaining_burst_capacity();
                    let quota = state.quota();
                    let used = quota.burst_size().get().saturating_sub(held.remaining);
                    held.reset_ms = ceil_ms(quota.replenish_interval().saturating_mul(used));
                    wanted = (most - held.granted).min(held.remaining);
                }
                Ok(Err(refused)) if held.granted == 0 => {
                    return self.refused(&refused, least);
                }
                Ok(Err(_)) | Err(_) => wanted /= 2,
            }
        }
        held
    }

    fn refused(&self, refused: &NotUntil<Nanos>, least: u32) -> Held {
        let wait = refused.wait_time_from(self.time.now());
        let quota = refused.quota();
        // When `least` cells are there, so many others still miss to the full burst.
        let others = quota.burst_size().get().saturating_sub(least);
        let whole = wait.saturating_add(quota.replenish_interval().saturating_mul(others));
        let missing = whole.as_nanos().div_ceil(quota.replenish_interval().as_nanos());
        let missing = u32::try_from(missing).unwrap_or(u32::MAX);
        let remaining = quota.burst_size().get().saturating_sub(missing);
        // Zero would say "granted".
        self.none(remaining, ceil_ms(whole), ceil_ms(wait).max(1))
    }

    fn none(&self, remaining: u32, reset_ms: u64, retry_after_ms: u64) -> Held {
        Held {
            granted: 0,
            valid_ms: self.valid_ms,
            remaining,
            reset_ms,
            retry_after_ms,
        }
    }

    /// Forgets keys whose limit is whole again; gives the number of keys that are left.
    pub(crate) fn forget_idle(&self) -> usize {
        let mut limiters = self.limiters.write().unwrap_or_else(PoisonError::into_inner);
        limiters.retain(|_, limiter| {
            limiter.retain_recent();
            limiter.shrink_to_fit();
            !limiter.is_empty()
        });
        limiters.values().map(RateLimiter::len).sum()
    }
}

fn limiter(id: (u32, u32), time: Time) -> Limiter {
    Limiter::new(quota(id), DashMapStateStore::default(), time)
}

#[expect(clippy::expect_used, reason = "both numbers were clamped to 1 and more")]
fn quota((per_minute, burst): (u32, u32)) -> Quota {
    // Rounded up: never faster than the limit says.
    let interval_ns = 60_000_000_000_u64.div_ceil(u64::from(per_minute));
    let quota = Quota::with_period(Duration::from_nanos(interval_ns));
    let burst = NonZeroU32::new(burst).expect("the burst is 1 or more");
    quota.expect("the interval is 60 µs or more").allow_burst(burst)
}

fn ceil_ms(duration: Duration) -> u64 {
    duration.as_nanos().div_ceil(1_000_000) as u64
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use process::FakeClock;
    use proptest::prelude::*;

    use super::*;

    fn limit(per_minute: u32, burst: u32) -> Option<RequestLimit> {
        Some(RequestLimit { per_minute, burst })
    }

    #[test]
    fn as_many_as_there_are() {
        let clock = FakeClock::new(0);
        let permits = Permits::new(clock.clock(), 1_000);
        let sixty = limit(60, 10);
        let held = permits.take("k", sixty, 1, 4);
        assert_eq!((held.granted, held.remaining, held.reset_ms), (4, 6, 4_000));
        assert_eq!((held.valid_ms, held.retry_after_ms), (1_000, 0));
        let held = permits.take("k", sixty, 1, 100);
        assert_eq!((held.granted, held.remaining, held.reset_ms), (6, 0, 10_000));
        let held = permits.take("k", sixty, 2, 100);
        assert_eq!((held.granted, held.remaining), (0, 0));
        assert_eq!((held.reset_ms, held.retry_after_ms), (10_000, 2_000));
        clock.advance(Duration::from_millis(1_500));
        let held = permits.take("k", sixty, 2, 100);
        assert_eq!((held.granted, held.remaining), (0, 1), "not fewer than asked for");
        assert_eq!((held.reset_ms, held.retry_after_ms), (8_500, 500));
        clock.advance(Duration::from_millis(held.retry_after_ms));
        assert_eq!(permits.take("k", sixty, 2, 100).granted, 2);
        assert_eq!(permits.take("other", sixty, 10, 10).granted, 10);
    }

    #[test]
    fn odd_questions() {
        let permits = Permits::new(FakeClock::new(0).clock(), 1_000);
        let free = permits.take("k", None, 1, 7);
        assert_eq!((free.granted, free.remaining), (7, u32::MAX));
        assert_eq!(permits.take("k", limit(60, 5), 0, 0).granted, 1);
        let never = permits.take("k", limit(60, 5), 6, 6);
        assert_eq!((never.granted, never.retry_after_ms), (0, 5_000));
        // Limits that no key can have today still do no harm.
        assert_eq!(permits.take("k", limit(0, 0), 1, 9).granted, 1);
        assert_eq!(permits.take("k", limit(u32::MAX, u32::MAX), 1, 9).granted, 9);
        assert_eq!(permits.take("k", limit(1, u32::MAX), 1, 9).granted, 9);
    }

    #[test]
    fn idle_keys_are_forgotten_and_busy_ones_are_not() {
        let clock = FakeClock::new(0);
        let permits = Permits::new(clock.clock(), 1_000);
        permits.take("slow", limit(1, 10), 10, 10);
        permits.take("fast", limit(60_000, 10), 10, 10);
        assert_eq!(permits.forget_idle(), 2);
        clock.advance(Duration::from_secs(1));
        assert_eq!(permits.forget_idle(), 1);
        assert_eq!(permits.take("slow", limit(1, 10), 1, 10).granted, 0);
        clock.advance(Duration::from_secs(11 * 60));
        assert_eq!(permits.forget_idle(), 0);
        assert_eq!(permits.take("slow", limit(1, 10), 1, 10).granted, 10);
    }

    proptest! {
        /// The specification at the top of this file, for every span between two gifts.
        #[test]
        fn no_span_of_time_has_more_than_the_limit(
            per_minute in 1_u32..100_000,
            burst in 1_u32..500,
            asks in proptest::collection::vec((0_u64..200_000, 0_u32..8, 0_u32..64, any::<bool>()), 1..120),
        ) {
            let clock = FakeClock::new(0);
            let permits = Permits::new(clock.clock(), 1_000);
            let mut gifts: Vec<(u64, u64)> = Vec::new();
            let mut now_us = 0;
            for (wait_us, least, most, sweep) in asks {
                clock.advance(Duration::from_micros(wait_us));
                now_us += wait_us;
                if sweep {
                    permits.forget_idle();
                }
                let held = permits.take("k", limit(per_minute, burst), least, most);
                prop_assert!(held.granted == 0 || held.granted >= least);
                prop_assert!(held.granted <= most.max(least).max(1));
                prop_assert!(held.granted + held.remaining <= burst);
                prop_assert_eq!(held.granted == 0, held.retry_after_ms > 0);
                gifts.push((now_us, u64::from(held.granted)));
            }
            for (first, (from_us, _)) in gifts.iter().enumerate() {
                let mut given = 0;
                for (at_us, granted) in &gifts[first..] {
                    given += granted;
                    let refilled = u64::from(per_minute) * (at_us - from_us) / 60_000_000;
                    prop_assert!(given <= u64::from(burst) + refilled, "{given} since {from_us}");
                }
            }
        }

        /// After the announced wait the permits are there.
        #[test]
        fn the_announced_wait_is_enough(per_minute in 1_u32..10_000, burst in 1_u32..50, least in 1_u32..50) {
            prop_assume!(least <= burst);
            let clock = FakeClock::new(0);
            let permits = Permits::new(clock.clock(), 1_000);
            prop_assert_eq!(permits.take("k", limit(per_minute, burst), burst, burst).granted, burst);
            let refused = permits.take("k", limit(per_minute, burst), least, least);
            prop_assert_eq!(refused.granted, 0);
            clock.advance(Duration::from_millis(refused.retry_after_ms));
            prop_assert_eq!(permits.take("k", limit(per_minute, burst), least, least).granted, least);
        }
    }

    #[test]
    fn many_askers_at_once_share_one_burst() {
        let permits = Permits::new(FakeClock::new(0).clock(), 1_000);
        let given = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for asker in 0..8 {
                let (permits, given) = (&permits, &given);
                scope.spawn(move || {
                    for round in 0..200 {
                        if asker == 0 {
                            permits.forget_idle();
                        }
                        let held = permits.take("k", limit(1, 1_000), 1, 1 + round % 17);
                        given.fetch_add(u64::from(held.granted), Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(given.load(Ordering::Relaxed), 1_000);
    }
}
