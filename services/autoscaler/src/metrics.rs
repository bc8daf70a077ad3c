//! Every metric of the autoscaler. Input: what was seen and decided. Output: Prometheus metrics.

use process::metrics::{MetricError, gauge, int_counter_vec, int_gauge};
use process::prometheus::{Gauge, IntCounterVec, IntGauge, Registry};
use schemas::fleet::{ScaleDecision, ScaleReason};

use crate::decide::PoolView;

/// The metrics. Figures are sums over all models, because the set of models is open; per model, the EVENTS stream tells.
#[derive(Debug, Clone)]
pub struct Metrics {
    decisions: IntCounterVec,
    holds: IntCounterVec,
    failures: IntCounterVec,
    malformed: IntCounterVec,
    wanted: IntGauge,
    ready: IntGauge,
    queued: IntGauge,
    utilization: Gauge,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(registry: &Registry) -> Result<Self, MetricError> {
        Ok(Self {
            decisions: int_counter_vec(
                registry,
                "portalis_scale_decisions_total",
                "Decisions to change the fleet, by reason.",
                &["reason"],
            )?,
            holds: int_counter_vec(
                registry,
                "portalis_scale_holds_total",
                "Looks at a model on which nothing could be decided, by the state of the signal that was not fresh.",
                &["signal", "state"],
            )?,
            failures: int_counter_vec(
                registry,
                "portalis_scale_failures_total",
                "Steps that failed, by step: observe, publish, apply.",
                &["step"],
            )?,
            malformed: int_counter_vec(
                registry,
                "portalis_autoscaler_malformed_messages_total",
                "Messages that could not be read, by kind of subject: beat, card, control.",
                &["subject"],
            )?,
            wanted: int_gauge(registry, "portalis_workers_wanted", "Workers asked for, all models.")?,
            ready: int_gauge(
                registry,
                "portalis_workers_ready",
                "Workers that are ready, all models.",
            )?,
            queued: int_gauge(
                registry,
                "worker_queue_depth",
                "Messages that no worker has, all models.",
            )?,
            utilization: gauge(
                registry,
                "portalis_cluster_utilization_percent",
                "Mean share of the time that ready workers were busy, in percent.",
            )?,
        })
    }

    /// Counts a decision.
    pub fn decided(&self, decision: &ScaleDecision) {
        self.decisions.with_label_values(&[reason(decision.reason)]).inc();
    }

    /// Counts a message that could not be read: `beat`, `card` or `control`.
    pub fn malformed(&self, subject: &'static str) {
        self.malformed.with_label_values(&[subject]).inc();
    }

    /// Counts a step that failed.
    pub fn failed(&self, step: Step) {
        let step = match step {
            Step::Observe => "observe",
            Step::Publish => "publish",
            Step::Apply => "apply",
        };
        self.failures.with_label_values(&[step]).inc();
    }

    /// Shows one look at all models.
    pub fn saw(&self, views: &[PoolView]) {
        let (mut wanted, mut ready, mut queued, mut busy) = (0_i64, 0_i64, 0_i64, 0.0);
        for view in views {
            wanted += i64::from(view.wanted);
            match view.workers.fresh() {
                Some(seen) => {
                    ready += i64::from(seen.ready);
                    busy += seen.busy * f64::from(seen.ready);
                }
                None => self.held("workers", view.workers.as_str()),
            }
            match view.queue.fresh() {
                Some(depth) => {
                    queued = queued.saturating_add(i64::try_from(depth.queued).unwrap_or(i64::MAX));
                }
                None => self.held("queue", view.queue.as_str()),
            }
        }
        self.wanted.set(wanted);
        self.ready.set(ready);
        self.queued.set(queued);
        let workers = u32::try_from(ready).unwrap_or(u32::MAX);
        let share = if workers > 0 { busy / f64::from(workers) } else { 0.0 };
        self.utilization.set(share * 100.0);
    }

    fn held(&self, signal: &str, state: &str) {
        self.holds.with_label_values(&[signal, state]).inc();
    }
}

/// A step that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Look at the pools.
    Observe,
    /// Publish a decision.
    Publish,
    /// Carry it out.
    Apply,
}

/// A reason's name, as in the published decision.
#[must_use]
pub fn reason(reason: ScaleReason) -> &'static str {
    match reason {
        ScaleReason::BelowMinimum => "below_minimum",
        ScaleReason::AboveMaximum => "above_maximum",
        ScaleReason::QueueTooOld => "queue_too_old",
        ScaleReason::Backlog => "backlog",
        ScaleReason::Idle => "idle",
        ScaleReason::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_their_wire_names() {
        for known in [
            ScaleReason::BelowMinimum,
            ScaleReason::AboveMaximum,
            ScaleReason::QueueTooOld,
            ScaleReason::Backlog,
            ScaleReason::Idle,
        ] {
            assert_eq!(serde_json::to_value(known).unwrap(), reason(known));
        }
    }
}
