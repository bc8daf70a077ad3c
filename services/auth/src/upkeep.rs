//! What must be done now and then. Input: time, and the connection's comings and goings. Output: a fresh signing key,
//! a clean bucket, no idle limits, no old tombstones, and true health of the store.

use std::sync::Arc;
use std::time::Duration;

use bus::Bus;
use process::{Component, Context};
use tokio::time::MissedTickBehavior;

use crate::authorize::Authority;
use crate::jwks::Jwks;

/// Milliseconds of a day.
const DAY_MS: u64 = 86_400_000;

/// One round after another.
pub(crate) struct Upkeep {
    /// Whose things are kept up.
    pub(crate) authority: Arc<Authority>,
    /// The bucket of public keys.
    pub(crate) jwks: Jwks,
    /// Health of the store.
    pub(crate) store: Component,
    /// Time between rounds.
    pub(crate) interval: Duration,
    /// Days that deleted keys stay.
    pub(crate) tombstone_days: u64,
}

impl Upkeep {
    /// Rounds at the interval, and one whenever the connection comes or goes, until the stop.
    pub(crate) async fn run(self, bus: Bus, context: Context) -> anyhow::Result<()> {
        let mut interval = tokio::time::interval(self.interval);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut connected = bus.connected();
        connected.mark_unchanged();
        loop {
            tokio::select! {
                () = context.shutdown.stopping() => return Ok(()),
                _ = interval.tick() => {}
                changed = connected.changed() => if changed.is_err() { return Ok(()) },
            }
            let is_connected = *connected.borrow_and_update();
            tokio::select! {
                () = context.shutdown.stopping() => return Ok(()),
                () = self.round(is_connected) => {}
            }
        }
    }

    /// Cancel-safe: each step stands by itself.
    async fn round(&self, is_connected: bool) {
        let authority = &self.authority;
        let limited = authority.permits.forget_idle();
        authority
            .metrics
            .limited_keys
            .set(i64::try_from(limited).unwrap_or(i64::MAX));
        if is_connected && let Err(error) = self.jwks.refresh(&authority.identities).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "signing keys not refreshed, trying again");
        }
        let store = authority.directory.store();
        let kept_ms = self.tombstone_days.saturating_mul(DAY_MS);
        let before_ms = authority.clock.now_unix_ms().saturating_sub(kept_ms);
        let checked = async {
            store.check().await?;
            store.purge_deleted_before(before_ms).await
        };
        match checked.await {
            Ok(purged) => {
                self.store.set_ready();
                if purged > 0 {
                    tracing::info!(purged, "tombstones of deleted keys removed");
                }
            }
            Err(error) => {
                authority.failed(&error);
                self.store.set_unready("the key store fails");
            }
        }
    }
}
