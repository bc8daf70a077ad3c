//! The heartbeat. Input: this instance's health. Output: one `Beat` a second, and a last one when draining.

use std::time::{Duration, UNIX_EPOCH};

use bus::{Bus, BusError, Headers};
use process::Context;
use schemas::fleet::{BEAT_INTERVAL_MS, Beat, InstanceState};
use schemas::{subjects, wire};
use tokio::time::MissedTickBehavior;

/// Beats until the stop.
pub async fn beat(bus: Bus, context: Context) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(Duration::from_millis(BEAT_INTERVAL_MS));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shown = Ok(());
    loop {
        let stopping = tokio::select! {
            biased;
            () = context.shutdown.stopping() => true,
            _ = ticks.tick() => false,
        };
        let state = match (stopping, context.health.is_ready()) {
            (true, _) => InstanceState::Draining,
            (false, true) => InstanceState::Ready,
            (false, false) => InstanceState::Starting,
        };
        let sent = send(&bus, &context, state).await?;
        // Without a connection the next beat is as good; said once, not every second.
        if let (Ok(()), Err(error)) = (&shown, &sent) {
            tracing::debug!(%error, "heartbeat not sent");
        }
        shown = sent;
        if stopping {
            return Ok(());
        }
    }
}

async fn send(
    bus: &Bus,
    context: &Context,
    state: InstanceState,
) -> anyhow::Result<Result<(), BusError>> {
    let started = context
        .started_at
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let beat = Beat {
        service: context.service.to_owned(),
        instance: context.instance.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at_ms: started.as_millis() as u64,
        state,
        worker: None,
    };
    let subject = subjects::beat(context.service, &context.instance);
    let payload = wire::encode(&beat)?;
    Ok(bus.publish(&subject, Headers::new(), payload.into()).await)
}
