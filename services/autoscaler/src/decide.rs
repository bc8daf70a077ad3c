//! How many workers a model should have. Input: what was seen, with its age, the policy and what is remembered of the
//! model. Output: at most one decision. Pure: the time is an argument.
//!
//! The rules, first match wins:
//! 1. Outside the pool's limits: go to the limit.
//! 2. A signal is stale or missing: hold.
//! 3. Work that the workers cannot clear in time, or that waits too long: more. Starting workers count as capacity.
//! 4. For a whole hold window the others could have done the work easily: one less.

use schemas::fleet::{ScaleDecision, ScaleInputs, ScaleReason};

use crate::config::Policy;
use crate::signal::SignalState;

/// Fewest and most workers of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Fewest.
    pub min: u32,
    /// Most; where it is below `min`, `min` counts.
    pub max: u32,
}

impl Limits {
    fn clamp(self, workers: u32) -> u32 {
        workers.clamp(self.min, self.max.max(self.min))
    }
}

/// A model's queue at the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueueDepth {
    /// Messages that no worker has.
    pub queued: u64,
    /// Messages in workers' hands.
    pub in_hand: u64,
    /// Upper bound of the oldest waiting message's age in milliseconds, 0 when none waits.
    pub oldest_ms: u64,
}

/// The workers of a model, from their heartbeats.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct WorkersSeen {
    /// Workers that are ready.
    pub ready: u32,
    /// Workers that say they are starting.
    pub starting: u32,
    /// Mean share of the time they were busy, 0 to 1.
    pub busy: f64,
    /// Requests that one worker finishes in one second of being busy, `None` = not measured yet.
    pub capacity_per_s: Option<f64>,
}

/// Everything known of one model now.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolView {
    /// The model's true name.
    pub model: String,
    /// Workers asked for.
    pub wanted: u32,
    /// Fewest and most.
    pub limits: Limits,
    /// Its queue.
    pub queue: SignalState<QueueDepth>,
    /// Its workers.
    pub workers: SignalState<WorkersSeen>,
}

/// What is remembered of one model between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolMemory {
    /// Since when fewer workers would have done.
    pub idle_since_ms: Option<u64>,
    /// When the fleet was last changed.
    pub changed_at_ms: Option<u64>,
}

impl PoolMemory {
    fn unchanged_for(&self, hold_ms: u64, now_ms: u64) -> bool {
        self.changed_at_ms.is_none_or(|at| now_ms.saturating_sub(at) >= hold_ms)
    }
}

/// Decides; gives the decision, if any, and what to remember. `now_ms` never goes back; `wall_ms` only stamps the decision.
#[must_use]
pub fn decide(
    policy: &Policy,
    view: &PoolView,
    memory: &PoolMemory,
    now_ms: u64,
    wall_ms: u64,
) -> (Option<ScaleDecision>, PoolMemory) {
    let mut memory = *memory;
    let change = correct(policy, view, &memory, now_ms)
        .or_else(|| react(policy, view, &mut memory, now_ms))
        .filter(|(to, _)| *to != view.wanted);
    let decision = change.map(|(to, reason)| {
        memory = PoolMemory {
            idle_since_ms: None,
            changed_at_ms: Some(now_ms),
        };
        ScaleDecision {
            model: view.model.clone(),
            from: view.wanted,
            to,
            reason,
            observed: observed(view),
            decided_at_ms: wall_ms,
        }
    });
    (decision, memory)
}

/// Rule 1. An order that was refused is not repeated before the hold is over.
fn correct(policy: &Policy, view: &PoolView, memory: &PoolMemory, now_ms: u64) -> Option<(u32, ScaleReason)> {
    let to = view.limits.clamp(view.wanted);
    if to == view.wanted || !memory.unchanged_for(policy.up_hold_ms, now_ms) {
        return None;
    }
    let reason = if to > view.wanted {
        ScaleReason::BelowMinimum
    } else {
        ScaleReason::AboveMaximum
    };
    Some((to, reason))
}

/// Rules 2 to 4.
fn react(policy: &Policy, view: &PoolView, memory: &mut PoolMemory, now_ms: u64) -> Option<(u32, ScaleReason)> {
    // Nobody beats for a model that nobody was asked to serve: that is data, and how a model wakes from zero.
    let asleep = WorkersSeen::default();
    let workers = view.workers.fresh().or((view.wanted == 0).then_some(&asleep));
    let (Some(queue), Some(workers)) = (view.queue.fresh(), workers) else {
        memory.idle_since_ms = None;
        return None;
    };
    if let Some(more) = increase(policy, view, queue, workers) {
        memory.idle_since_ms = None;
        return memory.unchanged_for(policy.up_hold_ms, now_ms).then_some(more);
    }
    if !is_idle(policy, view, queue, workers) {
        memory.idle_since_ms = None;
        return None;
    }
    let since = *memory.idle_since_ms.get_or_insert(now_ms);
    let held = now_ms.saturating_sub(since) >= policy.idle_hold_ms && memory.unchanged_for(policy.idle_hold_ms, now_ms);
    held.then(|| (view.limits.clamp(view.wanted.saturating_sub(1)), ScaleReason::Idle))
}

/// Rule 3: the workers needed, if more than are wanted.
fn increase(policy: &Policy, view: &PoolView, queue: &QueueDepth, workers: &WorkersSeen) -> Option<(u32, ScaleReason)> {
    let by_backlog = workers
        .capacity_per_s
        .map_or(0, |capacity| needed(policy, queue, capacity));
    // Age says that more are needed, not how many: one step, and only when no step is still under way.
    let none_starting = workers.starting == 0 && workers.ready >= view.wanted;
    let waits = queue.queued > 0 && (queue.oldest_ms > policy.max_queue_age_ms || view.wanted == 0);
    let by_age = if waits && none_starting {
        view.wanted.saturating_add(1)
    } else {
        0
    };
    let reason = if by_backlog >= by_age {
        ScaleReason::Backlog
    } else {
        ScaleReason::QueueTooOld
    };
    let to = view.limits.clamp(by_backlog.max(by_age));
    (to > view.wanted).then_some((to, reason))
}

/// Workers that clear all known work within the target.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts far below 2^53; the cast of a float saturates and the result is clamped to the pool's limits"
)]
fn needed(policy: &Policy, queue: &QueueDepth, capacity_per_s: f64) -> u32 {
    let work = queue.queued.saturating_add(queue.in_hand) as f64;
    let per_worker = capacity_per_s * policy.drain_target_ms as f64 / 1_000.0;
    if per_worker.is_finite() && per_worker > 0.0 {
        (work / per_worker).ceil() as u32
    } else {
        0
    }
}

/// Rule 4's condition: one worker less would still be busy for less than the target share.
fn is_idle(policy: &Policy, view: &PoolView, queue: &QueueDepth, workers: &WorkersSeen) -> bool {
    let settled = workers.starting == 0 && workers.ready >= view.wanted;
    if view.wanted <= view.limits.min || queue.queued > 0 || !settled {
        return false;
    }
    let rest = view.wanted - 1;
    if rest == 0 {
        return queue.in_hand == 0 && workers.busy <= 0.0;
    }
    // The survivors take over the work of the one that goes; without this check n and n-1 would alternate.
    workers.busy * f64::from(workers.ready) / f64::from(rest) < policy.max_busy_after_decrease
}

fn observed(view: &PoolView) -> ScaleInputs {
    let queue = view.queue.fresh().copied().unwrap_or_default();
    let workers = view.workers.fresh().copied().unwrap_or_default();
    ScaleInputs {
        queued: queue.queued,
        in_hand: queue.in_hand,
        oldest_ms: queue.oldest_ms,
        ready_workers: workers.ready,
        starting_workers: view.wanted.saturating_sub(workers.ready),
        busy: workers.busy,
    }
}

#[cfg(test)]
mod tests;
