//! Tables and properties of the decision.

use proptest::prelude::*;

use super::*;

fn policy() -> Policy {
    Policy {
        drain_target_ms: 2_000,
        max_queue_age_ms: 500,
        up_hold_ms: 3_000,
        idle_hold_ms: 60_000,
        max_busy_after_decrease: 0.6,
        stale_after_ms: 3_000,
    }
}

fn view(wanted: u32, queue: QueueDepth, workers: WorkersSeen) -> PoolView {
    PoolView {
        model: "m".to_owned(),
        wanted,
        limits: Limits { min: 1, max: 4 },
        queue: SignalState::Fresh(queue),
        workers: SignalState::Fresh(workers),
    }
}

fn queue(queued: u64, in_hand: u64, oldest_ms: u64) -> QueueDepth {
    QueueDepth {
        queued,
        in_hand,
        oldest_ms,
    }
}

fn workers(ready: u32, busy: f64) -> WorkersSeen {
    WorkersSeen {
        ready,
        starting: 0,
        busy,
        capacity_per_s: Some(100.0),
    }
}

fn outcome(view: &PoolView, memory: &PoolMemory, now_ms: u64) -> Option<(u32, ScaleReason)> {
    decide(&policy(), view, memory, now_ms, 0)
        .0
        .map(|decision| (decision.to, decision.reason))
}

#[test]
fn the_table() {
    let fresh = PoolMemory::default();
    let just_changed = PoolMemory {
        idle_since_ms: None,
        changed_at_ms: Some(99_000),
    };
    let long_idle = PoolMemory {
        idle_since_ms: Some(0),
        changed_at_ms: Some(0),
    };
    let unmeasured = WorkersSeen {
        capacity_per_s: None,
        ..workers(1, 0.9)
    };
    let quiet = queue(0, 0, 0);
    let cases = [
        ("steady", view(1, quiet, workers(1, 0.5)), fresh, None),
        (
            "below the minimum",
            view(0, quiet, workers(0, 0.0)),
            fresh,
            Some((1, ScaleReason::BelowMinimum)),
        ),
        (
            "above the maximum",
            view(9, quiet, workers(9, 0.9)),
            fresh,
            Some((4, ScaleReason::AboveMaximum)),
        ),
        (
            "an order is not repeated at once",
            view(0, quiet, workers(0, 0.0)),
            just_changed,
            None,
        ),
        (
            "2 s of work is in time",
            view(1, queue(150, 50, 10), workers(1, 1.0)),
            fresh,
            None,
        ),
        (
            "more is not",
            view(1, queue(151, 50, 10), workers(1, 1.0)),
            fresh,
            Some((2, ScaleReason::Backlog)),
        ),
        (
            "as many as it takes",
            view(1, queue(450, 50, 10), workers(1, 1.0)),
            fresh,
            Some((3, ScaleReason::Backlog)),
        ),
        (
            "but not more than may be",
            view(1, queue(9_000, 0, 10), workers(1, 1.0)),
            fresh,
            Some((4, ScaleReason::Backlog)),
        ),
        (
            "starting workers are capacity",
            view(3, queue(450, 50, 10), workers(1, 1.0)),
            fresh,
            None,
        ),
        (
            "one step when work waits too long",
            view(1, queue(1, 0, 501), workers(1, 1.0)),
            fresh,
            Some((2, ScaleReason::QueueTooOld)),
        ),
        (
            "also when nothing was measured",
            view(1, queue(9, 0, 501), unmeasured),
            fresh,
            Some((2, ScaleReason::QueueTooOld)),
        ),
        (
            "no second step while one is under way",
            view(2, queue(1, 0, 9_000), workers(1, 1.0)),
            fresh,
            None,
        ),
        (
            "nor right after one",
            view(2, queue(1, 0, 9_000), workers(2, 1.0)),
            just_changed,
            None,
        ),
        ("idle, but not for long", view(2, quiet, workers(2, 0.1)), fresh, None),
        (
            "idle for long",
            view(2, quiet, workers(2, 0.1)),
            long_idle,
            Some((1, ScaleReason::Idle)),
        ),
        (
            "not below the minimum",
            view(1, quiet, workers(1, 0.0)),
            long_idle,
            None,
        ),
        (
            "not when the other would be busy",
            view(2, quiet, workers(2, 0.31)),
            long_idle,
            None,
        ),
        (
            "not while work waits",
            view(2, queue(1, 0, 1), workers(2, 0.0)),
            long_idle,
            None,
        ),
        (
            "not while one is starting",
            view(3, quiet, workers(2, 0.0)),
            long_idle,
            None,
        ),
    ];
    for (name, view, memory, expected) in cases {
        assert_eq!(outcome(&view, &memory, 100_000), expected, "{name}");
    }
}

#[test]
fn data_that_is_old_or_absent_holds() {
    let long_idle = PoolMemory {
        idle_since_ms: Some(0),
        changed_at_ms: None,
    };
    let mut waiting = view(2, queue(9_000, 0, 60_000), workers(2, 1.0));
    let mut idle = view(2, queue(0, 0, 0), workers(2, 0.0));
    for view in [&mut waiting, &mut idle] {
        assert!(outcome(view, &long_idle, 100_000).is_some());
        view.queue = SignalState::Stale { age_ms: 9_000 };
        assert_eq!(outcome(view, &long_idle, 100_000), None);
        view.queue = SignalState::Missing;
        assert_eq!(outcome(view, &long_idle, 100_000), None);
    }
    idle.queue = SignalState::Fresh(queue(0, 0, 0));
    idle.workers = SignalState::Missing;
    let (decision, memory) = decide(&policy(), &idle, &long_idle, 100_000, 0);
    assert_eq!(
        (decision, memory.idle_since_ms),
        (None, None),
        "idleness must be seen, not assumed"
    );
}

#[test]
fn a_model_wakes_from_zero_and_goes_back() {
    let mut view = view(0, queue(1, 0, 0), WorkersSeen::default());
    view.limits.min = 0;
    view.workers = SignalState::Missing;
    let memory = PoolMemory::default();
    assert_eq!(outcome(&view, &memory, 100_000), Some((1, ScaleReason::QueueTooOld)));
    view.wanted = 1;
    view.queue = SignalState::Fresh(queue(0, 0, 0));
    view.workers = SignalState::Fresh(workers(1, 0.0));
    let long_idle = PoolMemory {
        idle_since_ms: Some(0),
        changed_at_ms: None,
    };
    assert_eq!(outcome(&view, &long_idle, 100_000), Some((0, ScaleReason::Idle)));
}

#[test]
fn a_decision_carries_what_was_seen() {
    let view = view(
        2,
        queue(900, 7, 20),
        WorkersSeen {
            starting: 1,
            ..workers(1, 0.75)
        },
    );
    let (decision, _) = decide(&policy(), &view, &PoolMemory::default(), 5, 1_234);
    let decision = decision.unwrap();
    assert_eq!((decision.model.as_str(), decision.from, decision.to), ("m", 2, 4));
    assert_eq!(decision.decided_at_ms, 1_234);
    let expected = ScaleInputs {
        queued: 900,
        in_hand: 7,
        oldest_ms: 20,
        ready_workers: 1,
        starting_workers: 1,
        busy: 0.75,
    };
    assert_eq!(decision.observed, expected);
}

/// A pool that is given what it asks for: each worker does `capacity` requests a second, a start takes `start_ticks`.
struct Pool {
    wanted: u32,
    ready: u32,
    waiting: f64,
    start_ticks: u32,
    starting_for: u32,
}

impl Pool {
    /// One second with `load` new requests; what the autoscaler would see after it.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn second(&mut self, load: f64, capacity: f64) -> PoolView {
        if self.ready < self.wanted {
            self.starting_for += 1;
            if self.starting_for >= self.start_ticks {
                self.ready = self.wanted;
                self.starting_for = 0;
            }
        } else {
            self.ready = self.wanted;
        }
        let able = capacity * f64::from(self.ready);
        let work = self.waiting + load;
        let done = work.min(able);
        self.waiting = work - done;
        let oldest_ms = if able > 0.0 {
            self.waiting / able * 1_000.0
        } else {
            60_000.0
        };
        let seen = WorkersSeen {
            ready: self.ready,
            starting: self.wanted - self.ready,
            busy: if able > 0.0 { done / able } else { 0.0 },
            capacity_per_s: Some(capacity),
        };
        let depth = queue(
            self.waiting as u64,
            0,
            if self.waiting >= 1.0 { oldest_ms as u64 } else { 0 },
        );
        PoolView {
            limits: Limits { min: 1, max: 8 },
            ..view(self.wanted, depth, seen)
        }
    }
}

fn any_view() -> impl Strategy<Value = PoolView> {
    let depth =
        (0..5_000_u64, 0..500_u64, 0..100_000_u64).prop_map(|(queued, in_hand, oldest)| queue(queued, in_hand, oldest));
    let depth = prop_oneof![
        4 => depth.prop_map(SignalState::Fresh),
        1 => Just(SignalState::Missing),
        1 => Just(SignalState::Stale { age_ms: 9_000 }),
    ];
    let seen = (0..12_u32, 0..3_u32, 0.0..=1.0_f64, prop::option::of(0.0..1e4_f64)).prop_map(
        |(ready, starting, busy, capacity_per_s)| WorkersSeen {
            ready,
            starting,
            busy,
            capacity_per_s,
        },
    );
    let seen = prop_oneof![4 => seen.prop_map(SignalState::Fresh), 1 => Just(SignalState::Missing)];
    (0..12_u32, 0..4_u32, 0..8_u32, depth, seen).prop_map(|(wanted, min, max, queue, workers)| PoolView {
        model: "m".to_owned(),
        wanted,
        limits: Limits { min, max },
        queue,
        workers,
    })
}

fn any_memory() -> impl Strategy<Value = PoolMemory> {
    (prop::option::of(0..100_000_u64), prop::option::of(0..100_000_u64)).prop_map(|(idle_since_ms, changed_at_ms)| {
        PoolMemory {
            idle_since_ms,
            changed_at_ms,
        }
    })
}

proptest! {
    #[test]
    fn always_within_limits_and_always_a_change(view in any_view(), memory in any_memory()) {
        if let Some(decision) = decide(&policy(), &view, &memory, 100_000, 0).0 {
            let most = view.limits.max.max(view.limits.min);
            prop_assert!((view.limits.min..=most).contains(&decision.to), "{decision:?}");
            prop_assert_ne!(decision.to, decision.from);
            prop_assert_eq!(decision.from, view.wanted);
        }
    }

    #[test]
    fn more_work_never_means_fewer_workers(view in any_view(), memory in any_memory(), more in 1..5_000_u64, older in 0..9_000_u64) {
        let mut busier = view.clone();
        if let SignalState::Fresh(depth) = &mut busier.queue {
            depth.queued += more;
            depth.oldest_ms += older;
        }
        let target = |view: &PoolView| outcome(view, &memory, 100_000).map_or(view.wanted, |(to, _)| to);
        prop_assert!(target(&busier) >= target(&view), "{} < {}", target(&busier), target(&view));
    }

    #[test]
    fn old_data_moves_nothing_within_limits(view in any_view(), memory in any_memory()) {
        let mut blind = view;
        blind.wanted = blind.limits.clamp(blind.wanted);
        blind.queue = SignalState::Missing;
        prop_assert_eq!(outcome(&blind, &memory, 100_000), None);
    }

    /// On a constant load the fleet goes up to what is needed and at most once down, never back and forth.
    #[test]
    fn constant_load_does_not_flap(load in 0.0..700.0_f64, first in 1..8_u32, start_ticks in 1..20_u32) {
        let mut pool = Pool { wanted: first, ready: first, waiting: 0.0, start_ticks, starting_for: 0 };
        let mut memory = PoolMemory::default();
        let mut directions = Vec::new();
        for second in 0..3_000_u64 {
            let view = pool.second(load, 100.0);
            let (decision, next) = decide(&policy(), &view, &memory, second * 1_000, 0);
            memory = next;
            if let Some(decision) = decision {
                pool.wanted = decision.to;
                directions.push(decision.to > decision.from);
            }
        }
        let turns = directions.windows(2).filter(|pair| pair[0] != pair[1]).count();
        prop_assert!(turns <= 1, "{directions:?}");
        prop_assert!(f64::from(pool.ready) * 100.0 >= load, "{} workers for {load}", pool.ready);
        prop_assert!(pool.ready == 1 || load / (f64::from(pool.ready - 1) * 100.0) >= 0.6, "{} workers for {load}", pool.ready);
    }
}
