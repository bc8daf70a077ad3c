//! What a worker makes on the broker. Input: its model. Output: the model's queue with its lanes, the streams it publishes
//! to, the model's card; made at the start and again after the broker was away, because queues live in its memory.

use std::time::Duration;

use bus::{Bus, JetStreamError};
use process::{CancellationToken, Component};
use schemas::fleet::ModelCard;
use schemas::{streams, wire};

use crate::dead;
use crate::hands::LANES;

/// Pause between two tries while the broker is not ready yet.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Makes and re-makes what the worker needs.
#[derive(Debug, Clone)]
pub(crate) struct Provisioner {
    bus: Bus,
    card: ModelCard,
    max_queued: i64,
}

/// Why something could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProvisionError {
    /// A stream or consumer.
    #[error("the broker did not make a queue as asked")]
    JetStream(#[from] JetStreamError),
    /// The model's card.
    #[error("the model's card was not stored")]
    Card(#[from] bus::KvError),
    /// The model's card.
    #[error("the model's card cannot be encoded")]
    Encode(#[from] wire::WireError),
}

impl Provisioner {
    /// A provisioner for one model.
    pub(crate) fn new(bus: Bus, card: ModelCard, max_queued: i64) -> Self {
        Self { bus, card, max_queued }
    }

    /// Makes everything.
    ///
    /// # Errors
    /// [`ProvisionError`].
    pub(crate) async fn provision(&self) -> Result<(), ProvisionError> {
        let slug = &self.card.slug;
        self.bus.ensure_stream(&streams::work(slug, self.max_queued)).await?;
        for lane in LANES {
            self.bus.ensure_consumer(&streams::work_lane(slug, lane)).await?;
        }
        self.bus.ensure_stream(&streams::cost()).await?;
        dead::provision(&self.bus).await?;
        self.write_card().await
    }

    /// Writes the card; the date of the first writing stays.
    async fn write_card(&self) -> Result<(), ProvisionError> {
        let bucket = self.bus.kv(&streams::models_bucket()).await?;
        let mut card = self.card.clone();
        if let Some(entry) = bucket.get(&card.slug).await?
            && let Ok(known) = wire::decode::<ModelCard>(&entry.value)
        {
            card.created_s = known.created_s;
            if known == card {
                return Ok(());
            }
        }
        bucket.put(&card.slug, wire::encode(&card)?.into()).await?;
        Ok(())
    }

    /// Follows the connection: after each loss everything is made again.
    ///
    /// # Errors
    /// Never; the signature is that of a task.
    pub(crate) async fn follow(self, component: Component, stop: CancellationToken) -> anyhow::Result<()> {
        // Everything was made on the present connection, before this task.
        component.set_ready();
        let mut connections = self.bus.connections(component, stop.clone()).skip_present();
        while let Some(component) = connections.next().await {
            while let Err(error) = self.provision().await {
                tracing::warn!(%error, cause = crate::compute::explain(&error), "queues not made again yet");
                tokio::select! {
                    () = tokio::time::sleep(RETRY_PAUSE) => {}
                    () = stop.cancelled() => return Ok(()),
                }
            }
            component.set_ready();
        }
        Ok(())
    }
}
