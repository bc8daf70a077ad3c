//! Watches queues and heartbeats and decides how many workers each model has. Input: beats, the broker's figures, the
//! pools of supervisors. Output: decisions on the EVENTS stream, orders to supervisors, metrics.
//!
//! Reading order: `observe.rs` → `decide.rs` (pure) → `act/`; `scale.rs` is the loop around them.

pub mod act;
pub mod beats;
pub mod config;
pub mod decide;
pub mod metrics;
pub mod observe;
pub mod scale;
pub mod signal;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bus::Bus;
use process::{Component, Context};
use schemas::{streams, subjects};

use crate::act::{Actuator, Local, Recommend};
use crate::config::{ActuatorKind, Config};
use crate::decide::Limits;
use crate::metrics::Metrics;
use crate::observe::Observer;
use crate::scale::Scaler;

/// Longest wait at the end for the last message to reach the broker.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The autoscaler as a service.
#[derive(Debug)]
pub struct Autoscaler;

impl process::Service for Autoscaler {
    const NAME: &'static str = "autoscaler";
    const DEFAULT_CONFIG: &'static str = include_str!("../default.toml");
    type Config = Config;

    fn serve(config: Config, context: Context) -> process::Serving {
        Box::pin(serve(config, context))
    }
}

async fn serve(config: Config, context: Context) -> anyhow::Result<()> {
    let health = context.health.component("bus");
    let bus = Bus::connect(&config.bus, &context.instance, None)
        .await
        .context("cannot reach the broker")?;
    bus.ensure_stream(&streams::events()).await?;
    let stale_after_ms = config.policy.stale_after_ms;
    let metrics = Metrics::register(&context.registry)?;
    let clock = context.clock.clone();
    let observer = Observer::new(bus.clone(), clock, metrics.clone(), stale_after_ms);
    let observer = Arc::new(observer);
    let parts = Parts {
        metrics,
        bus: bus.clone(),
        observer,
        context,
    };
    parts.follow(health).await?;
    match config.actuator.kind {
        ActuatorKind::Local => parts.run(&config, Local::new(bus.clone())).await,
        ActuatorKind::Recommend => {
            let limits = Limits {
                min: config.actuator.min_workers,
                max: config.actuator.max_workers,
            };
            parts.run(&config, Recommend::new(limits)).await;
        }
    }
    bus.close(CLOSE_TIMEOUT).await;
    Ok(())
}

/// What the tasks share.
struct Parts {
    bus: Bus,
    observer: Arc<Observer>,
    metrics: Metrics,
    context: Context,
}

impl Parts {
    /// Spawns what runs beside the loop until the stop.
    async fn follow(&self, health: Component) -> anyhow::Result<()> {
        let Context { tasks, shutdown, .. } = &self.context;
        let beats = self.bus.subscribe(subjects::BEATS, None).await?;
        let (observer, stop) = (self.observer.clone(), shutdown.clone());
        tasks.spawn("beats", async move {
            tokio::select! {
                () = stop.stopping() => {}
                () = observer.follow_beats(beats) => {}
            }
            Ok(())
        });
        let (observer, stop) = (self.observer.clone(), shutdown.clone());
        tasks.spawn("cards", async move {
            tokio::select! {
                () = stop.stopping() => Ok(()),
                ended = observer.follow_cards() => ended.context("model cards cannot be followed"),
            }
        });
        let following = bus::connected::follow(self.bus.clone(), health, shutdown.soft().clone());
        tasks.spawn("connection", following);
        let beating = bus::beat::run(self.bus.clone(), self.context.clone(), || None, shutdown.soft().clone());
        tasks.spawn("beat", beating);
        let metrics = self.metrics.clone();
        let obeying = bus::control::run(
            self.bus.clone(),
            self.context.clone(),
            move || metrics.malformed("control"),
            shutdown.soft().clone(),
        );
        tasks.spawn("orders", obeying);
        Ok(())
    }

    async fn run<A: Actuator>(self, config: &Config, actuator: A) {
        let health = self.context.health.component("loop");
        let scaler = Scaler {
            policy: config.policy,
            observer: self.observer,
            actuator,
            bus: self.bus,
            metrics: self.metrics,
            clock: self.context.clock,
        };
        scaler.run(self.context.shutdown, health).await;
    }
}
