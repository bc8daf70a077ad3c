//! Who is this key, and may it ask now? Input: [`Resolve`] and [`Hold`]. Output: [`Resolved`] and [`Held`].
//!
//! Whatever is wrong with a key, the asker is told the same: the reason goes to our log and metrics only.

use std::sync::Arc;

use process::Clock;
use schemas::error::{ErrorCode, Failure};
use schemas::policy::{Grant, Held, Hold, KID_CHARS, KeyState, Resolve, Resolved};
use subtle::ConstantTimeEq;

use crate::directory::Directory;
use crate::identity::Identities;
use crate::metrics::{Denial, Metrics, Outcome};
use crate::pepper::{Peppers, unhex};
use crate::permits::Permits;
use crate::store::{KeyRow, StoreError};

/// When to ask again after a fault of ours or about a key that is not good (any more), in milliseconds:
/// long enough not to be hammered, short enough that nobody notices.
pub(crate) const RETRY_AFTER_MS: u64 = 1_000;

/// Everything a decision needs.
#[derive(Debug)]
pub(crate) struct Authority {
    /// Keys.
    pub(crate) directory: Directory,
    /// What stored macs are made with.
    pub(crate) peppers: Peppers,
    /// Signed identities.
    pub(crate) identities: Identities,
    /// Request permits.
    pub(crate) permits: Permits,
    /// The time.
    pub(crate) clock: Clock,
    /// Counters.
    pub(crate) metrics: Metrics,
}

impl Authority {
    /// What a key may do and the identity to send with its work, or one and the same refusal.
    pub(crate) async fn resolve(&self, asked: &Resolve) -> (Resolved, Outcome) {
        let now_ms = self.clock.now_unix_ms();
        let row = match self.verify(asked, now_ms).await {
            Ok(Ok(row)) => row,
            Ok(Err(reason)) => {
                self.metrics.denied(reason);
                let kid = shown(&asked.kid);
                tracing::debug!(kid, reason = reason.label(), "key denied");
                return (Resolved::Denied(invalid_key()), Outcome::Denied);
            }
            Err(error) => {
                self.failed(&error);
                return (Resolved::Denied(unavailable()), Outcome::Failed);
            }
        };
        match self.identities.of(&row.info, now_ms) {
            Ok((identity, signed)) => {
                self.metrics.identities.inc_by(u64::from(signed));
                let info = &row.info;
                let grant = Grant {
                    kid: info.kid.clone(),
                    tenant: info.tenant.clone(),
                    models: info.models.clone(),
                    scopes: info.scopes.clone(),
                    priority_ceiling: info.priority_ceiling,
                    request_limit: info.request_limit,
                    policy_version: info.policy_version,
                    identity: identity.token.clone(),
                    identity_expires_at_ms: identity.expires_at_ms,
                };
                (Resolved::Granted(grant), Outcome::Granted)
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "identity not signed");
                (Resolved::Denied(unavailable()), Outcome::Failed)
            }
        }
    }

    /// The key's row if the secret is right and the key works now.
    async fn verify(&self, asked: &Resolve, now_ms: u64) -> Result<Result<Arc<KeyRow>, Denial>, StoreError> {
        let Some(digest) = unhex(&asked.key_sha256).filter(|_| is_kid(&asked.kid)) else {
            return Ok(Err(Denial::Malformed));
        };
        let Some(row) = self.directory.find(&asked.kid).await? else {
            return Ok(Err(Denial::Unknown));
        };
        let mac = self.peppers.mac(row.pepper_version, &digest);
        let right = mac.is_some_and(|mac| bool::from(mac.ct_eq(&row.mac)));
        // A deleted key has no mac to compare with; all else is said only of who knows the secret.
        let denial = match working(&row, now_ms) {
            Err(Denial::Deleted) => Some(Denial::Deleted),
            _ if !right => Some(Denial::WrongSecret),
            working => working.err(),
        };
        Ok(match denial {
            Some(reason) => Err(reason),
            None => Ok(row),
        })
    }

    /// Permits for requests of a key; none for one that does not work now.
    pub(crate) async fn hold(&self, asked: &Hold) -> (Held, Outcome) {
        let row = if is_kid(&asked.kid) {
            self.directory.find(&asked.kid).await
        } else {
            Ok(None)
        };
        match row {
            Ok(Some(row)) if working(&row, self.clock.now_unix_ms()).is_ok() => {
                let limit = row.info.request_limit;
                let held = self.permits.take(&asked.kid, limit, asked.least, asked.most);
                self.metrics.permits.inc_by(u64::from(held.granted));
                let granted = held.granted > 0;
                (held, if granted { Outcome::Granted } else { Outcome::Denied })
            }
            Ok(_) => (nothing_held(), Outcome::Denied),
            Err(error) => {
                self.failed(&error);
                (nothing_held(), Outcome::Failed)
            }
        }
    }

    /// Notes a failure of the store.
    pub(crate) fn failed(&self, error: &StoreError) {
        self.metrics.store_errors.inc();
        tracing::error!(error = error as &dyn std::error::Error, "key store failed");
    }
}

/// No permits, for a reason that permits have nothing to do with.
pub(crate) fn nothing_held() -> Held {
    Held {
        granted: 0,
        valid_ms: 0,
        remaining: 0,
        reset_ms: RETRY_AFTER_MS,
        retry_after_ms: RETRY_AFTER_MS,
    }
}

/// What the asker is told of every key that is not good.
pub(crate) fn invalid_key() -> Failure {
    Failure::new(ErrorCode::InvalidKey, "The API key is not valid.")
}

/// What the asker is told when we cannot know.
pub(crate) fn unavailable() -> Failure {
    Failure::new(ErrorCode::Unavailable, "Keys cannot be checked now.").retry_after_ms(RETRY_AFTER_MS)
}

fn working(row: &KeyRow, now_ms: u64) -> Result<(), Denial> {
    match row.info.state {
        KeyState::Active => match row.info.expires_at_ms {
            Some(at_ms) if at_ms <= now_ms => Err(Denial::Expired),
            _ => Ok(()),
        },
        KeyState::Deleted => Err(Denial::Deleted),
        KeyState::Disabled | KeyState::Unknown => Err(Denial::Disabled),
    }
}

/// Whether a text can be a key id; nothing else is looked up.
pub(crate) fn is_kid(text: &str) -> bool {
    text.len() == KID_CHARS && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// A key id as it may stand in a log: what is none could be anything, a key included.
fn shown(kid: &str) -> &str {
    if is_kid(kid) { kid } else { "malformed" }
}
