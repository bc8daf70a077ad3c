//! Request limits. Input: a caller with a limit. Output: one permit, from the few held here or newly from auth, or a
//! refusal that says when to come back. The sum over all gateways is kept by auth, which hands the permits out.

use std::sync::{Mutex as StdMutex, MutexGuard, PoisonError};

use bus::Headers;
use schemas::error::{ErrorCode, Failure};
use schemas::policy::{Held, Hold, RequestLimit};
use schemas::{subjects, wire};
use tokio::sync::Mutex;

use crate::Gateway;
use crate::authorize::Caller;

/// Permits are taken ahead for this much of the limit's rate, in milliseconds: a busy key asks auth four times a second.
const AHEAD_MS: u64 = 250;
/// At most this part of a burst is taken ahead, so that one gateway does not keep it from others.
const MOST_OF_BURST: u32 = 4;

/// The permits of one key held by this gateway.
#[derive(Debug, Default)]
pub struct Permits {
    held: StdMutex<Purse>,
    asking: Mutex<()>,
}

#[derive(Debug, Default)]
struct Purse {
    permits: u32,
    valid_until_us: u64,
    /// What auth said last, for the headers.
    remaining: u32,
    reset_at_us: u64,
    /// Refusals are remembered until then, so that a flood does not become a flood of questions.
    refused_until_us: u64,
    /// When auth was heard last.
    heard_us: Option<u64>,
}

/// What a client is told about its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitState {
    /// Requests per minute.
    pub limit: u32,
    /// Requests left now.
    pub remaining: u32,
    /// When the limit is whole again, in milliseconds.
    pub reset_ms: u64,
}

/// A permit with the limit's state, or the refusal with it.
pub(crate) type Admission = Result<Option<LimitState>, (Failure, Option<LimitState>)>;

/// How a purse answers.
enum Purchase {
    Paid(LimitState),
    Refused { retry_after_ms: u64, state: LimitState },
    Empty,
}

impl Permits {
    fn purse(&self) -> MutexGuard<'_, Purse> {
        // Plain numbers: whole at every moment.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Purse {
    fn state(&self, limit: RequestLimit, now_us: u64) -> LimitState {
        let permits = if self.valid_until_us > now_us { self.permits } else { 0 };
        LimitState {
            limit: limit.per_minute,
            remaining: self.remaining.saturating_add(permits),
            reset_ms: self.reset_at_us.saturating_sub(now_us).div_ceil(1_000),
        }
    }

    fn spend(&mut self, limit: RequestLimit, now_us: u64) -> Purchase {
        if self.permits > 0 && self.valid_until_us > now_us {
            self.permits -= 1;
            return Purchase::Paid(self.state(limit, now_us));
        }
        if self.refused_until_us > now_us {
            let retry_after_ms = (self.refused_until_us - now_us).div_ceil(1_000);
            return Purchase::Refused {
                retry_after_ms,
                state: self.state(limit, now_us),
            };
        }
        Purchase::Empty
    }

    fn fill(&mut self, held: &Held, now_us: u64) {
        *self = Self {
            permits: held.granted,
            valid_until_us: now_us + held.valid_ms * 1_000,
            remaining: held.remaining,
            reset_at_us: now_us + held.reset_ms * 1_000,
            refused_until_us: if held.granted == 0 {
                now_us + held.retry_after_ms * 1_000
            } else {
                0
            },
            heard_us: Some(now_us),
        };
    }
}

/// How many permits to take at once: one by one for small limits, ahead for large ones.
fn most(limit: RequestLimit) -> u32 {
    let ahead = u64::from(limit.per_minute) * AHEAD_MS / 60_000;
    u32::try_from(ahead)
        .unwrap_or(u32::MAX)
        .min(limit.burst / MOST_OF_BURST)
        .max(1)
}

impl Gateway {
    /// Takes one permit, `None` for a key without a limit.
    ///
    /// # Errors
    /// `rate_limited` with the wait; the limit's state goes to the client's headers in both cases.
    pub(crate) async fn admit(&self, caller: &Caller) -> Admission {
        let Some(limit) = caller.grant.request_limit else {
            return Ok(None);
        };
        let permits = &caller.permits;
        let first = permits.purse().spend(limit, self.clock.monotonic_us());
        if let Some(result) = settle(first) {
            return result;
        }
        let _one = permits.asking.lock().await;
        let second = permits.purse().spend(limit, self.clock.monotonic_us());
        if let Some(result) = settle(second) {
            return result;
        }
        let held = self.hold(&caller.grant.kid, most(limit)).await;
        let now_us = self.clock.monotonic_us();
        let mut purse = permits.purse();
        match held {
            Some(held) => purse.fill(&held, now_us),
            // Rate limits fail open for a while: a limiter that is away must not stop those who pay.
            None if fails_open(&purse, now_us, self.config.authorize.fail_open_ms) => {
                return Ok(Some(purse.state(limit, now_us)));
            }
            None => {
                return Err((
                    crate::dispatch::unavailable("request limits cannot be checked now"),
                    None,
                ));
            }
        }
        settle(purse.spend(limit, now_us)).unwrap_or(Ok(None))
    }

    async fn hold(&self, kid: &str, most: u32) -> Option<Held> {
        let payload = wire::encode(&Hold {
            kid: kid.to_owned(),
            least: 1,
            most,
        })
        .ok()?;
        let timeout = self.bus.request_timeout();
        let reply = self
            .bus
            .request(&subjects::hold(kid), Headers::new(), payload.into(), timeout)
            .await;
        let reply = reply
            .inspect_err(|error| tracing::warn!(%error, kid, "limiter does not answer"))
            .ok()?;
        wire::decode(&reply.payload)
            .inspect_err(|error| tracing::warn!(%error, kid, "limiter cannot be read"))
            .ok()
    }
}

fn fails_open(purse: &Purse, now_us: u64, fail_open_ms: u64) -> bool {
    purse
        .heard_us
        .is_some_and(|heard_us| now_us.saturating_sub(heard_us) < fail_open_ms * 1_000)
}

fn settle(purchase: Purchase) -> Option<Admission> {
    match purchase {
        Purchase::Paid(state) => Some(Ok(Some(state))),
        Purchase::Refused { retry_after_ms, state } => {
            let message = format!("the limit of {} requests a minute is reached", state.limit);
            let failure = Failure::new(ErrorCode::RateLimited, message).retry_after_ms(retry_after_ms);
            Some(Err((failure, Some(state))))
        }
        Purchase::Empty => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: RequestLimit = RequestLimit {
        per_minute: 60,
        burst: 10,
    };

    fn held(granted: u32, retry_after_ms: u64) -> Held {
        Held {
            granted,
            valid_ms: 1_000,
            remaining: 3,
            reset_ms: 2_000,
            retry_after_ms,
        }
    }

    #[test]
    fn permits_are_spent_expire_and_refusals_are_remembered() {
        let mut purse = Purse::default();
        assert!(matches!(purse.spend(LIMIT, 0), Purchase::Empty));
        purse.fill(&held(2, 0), 0);
        let Purchase::Paid(state) = purse.spend(LIMIT, 10) else {
            panic!("paid")
        };
        assert_eq!(
            state,
            LimitState {
                limit: 60,
                remaining: 4,
                reset_ms: 2_000
            }
        );
        assert!(
            matches!(purse.spend(LIMIT, 1_000_001), Purchase::Empty),
            "unused permits are lost"
        );
        purse.fill(&held(0, 500), 0);
        assert!(matches!(
            purse.spend(LIMIT, 100_000),
            Purchase::Refused {
                retry_after_ms: 400,
                ..
            }
        ));
        assert!(matches!(purse.spend(LIMIT, 500_001), Purchase::Empty));
        assert!(fails_open(&purse, 59_000_000, 60_000) && !fails_open(&purse, 61_000_000, 60_000));
    }

    #[test]
    fn small_limits_are_asked_one_by_one() {
        assert_eq!(most(LIMIT), 1);
        assert_eq!(
            most(RequestLimit {
                per_minute: 60_000,
                burst: 2_000
            }),
            250
        );
        assert_eq!(
            most(RequestLimit {
                per_minute: 60_000,
                burst: 100
            }),
            25
        );
    }
}
