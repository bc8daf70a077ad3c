//! Who asks. Input: request headers. Output: the caller's grant, from memory while its signed identity lives, else from auth.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, header};
use bus::{Bus, Headers};
use moka::sync::Cache;
use process::Clock;
use schemas::error::{ErrorCode, Failure};
use schemas::policy::{self, Grant, PARTITIONS, Resolve, Resolved, Revoked};
use schemas::{subjects, wire};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::Mutex;

use crate::config::AuthorizeConfig;
use crate::metrics::Metrics;
use crate::permits::Permits;

/// A grant is not used when less than this is left of its identity: clocks differ a little.
const USELESS_BELOW_MS: u64 = 2_000;
/// Garbage keys remembered as unknown.
const MAX_UNKNOWN: u64 = 10_000;

/// A caller who has shown a good key.
#[derive(Debug)]
pub struct Caller {
    /// What the key may do.
    pub grant: Grant,
    /// What is left of its request limit here.
    pub permits: Arc<Permits>,
    key_sha256: [u8; 32],
    /// When to ask for a fresh identity, Unix milliseconds: half-way through what was left of this one.
    renew_at_ms: u64,
}

/// Whether a grant must be fresh or only alive.
#[derive(Clone, Copy)]
enum Need {
    Fresh,
    Alive,
}

/// Keys known to this gateway.
pub struct Authorizer {
    bus: Bus,
    clock: Clock,
    timeout: Duration,
    callers: Cache<String, Arc<Caller>>,
    permits: Cache<String, Arc<Permits>>,
    unknown: Cache<[u8; 32], ()>,
    /// One resolution at a time per partition of keys, so a burst of one key asks once.
    resolving: Vec<Mutex<()>>,
    metrics: Metrics,
}

/// A key as it came.
struct Presented<'a> {
    kid: &'a str,
    sha256: [u8; 32],
}

impl Authorizer {
    /// An authorizer that knows nobody yet.
    #[must_use]
    pub fn new(bus: Bus, clock: Clock, config: &AuthorizeConfig, metrics: Metrics) -> Self {
        let timeout = bus.request_timeout();
        Self {
            bus,
            clock,
            timeout,
            callers: Cache::new(config.max_keys),
            permits: Cache::new(config.max_keys),
            unknown: Cache::builder()
                .max_capacity(MAX_UNKNOWN)
                .time_to_live(Duration::from_millis(config.unknown_ttl_ms))
                .build(),
            resolving: (0..PARTITIONS).map(|_| Mutex::default()).collect(),
            metrics,
        }
    }

    /// Finds out who asks.
    ///
    /// # Errors
    /// `missing_key`, `invalid_key`, or `unavailable` when an unknown key cannot be asked for: never 401 then.
    pub async fn authorize(&self, headers: &HeaderMap) -> Result<Arc<Caller>, Failure> {
        let key = key_text(headers)?;
        let kid = policy::check_key(key).map_err(|_| invalid_key())?;
        let presented = Presented {
            kid,
            sha256: Sha256::digest(key.as_bytes()).into(),
        };
        if let Some(caller) = self.known(&presented, Need::Fresh) {
            return Ok(caller);
        }
        let _one = self.resolving[policy::partition(kid) as usize].lock().await;
        // Somebody may have asked while we waited.
        if let Some(caller) = self.known(&presented, Need::Fresh) {
            return Ok(caller);
        }
        if self.unknown.contains_key(&presented.sha256) {
            return Err(invalid_key());
        }
        match self.resolve(&presented).await {
            Ok(caller) => Ok(caller),
            // Auth is away: a grant that still lives is good enough.
            Err(failure) if failure.code == ErrorCode::Unavailable => {
                self.known(&presented, Need::Alive).ok_or(failure)
            }
            Err(failure) => Err(failure),
        }
    }

    fn known(&self, presented: &Presented<'_>, need: Need) -> Option<Arc<Caller>> {
        let caller = self.callers.get(presented.kid)?;
        let same: bool = caller.key_sha256.ct_eq(&presented.sha256).into();
        let ends_at_ms = match need {
            Need::Fresh => caller.renew_at_ms,
            Need::Alive => caller.grant.identity_expires_at_ms.saturating_sub(USELESS_BELOW_MS),
        };
        (same && self.clock.now_unix_ms() < ends_at_ms).then_some(caller)
    }

    async fn resolve(&self, presented: &Presented<'_>) -> Result<Arc<Caller>, Failure> {
        let request = Resolve {
            kid: presented.kid.to_owned(),
            key_sha256: policy::hex(&presented.sha256),
        };
        let count = |outcome: &str| self.metrics.resolved.with_label_values(&[outcome]).inc();
        let away = |error: &dyn std::fmt::Display| {
            count("unavailable");
            tracing::warn!(%error, kid = presented.kid, "key cannot be resolved");
            crate::dispatch::unavailable("keys cannot be checked now")
        };
        let payload = wire::encode(&request).map_err(|error| away(&error))?;
        let subject = subjects::resolve(presented.kid);
        let reply = self
            .bus
            .request(&subject, Headers::new(), payload.into(), self.timeout)
            .await;
        let reply = reply.map_err(|error| away(&error))?;
        match wire::decode::<Resolved>(&reply.payload).map_err(|error| away(&error))? {
            Resolved::Granted(grant) => {
                count("granted");
                Ok(self.remember(presented, grant))
            }
            Resolved::Denied(failure) if failure.code == ErrorCode::InvalidKey => {
                count("denied");
                self.unknown.insert(presented.sha256, ());
                Err(invalid_key())
            }
            Resolved::Denied(failure) => {
                count("denied");
                Err(failure)
            }
        }
    }

    fn remember(&self, presented: &Presented<'_>, grant: Grant) -> Arc<Caller> {
        // Permits outlive the grant: a new identity is no new allowance.
        let permits = self
            .permits
            .get_with_by_ref(presented.kid, || Arc::new(Permits::default()));
        let now_ms = self.clock.now_unix_ms();
        let renew_at_ms = now_ms + grant.identity_expires_at_ms.saturating_sub(now_ms) / 2;
        let caller = Arc::new(Caller {
            grant,
            permits,
            key_sha256: presented.sha256,
            renew_at_ms,
        });
        self.callers.insert(presented.kid.to_owned(), Arc::clone(&caller));
        caller
    }

    /// A key was changed: what is known of older versions is void.
    pub fn on_revoked(&self, revoked: &Revoked) {
        if self
            .callers
            .get(&revoked.kid)
            .is_some_and(|known| known.grant.policy_version < revoked.policy_version)
        {
            self.callers.invalidate(&revoked.kid);
        }
        // The key may have been enabled, or have been made just after somebody tried it.
        self.unknown.invalidate_all();
    }

    /// The broker was away: what was revoked meanwhile was not heard.
    pub fn on_reconnected(&self) {
        self.callers.invalidate_all();
    }
}

fn key_text(headers: &HeaderMap) -> Result<&str, Failure> {
    let bearer = headers.get(header::AUTHORIZATION).map(|value| {
        let text = value.to_str().unwrap_or_default().trim();
        match text.split_at_checked(7) {
            Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer ") => key.trim(),
            _ => "",
        }
    });
    let named = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default().trim());
    bearer
        .or_else(|| named("x-api-key"))
        .or_else(|| named("api-key"))
        .ok_or_else(|| {
            Failure::new(
                ErrorCode::MissingKey,
                "no API key: send it as 'Authorization: Bearer <key>', 'x-api-key' or 'api-key'",
            )
        })
}

/// One text for every kind of bad key: the difference is nobody's business.
fn invalid_key() -> Failure {
    Failure::new(ErrorCode::InvalidKey, "the API key is not valid")
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn keys_come_in_three_headers() {
        let key = |name: &'static str, value: &'static str| {
            let pair = (HeaderName::from_static(name), HeaderValue::from_static(value));
            key_text(&HeaderMap::from_iter([pair]))
                .map(str::to_owned)
                .map_err(|failure| failure.code)
        };
        assert_eq!(key("authorization", "Bearer k").as_deref(), Ok("k"));
        assert_eq!(key("authorization", "bearer  k ").as_deref(), Ok("k"));
        assert_eq!(key("x-api-key", "k").as_deref(), Ok("k"));
        assert_eq!(key("api-key", "k").as_deref(), Ok("k"));
        assert_eq!(
            key("authorization", "Basic k").as_deref(),
            Ok(""),
            "refused later, as a malformed key"
        );
        assert_eq!(key("x-other", "k"), Err(ErrorCode::MissingKey));
    }
}
