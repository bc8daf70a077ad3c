//! The loop. Input: the observer and an actuator. Output: once a second, decisions that are published, logged, counted and
//! carried out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bus::{Bus, Headers};
use process::{Clock, Component, Shutdown};
use schemas::fleet::ScaleDecision;
use schemas::{headers, ids, subjects, wire};
use tokio::time::MissedTickBehavior;

use crate::act::{Actuator, Pool};
use crate::config::Policy;
use crate::decide::{PoolMemory, PoolView, decide};
use crate::metrics::{Metrics, Step, reason};
use crate::observe::Observer;

/// Time between two looks: heartbeats come once a second, so looking more often sees nothing new.
const TICK: Duration = Duration::from_secs(1);
/// Longest wait for the broker to store a decision.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(2);

/// The loop and what it works with.
#[derive(Debug)]
pub struct Scaler<A> {
    /// When the fleet changes.
    pub policy: Policy,
    /// What is seen.
    pub observer: Arc<Observer>,
    /// Who changes the fleet.
    pub actuator: A,
    /// Where decisions go.
    pub bus: Bus,
    /// What is counted.
    pub metrics: Metrics,
    /// Time stamps of decisions.
    pub clock: Clock,
}

impl<A: Actuator> Scaler<A> {
    /// Looks, decides and acts until the stop.
    pub async fn run(self, shutdown: Shutdown, health: Component) {
        let mut memory: HashMap<String, PoolMemory> = HashMap::new();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        health.set_ready();
        loop {
            tokio::select! {
                biased;
                () = shutdown.stopping() => return,
                _ = ticks.tick() => {}
            }
            // A look takes at most a few seconds, each wait inside has its own limit; the stop does not wait for it.
            tokio::select! {
                biased;
                () = shutdown.stopping() => return,
                () = self.tick(&mut memory) => {}
            }
        }
    }

    async fn tick(&self, memory: &mut HashMap<String, PoolMemory>) {
        self.observer.forget_old();
        let pools = match self.actuator.pools(&self.observer).await {
            Ok(pools) => pools,
            Err(error) => {
                self.metrics.failed(Step::Observe);
                tracing::warn!(error = chain(&error), "pools are not known, holding");
                return;
            }
        };
        let looks = pools.iter().map(|pool| self.look(&pool.model));
        futures_util::future::join_all(looks).await;
        let views: Vec<PoolView> = pools.into_iter().map(|pool| self.view(pool)).collect();
        self.metrics.saw(&views);
        memory.retain(|model, _| views.iter().any(|view| view.model == *model));
        for view in &views {
            let remembered = memory.entry(view.model.clone()).or_default();
            let wall_ms = self.clock.now_unix_ms();
            let (decision, next) = decide(&self.policy, view, remembered, self.observer.now_ms(), wall_ms);
            *remembered = next;
            if let Some(decision) = decision {
                self.carry_out(&decision).await;
            }
        }
    }

    async fn look(&self, model: &str) {
        if let Err(error) = self.observer.look_at_queue(model).await {
            self.metrics.failed(Step::Observe);
            tracing::debug!(model, error = chain(&error), "queue cannot be seen");
        }
    }

    fn view(&self, pool: Pool) -> PoolView {
        PoolView {
            queue: self.observer.queue(&pool.model),
            workers: self.observer.workers(&pool.model),
            model: pool.model,
            wanted: pool.wanted,
            limits: pool.limits,
        }
    }

    async fn carry_out(&self, decision: &ScaleDecision) {
        let observed = &decision.observed;
        tracing::info!(
            model = decision.model,
            from = decision.from,
            to = decision.to,
            reason = reason(decision.reason),
            queued = observed.queued,
            in_hand = observed.in_hand,
            oldest_ms = observed.oldest_ms,
            ready_workers = observed.ready_workers,
            busy = observed.busy,
            "scale decision"
        );
        self.metrics.decided(decision);
        // An unpublished decision is still right: the fleet does not wait for its history.
        if let Err(error) = self.publish(decision).await {
            self.metrics.failed(Step::Publish);
            tracing::warn!(
                model = decision.model,
                error = format!("{error:#}"),
                "scale decision not stored"
            );
        }
        if let Err(error) = self.actuator.apply(decision).await {
            self.metrics.failed(Step::Apply);
            tracing::warn!(
                model = decision.model,
                error = chain(&error),
                "scale decision not carried out"
            );
        }
    }

    async fn publish(&self, decision: &ScaleDecision) -> anyhow::Result<()> {
        let slug = ids::model_slug(&decision.model);
        let id = format!("{slug}:{}", decision.decided_at_ms);
        let body = wire::encode(decision)?;
        self.bus
            .publish_acked(
                &subjects::scale(&slug),
                Headers::new().with(headers::MESSAGE_ID, id),
                body.into(),
                PUBLISH_TIMEOUT,
            )
            .await?;
        Ok(())
    }
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
