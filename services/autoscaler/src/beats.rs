//! The live table of instances. Input: heartbeats and when they arrived. Output: what the workers of a model do, with
//! its age, and which supervisors are there. Pure: the time is an argument.

use std::collections::{HashMap, VecDeque};

use schemas::fleet::{Beat, InstanceState, WorkerBeat};

use crate::decide::WorkersSeen;
use crate::signal::SignalState;

/// Window of the busy share and the capacity, in milliseconds: long enough to smooth a batch, short enough to see a burst.
const WINDOW_MS: u64 = 5_000;
/// Most samples kept per instance; at one beat a second the window holds 6, a faster sender is thinned by dropping the oldest.
const MAX_SAMPLES: usize = 16;
/// Most instances kept; a full table refuses newcomers until silent ones are forgotten.
const MAX_INSTANCES: usize = 8_192;
/// Silence after which an instance is forgotten, in milliseconds: far beyond staleness, so that stale can be told from missing.
pub const FORGET_AFTER_MS: u64 = 60_000;

/// Service name under which supervisors beat.
pub const SUPERVISOR: &str = "supervisor";

/// Who is there.
#[derive(Debug, Default)]
pub struct Beats {
    rows: HashMap<String, Row>,
}

#[derive(Debug)]
struct Row {
    beat: Beat,
    received_ms: u64,
    samples: VecDeque<Sample>,
}

/// A worker's counters at one moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at_ms: u64,
    finished: u64,
    busy_ns: u64,
}

/// What a worker did within the window.
#[derive(Debug, Clone, Copy, Default)]
struct Activity {
    wall_ms: u64,
    finished: u64,
    busy_ns: u64,
}

impl Beats {
    /// Notes a heartbeat; `false` when the table is full and the instance unknown.
    pub fn note(&mut self, beat: Beat, now_ms: u64) -> bool {
        let known = self.rows.contains_key(&beat.instance);
        if !known && self.rows.len() >= MAX_INSTANCES {
            return false;
        }
        let mut samples = self
            .rows
            .remove(&beat.instance)
            .filter(|row| row.beat.started_at_ms == beat.started_at_ms)
            .map(|row| row.samples)
            .unwrap_or_default();
        if let Some(worker) = &beat.worker {
            push_sample(&mut samples, worker, now_ms);
        }
        let row = Row {
            received_ms: now_ms,
            samples,
            beat,
        };
        self.rows.insert(row.beat.instance.clone(), row);
        true
    }

    /// Forgets who has been silent for long.
    pub fn forget_silent(&mut self, now_ms: u64) {
        self.rows
            .retain(|_, row| now_ms.saturating_sub(row.received_ms) <= FORGET_AFTER_MS);
    }

    /// Supervisors that are alive, in the order of their names.
    #[must_use]
    pub fn supervisors(&self, now_ms: u64, stale_after_ms: u64) -> Vec<String> {
        let mut found: Vec<String> = self
            .rows
            .values()
            .filter(|row| row.beat.service == SUPERVISOR && row.age_ms(now_ms) <= stale_after_ms)
            .map(|row| row.beat.instance.clone())
            .collect();
        found.sort_unstable();
        found
    }

    /// Models that live workers serve, each once, in order.
    #[must_use]
    pub fn models(&self, now_ms: u64, stale_after_ms: u64) -> Vec<String> {
        let mut models: Vec<String> = self
            .rows
            .values()
            .filter(|row| row.age_ms(now_ms) <= stale_after_ms)
            .filter_map(|row| Some(row.beat.worker.as_ref()?.model.clone()))
            .collect();
        models.sort_unstable();
        models.dedup();
        models
    }

    /// The workers of a model. One worker that beats is enough: the silent ones do not count, but hide nobody.
    #[must_use]
    pub fn workers(&self, model: &str, now_ms: u64, stale_after_ms: u64) -> SignalState<WorkersSeen> {
        let serves = |row: &&Row| matches!(&row.beat.worker, Some(worker) if worker.model == model);
        let rows: Vec<&Row> = self.rows.values().filter(serves).collect();
        let Some(age_ms) = rows.iter().map(|row| row.age_ms(now_ms)).min() else {
            return SignalState::Missing;
        };
        let live = rows.iter().copied().filter(|row| row.age_ms(now_ms) <= stale_after_ms);
        SignalState::of(sum(live), age_ms, stale_after_ms)
    }
}

impl Row {
    fn age_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.received_ms)
    }

    fn activity(&self) -> Activity {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else {
            return Activity::default();
        };
        Activity {
            wall_ms: last.at_ms.saturating_sub(first.at_ms),
            finished: last.finished.saturating_sub(first.finished),
            busy_ns: last.busy_ns.saturating_sub(first.busy_ns),
        }
    }
}

fn push_sample(samples: &mut VecDeque<Sample>, worker: &WorkerBeat, now_ms: u64) {
    // Counters only grow; one that shrinks belongs to another process of the same name.
    if samples
        .back()
        .is_some_and(|last| last.finished > worker.finished_total || last.busy_ns > worker.busy_ns_total)
    {
        samples.clear();
    }
    samples.push_back(Sample {
        at_ms: now_ms,
        finished: worker.finished_total,
        busy_ns: worker.busy_ns_total,
    });
    let old = |sample: &Sample| now_ms.saturating_sub(sample.at_ms) > WINDOW_MS;
    while samples.len() > MAX_SAMPLES || (samples.len() > 2 && samples.front().is_some_and(old)) {
        samples.pop_front();
    }
}

/// What live workers do together.
#[expect(
    clippy::cast_precision_loss,
    reason = "counts and nanoseconds of a few seconds are far below 2^53"
)]
fn sum<'a>(rows: impl Iterator<Item = &'a Row>) -> WorkersSeen {
    let mut seen = WorkersSeen::default();
    let mut all = Activity::default();
    let mut busy_shares = 0.0;
    for row in rows {
        match row.beat.state {
            InstanceState::Ready => {}
            InstanceState::Starting => {
                seen.starting += 1;
                continue;
            }
            InstanceState::Draining | InstanceState::Unknown => continue,
        }
        seen.ready += 1;
        let activity = row.activity();
        if activity.wall_ms > 0 {
            let share = activity.busy_ns as f64 / (activity.wall_ms as f64 * 1e6);
            busy_shares += share.min(1.0);
        }
        all.finished += activity.finished;
        all.busy_ns = all.busy_ns.saturating_add(activity.busy_ns);
    }
    if seen.ready > 0 {
        seen.busy = busy_shares / f64::from(seen.ready);
    }
    if all.finished > 0 && all.busy_ns > 0 {
        seen.capacity_per_s = Some(all.finished as f64 / (all.busy_ns as f64 / 1e9));
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALE_MS: u64 = 3_000;

    fn beat(instance: &str, state: InstanceState, finished: u64, busy_ms: u64) -> Beat {
        let worker = WorkerBeat {
            model: "m".to_owned(),
            slots: 8,
            in_hand: 0,
            waiting_tokens: 0,
            finished_total: finished,
            tokens_total: 0,
            busy_ns_total: busy_ms * 1_000_000,
            batch_us: 0,
            device: "cpu".to_owned(),
            pid: 1,
        };
        Beat {
            service: "gpu-worker".to_owned(),
            instance: instance.to_owned(),
            version: String::new(),
            started_at_ms: 1,
            state,
            worker: Some(worker),
        }
    }

    #[test]
    fn busy_and_capacity_are_measured_over_the_window() {
        let mut beats = Beats::default();
        for second in 0..20 {
            beats.note(
                beat("a", InstanceState::Ready, second * 50, second * 500),
                second * 1_000,
            );
            beats.note(beat("b", InstanceState::Ready, 7, 0), second * 1_000);
        }
        beats.note(beat("c", InstanceState::Starting, 0, 0), 19_000);
        beats.note(beat("d", InstanceState::Draining, 0, 0), 19_000);
        let seen = *beats.workers("m", 19_500, STALE_MS).fresh().unwrap();
        assert_eq!((seen.ready, seen.starting), (2, 1));
        assert!((seen.busy - 0.25).abs() < 1e-9, "{seen:?}");
        assert!((seen.capacity_per_s.unwrap() - 100.0).abs() < 1e-9, "{seen:?}");
    }

    #[test]
    fn silence_is_stale_then_forgotten_and_hides_nobody() {
        let mut beats = Beats::default();
        assert_eq!(beats.workers("m", 0, STALE_MS), SignalState::Missing);
        beats.note(beat("a", InstanceState::Ready, 0, 0), 0);
        beats.note(beat("b", InstanceState::Ready, 0, 0), 2_000);
        assert_eq!(beats.workers("m", 4_000, STALE_MS).fresh().unwrap().ready, 1);
        assert_eq!(
            beats.workers("m", 9_000, STALE_MS),
            SignalState::Stale { age_ms: 7_000 }
        );
        assert_eq!(beats.models(4_000, STALE_MS), ["m"]);
        assert!(beats.models(9_000, STALE_MS).is_empty());
        beats.forget_silent(100_000);
        assert_eq!(beats.workers("m", 100_000, STALE_MS), SignalState::Missing);
        assert_eq!(beats.workers("other", 0, STALE_MS), SignalState::Missing);
    }

    #[test]
    fn a_restart_under_the_same_name_starts_anew() {
        let mut beats = Beats::default();
        beats.note(beat("a", InstanceState::Ready, 1_000, 9_000), 0);
        beats.note(beat("a", InstanceState::Ready, 5, 10), 1_000);
        let seen = *beats.workers("m", 1_000, STALE_MS).fresh().unwrap();
        assert_eq!((seen.busy, seen.capacity_per_s), (0.0, None));
    }

    #[test]
    fn supervisors_are_those_that_beat() {
        let mut beats = Beats::default();
        let mut supervisor = beat("supervisor-1", InstanceState::Ready, 0, 0);
        supervisor.service = SUPERVISOR.to_owned();
        supervisor.worker = None;
        beats.note(supervisor, 0);
        assert_eq!(beats.supervisors(3_000, STALE_MS), ["supervisor-1"]);
        assert!(beats.supervisors(3_001, STALE_MS).is_empty());
    }
}
