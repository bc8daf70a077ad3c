//! Heartbeats. Input: a service's context and, for workers, how busy they are. Output: one `Beat` a second, until the stop
//! and once more then, so that others hear of the drain at once.

use std::time::{Duration, UNIX_EPOCH};

use process::health::Status;
use process::{CancellationToken, Context};
use schemas::fleet::{BEAT_INTERVAL_MS, Beat, InstanceState, WorkerBeat};
use schemas::{subjects, wire};
use tokio::time::MissedTickBehavior;

use crate::{Bus, BusError, Headers};

/// Beats until `stop`; a change of health is told at the next beat.
///
/// # Errors
/// Never; the signature is that of a task.
pub async fn run<W>(bus: Bus, context: Context, worker: W, stop: CancellationToken) -> anyhow::Result<()>
where
    W: Fn() -> Option<WorkerBeat> + Send,
{
    let subject = subjects::beat(context.service, &context.instance);
    let mut tick = tokio::time::interval(Duration::from_millis(BEAT_INTERVAL_MS));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut draining = context.shutdown.is_stopping();
    loop {
        let last = tokio::select! {
            _ = tick.tick() => false,
            () = context.shutdown.stopping(), if !draining => { draining = true; false }
            () = stop.cancelled() => true,
        };
        if let Err(error) = send(&bus, &subject, &beat(&context, worker())).await {
            tracing::debug!(%error, "heart beat not sent");
        }
        if last {
            return Ok(());
        }
    }
}

/// What a context says of itself.
#[must_use]
pub fn beat(context: &Context, worker: Option<WorkerBeat>) -> Beat {
    let started_at_ms = context
        .started_at
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis());
    let state = match context.health.report().status {
        Status::Ready => InstanceState::Ready,
        Status::Unready => InstanceState::Starting,
        Status::Draining => InstanceState::Draining,
    };
    Beat {
        service: context.service.to_owned(),
        instance: context.instance.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at_ms: u64::try_from(started_at_ms).unwrap_or(u64::MAX),
        state,
        worker,
    }
}

async fn send(bus: &Bus, subject: &str, beat: &Beat) -> Result<(), BusError> {
    match wire::encode(beat) {
        Ok(payload) => bus.publish(subject, Headers::new(), payload.into()).await,
        Err(error) => {
            tracing::error!(%error, "heart beat cannot be encoded");
            Ok(())
        }
    }
}
