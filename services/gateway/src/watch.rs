//! What the gateway listens to besides replies. Input: heartbeats, model cards, key changes, what the shared cache holds.
//! Output: the catalog, the authorizer and the caches kept current.

use std::sync::Arc;

use bus::{Bucket, Headers, JetStreamError, Message, Subscription, WatchEvent};
use process::CancellationToken;
use schemas::cache::{CacheHeld, CacheIndex, CachePurge};
use schemas::fleet::{Beat, ModelCard};
use schemas::policy::Revoked;
use schemas::{subjects, wire};
use serde::de::DeserializeOwned;

use crate::Gateway;

/// Reads one core subscription until the gateway stops.
///
/// # Errors
/// When the subscription ends although nobody asked for it.
pub(crate) async fn listen<T: DeserializeOwned>(
    gateway: Arc<Gateway>,
    mut subscription: Subscription,
    stop: CancellationToken,
    family: &'static str,
    take: fn(&Gateway, T),
) -> anyhow::Result<()> {
    loop {
        let message = tokio::select! {
            message = subscription.next() => message,
            () = stop.cancelled() => return Ok(()),
        };
        match message {
            Some(message) => {
                if let Some(value) = gateway.read(&message, family) {
                    take(&gateway, value);
                }
            }
            None if stop.is_cancelled() => return Ok(()),
            None => anyhow::bail!("the {family} subscription ended"),
        }
    }
}

impl Gateway {
    fn read<T: DeserializeOwned>(&self, message: &Message, family: &'static str) -> Option<T> {
        let read = wire::decode(&message.payload);
        read.inspect_err(|error| {
            self.metrics.malformed.with_label_values(&[family]).inc();
            tracing::warn!(%error, subject = message.subject(), "message cannot be read");
        })
        .ok()
    }
}

/// A worker's heart beat.
pub(crate) fn on_beat(gateway: &Gateway, beat: Beat) {
    gateway.catalog.on_beat(&beat, gateway.clock.monotonic_us());
}

/// A key was changed.
pub(crate) fn on_revoked(gateway: &Gateway, revoked: Revoked) {
    gateway.authorizer.on_revoked(&revoked);
}

/// The shared cache has new answers.
pub(crate) fn on_held(gateway: &Gateway, held: CacheHeld) {
    for fingerprint in held.fingerprints.as_chunks::<8>().0 {
        gateway.known_shared.insert(u64::from_le_bytes(*fingerprint));
    }
}

/// Answers are to be forgotten.
pub(crate) fn on_purge(gateway: &Gateway, purge: CachePurge) {
    match purge.tenant {
        None => gateway.local.invalidate_all(),
        Some(tenant) => {
            if let Err(error) = gateway.local.invalidate_entries_if(move |key, _| key.tenant == tenant) {
                tracing::error!(%error, "local cache cannot forget one tenant, forgetting all");
                gateway.local.invalidate_all();
            }
        }
    }
}

/// Follows the model cards until the gateway stops.
///
/// # Errors
/// When the bucket is gone for good.
pub(crate) async fn follow_models(
    gateway: Arc<Gateway>,
    bucket: Bucket,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let models = gateway.health.component("models");
    let mut watch = bucket.watch();
    loop {
        let event = tokio::select! {
            event = watch.next() => event,
            () = stop.cancelled() => return Ok(()),
        };
        match event {
            Ok(WatchEvent::Put(entry)) => match wire::decode::<ModelCard>(&entry.value) {
                Ok(card) => gateway.catalog.on_card(card),
                Err(error) => {
                    gateway.metrics.malformed.with_label_values(&["models"]).inc();
                    tracing::warn!(%error, key = entry.key, "model card cannot be read");
                }
            },
            Ok(WatchEvent::Delete { key, .. }) => gateway.catalog.on_card_deleted(&key),
            Ok(WatchEvent::InitialDone) => models.set_ready(),
            // What was known stays until a card says otherwise: a restarted broker must not make models unknown.
            Ok(WatchEvent::Reset) => {}
            Err(JetStreamError::NotFound { .. }) => {
                // The bucket went with the broker's store; workers write their cards anew.
                let spec = schemas::streams::models_bucket();
                watch = gateway.bus.kv(&spec).await?.watch();
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Follows the connection: what was not heard while it was away is asked anew.
///
/// # Errors
/// Never; the signature is that of a task.
pub(crate) async fn follow_connection(gateway: Arc<Gateway>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut connections = gateway.bus.connections(gateway.health.component("bus"), stop);
    while let Some(component) = connections.next().await {
        component.set_ready();
        gateway.authorizer.on_reconnected();
        gateway.ask_index().await;
    }
    Ok(())
}

impl Gateway {
    /// Asks the shared cache what it holds; without an answer its next announcements will tell.
    async fn ask_index(&self) {
        let limit = u32::try_from(self.config.cache.max_known_shared).unwrap_or(u32::MAX);
        let Ok(payload) = wire::encode(&CacheIndex { limit }) else {
            return;
        };
        let timeout = self.bus.request_timeout();
        match self
            .bus
            .request(subjects::CACHE_INDEX, Headers::new(), payload.into(), timeout)
            .await
        {
            Ok(message) => {
                if let Some(held) = self.read::<CacheHeld>(&message, "cache_index") {
                    on_held(self, held);
                }
            }
            Err(error) => tracing::debug!(%error, "shared cache does not say what it holds"),
        }
    }
}
