//! Public keys for everyone who verifies identities. Input: signing keys and the time. Output: the bucket `JWKS`, where
//! each key lies before the first token signed by it is given out, until the last such token is dead.

use std::sync::Arc;

use bus::{Bucket, Bus, JetStreamError, KvError};
use bytes::Bytes;
use process::Clock;
use schemas::identity::Jwk;
use schemas::{streams, wire};

use crate::config::IdentityConfig;
use crate::identity::{Identities, IdentityError, SigningKey};
use crate::metrics::Metrics;

/// Why a round over the bucket failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JwksError {
    /// The bucket cannot be opened.
    #[error("cannot open bucket JWKS")]
    Open(#[from] JetStreamError),
    /// A key cannot be read or written.
    #[error("cannot use bucket JWKS")]
    Bucket(#[from] KvError),
    /// There is no new signing key.
    #[error("cannot make a signing key")]
    Key(#[from] IdentityError),
    /// The public key cannot be written as a message.
    #[error("cannot encode a public key")]
    Encode(#[from] wire::WireError),
}

/// The bucket and what belongs into it.
pub(crate) struct Jwks {
    bus: Bus,
    clock: Clock,
    config: IdentityConfig,
    metrics: Metrics,
}

impl Jwks {
    /// Opens nothing yet.
    pub(crate) fn new(bus: Bus, clock: Clock, config: IdentityConfig, metrics: Metrics) -> Self {
        Self {
            bus,
            clock,
            config,
            metrics,
        }
    }

    /// Brings the bucket up to date: a new signing key when it is time for one, the one in force if the bucket lost it,
    /// and no key that no living token needs.
    ///
    /// Whatever fails is tried again in the next round: the old key stays in force meanwhile.
    pub(crate) async fn refresh(&self, identities: &Identities) -> Result<(), JwksError> {
        let now_s = self.clock.now_unix_ms() / 1_000;
        // Each time anew, because a broker that lost its files lost the bucket too.
        let bucket = self.bus.kv(&streams::jwks_bucket()).await?;
        match identities.key() {
            Some(key) if now_s < key.rotate_at_s => {
                if bucket.get(&key.public.kid).await?.is_none() {
                    publish(&bucket, &key.public).await?;
                }
            }
            _ => {
                let (rotation_s, lifetime_s) = (self.config.rotation_s, self.config.lifetime_s);
                let key = SigningKey::generate(now_s, rotation_s, lifetime_s)?;
                publish(&bucket, &key.public).await?;
                tracing::info!(kid = key.public.kid, "signing key in force");
                self.metrics
                    .rotation_at
                    .set(i64::try_from(key.rotate_at_s).unwrap_or(i64::MAX));
                identities.install(Arc::new(key));
            }
        }
        remove_expired(&bucket, now_s).await
    }
}

async fn publish(bucket: &Bucket, public: &Jwk) -> Result<(), JwksError> {
    let value = Bytes::from(wire::encode(public)?);
    bucket.put(&public.kid, value).await?;
    Ok(())
}

/// Removes keys, of this process and of others before it, whose last token is dead.
async fn remove_expired(bucket: &Bucket, now_s: u64) -> Result<(), JwksError> {
    for kid in bucket.keys().await? {
        let Some(entry) = bucket.get(&kid).await? else {
            continue;
        };
        match wire::decode::<Jwk>(&entry.value) {
            Ok(public) if public.expires_at_s < now_s => {
                bucket.delete(&kid).await?;
                tracing::info!(kid, "expired signing key removed");
            }
            Ok(_) => {}
            // Perhaps of a newer program: not ours to remove.
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(kid, error, "entry of bucket JWKS cannot be read");
            }
        }
    }
    Ok(())
}
