//! Which worker processes of one model should run. Input: the number wanted, and what happened to the processes.
//! Output: what to do next. Pure: the time is an argument, processes are numbers.

use schemas::fleet::PoolInfo;

/// First pause after a crash in milliseconds; short, because a killed worker should be back before anyone notices.
const FIRST_BACKOFF_MS: u64 = 100;
/// Longest pause in milliseconds: a worker that cannot start is tried twice a minute for as long as it takes.
const MAX_BACKOFF_MS: u64 = 30_000;
/// A worker that was ready this long, in milliseconds, has not crashed because of how it started: counting begins anew.
const HEALTHY_AFTER_MS: u64 = 30_000;

/// How one process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not running; may start at this time.
    Waiting { until_ms: u64 },
    /// Running, not yet ready.
    Starting,
    /// Ready since.
    Ready { since_ms: u64 },
    /// Told to finish; killed at this time.
    Draining { kill_at_ms: u64, killed: bool },
}

/// One place for a worker process.
#[derive(Debug, Clone, Copy)]
struct Slot {
    id: u32,
    failures_in_row: u32,
    state: State,
}

/// What to do with one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start a process for this slot.
    Start(u32),
    /// Ask it to finish (SIGTERM).
    Terminate(u32),
    /// End it (SIGKILL): the drain took too long.
    Kill(u32),
}

/// What the end of a process means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It was asked to.
    Expected,
    /// It was not.
    Crash {
        /// Whether it ever was ready.
        was_ready: bool,
        /// Crashes in a row.
        failures_in_row: u32,
        /// Pause before it is started again, in milliseconds.
        backoff_ms: u64,
    },
}

/// The workers of one model.
#[derive(Debug)]
pub struct Pool {
    model: String,
    min: u32,
    max: u32,
    wanted: u32,
    drain_ms: u64,
    stopping: bool,
    slots: Vec<Slot>,
}

impl Pool {
    /// A pool that wants `min` workers; each may take `drain_ms` to finish when it is told to stop.
    #[must_use]
    pub fn new(model: &str, min: u32, max: u32, drain_ms: u64) -> Self {
        Self {
            model: model.to_owned(),
            min,
            max: max.max(min),
            wanted: min,
            drain_ms,
            stopping: false,
            slots: Vec::new(),
        }
    }

    /// Asks for another number of workers.
    ///
    /// # Errors
    /// Says why not: outside the limits, or the pool is stopping.
    pub fn set_wanted(&mut self, workers: u32) -> Result<(), String> {
        if self.stopping {
            return Err("the supervisor is stopping".to_owned());
        }
        if !(self.min..=self.max).contains(&workers) {
            return Err(format!("{} may have {} to {} workers", self.model, self.min, self.max));
        }
        self.wanted = workers;
        Ok(())
    }

    /// From now on no worker is wanted.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// What to do now; doing it is assumed.
    pub fn plan(&mut self, now_ms: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        let target = if self.stopping { 0 } else { self.wanted as usize };
        while self.active() > target {
            let Some(victim) = self.victim() else { break };
            let slot = &mut self.slots[victim];
            if matches!(slot.state, State::Waiting { .. }) {
                self.slots.remove(victim);
            } else {
                slot.state = State::Draining {
                    kill_at_ms: now_ms.saturating_add(self.drain_ms),
                    killed: false,
                };
                actions.push(Action::Terminate(slot.id));
            }
        }
        while self.active() < target {
            let state = State::Waiting { until_ms: now_ms };
            self.slots.push(Slot {
                id: self.unused_id(),
                failures_in_row: 0,
                state,
            });
        }
        for slot in &mut self.slots {
            match slot.state {
                State::Waiting { until_ms } if until_ms <= now_ms => {
                    slot.state = State::Starting;
                    actions.push(Action::Start(slot.id));
                }
                State::Draining {
                    kill_at_ms,
                    killed: false,
                } if kill_at_ms <= now_ms => {
                    slot.state = State::Draining {
                        kill_at_ms,
                        killed: true,
                    };
                    actions.push(Action::Kill(slot.id));
                }
                _ => {}
            }
        }
        actions
    }

    /// When [`Pool::plan`] has something to do without anything happening before.
    #[must_use]
    pub fn next_wake_ms(&self) -> Option<u64> {
        let times = self.slots.iter().filter_map(|slot| match slot.state {
            State::Waiting { until_ms } => Some(until_ms),
            State::Draining {
                kill_at_ms,
                killed: false,
            } => Some(kill_at_ms),
            _ => None,
        });
        times.min()
    }

    /// A process says that it is ready.
    pub fn ready(&mut self, id: u32, now_ms: u64) {
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.id == id)
            && slot.state == State::Starting
        {
            slot.state = State::Ready { since_ms: now_ms };
        }
    }

    /// A process ended, or could not be started.
    pub fn exited(&mut self, id: u32, now_ms: u64) -> Exit {
        let Some(at) = self.slots.iter().position(|slot| slot.id == id) else {
            return Exit::Expected;
        };
        let slot = &mut self.slots[at];
        let (was_ready, healthy) = match slot.state {
            State::Draining { .. } => {
                self.slots.remove(at);
                return Exit::Expected;
            }
            State::Ready { since_ms } => (true, now_ms.saturating_sub(since_ms) >= HEALTHY_AFTER_MS),
            State::Starting | State::Waiting { .. } => (false, false),
        };
        slot.failures_in_row = if healthy {
            1
        } else {
            slot.failures_in_row.saturating_add(1)
        };
        let backoff_ms = backoff_ms(slot.failures_in_row);
        slot.state = State::Waiting {
            until_ms: now_ms.saturating_add(backoff_ms),
        };
        Exit::Crash {
            was_ready,
            failures_in_row: slot.failures_in_row,
            backoff_ms,
        }
    }

    /// Workers that are ready.
    #[must_use]
    pub fn ready_workers(&self) -> u32 {
        self.count(|state| matches!(state, State::Ready { .. }))
    }

    /// What others may know.
    #[must_use]
    pub fn info(&self) -> PoolInfo {
        PoolInfo {
            model: self.model.clone(),
            wanted: if self.stopping { 0 } else { self.wanted },
            running: self.count(|state| matches!(state, State::Starting | State::Ready { .. })),
            min: self.min,
            max: self.max,
        }
    }

    /// Slots that count towards the number wanted: all but those that are draining.
    fn active(&self) -> usize {
        let draining = |slot: &&Slot| !matches!(slot.state, State::Draining { .. });
        self.slots.iter().filter(draining).count()
    }

    /// The smallest number that no slot has: names of log files repeat instead of growing in number.
    fn unused_id(&self) -> u32 {
        let used = |id: &u32| self.slots.iter().any(|slot| slot.id == *id);
        (0..u32::MAX).find(|id| !used(id)).unwrap_or(u32::MAX)
    }

    /// Who goes: one that does not run, else one that is not ready, else the last one.
    fn victim(&self) -> Option<usize> {
        let rank = |slot: &Slot| match slot.state {
            State::Waiting { .. } => Some((0, u32::MAX - slot.id)),
            State::Starting => Some((1, u32::MAX - slot.id)),
            State::Ready { .. } => Some((2, u32::MAX - slot.id)),
            State::Draining { .. } => None,
        };
        let ranked = self
            .slots
            .iter()
            .enumerate()
            .filter_map(|(at, slot)| Some((rank(slot)?, at)));
        ranked.min().map(|(_, at)| at)
    }

    fn count(&self, which: impl Fn(State) -> bool) -> u32 {
        let count = self.slots.iter().filter(|slot| which(slot.state)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

/// Pause after the n-th crash in a row: doubles up to the longest.
#[must_use]
pub fn backoff_ms(failures_in_row: u32) -> u64 {
    let doublings = failures_in_row.saturating_sub(1).min(16);
    (FIRST_BACKOFF_MS << doublings).min(MAX_BACKOFF_MS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pauses_double_to_the_longest() {
        let pauses: Vec<_> = (1..12).map(backoff_ms).collect();
        assert_eq!(
            pauses,
            [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000]
        );
        assert_eq!(backoff_ms(u32::MAX), MAX_BACKOFF_MS);
    }

    #[test]
    fn a_killed_worker_comes_back_and_a_crash_loop_slows_down() {
        let mut pool = Pool::new("m", 1, 2, 1_000);
        assert_eq!(pool.plan(0), [Action::Start(0)]);
        pool.ready(0, 500);
        assert_eq!(pool.ready_workers(), 1);
        assert_eq!(
            pool.exited(0, 40_000),
            Exit::Crash {
                was_ready: true,
                failures_in_row: 1,
                backoff_ms: 100
            }
        );
        assert_eq!((pool.plan(40_050), pool.next_wake_ms()), (vec![], Some(40_100)));
        assert_eq!(pool.plan(40_100), [Action::Start(0)]);
        // Now it never becomes ready.
        assert_eq!(
            pool.exited(0, 40_200),
            Exit::Crash {
                was_ready: false,
                failures_in_row: 2,
                backoff_ms: 200
            }
        );
        assert_eq!(pool.plan(40_400), [Action::Start(0)]);
        assert_eq!(
            pool.exited(0, 40_500),
            Exit::Crash {
                was_ready: false,
                failures_in_row: 3,
                backoff_ms: 400
            }
        );
        // One good run is forgiven.
        assert_eq!(pool.plan(50_000), [Action::Start(0)]);
        pool.ready(0, 50_000);
        assert_eq!(
            pool.exited(0, 80_000),
            Exit::Crash {
                was_ready: true,
                failures_in_row: 1,
                backoff_ms: 100
            }
        );
    }

    #[test]
    fn the_last_goes_first_and_is_killed_when_it_does_not() {
        let mut pool = Pool::new("m", 1, 3, 1_000);
        pool.set_wanted(3).unwrap();
        assert_eq!(pool.plan(0), [Action::Start(0), Action::Start(1), Action::Start(2)]);
        (0..2).for_each(|id| pool.ready(id, 1));
        pool.set_wanted(2).unwrap();
        assert_eq!(pool.plan(10), [Action::Terminate(2)], "the one that is not ready");
        pool.set_wanted(1).unwrap();
        assert_eq!(pool.plan(20), [Action::Terminate(1)]);
        assert_eq!(pool.exited(2, 30), Exit::Expected);
        assert_eq!((pool.plan(1_000), pool.next_wake_ms()), (vec![], Some(1_020)));
        assert_eq!(pool.plan(1_020), [Action::Kill(1)]);
        assert_eq!(pool.plan(2_000), [], "once is enough");
        assert_eq!(pool.exited(1, 2_001), Exit::Expected);
        assert_eq!((pool.info().running, pool.info().wanted), (1, 1));
        assert!(pool.set_wanted(0).is_err() && pool.set_wanted(4).is_err());
    }

    #[test]
    fn a_stop_ends_everything_and_starts_nothing() {
        let mut pool = Pool::new("m", 2, 2, 1_000);
        pool.plan(0);
        pool.exited(0, 5);
        pool.stop();
        assert_eq!(pool.plan(10), [Action::Terminate(1)]);
        assert_eq!(pool.exited(1, 20), Exit::Expected);
        assert_eq!(pool.plan(100_000), []);
        assert!(pool.set_wanted(2).is_err());
    }

    proptest! {
        /// Whatever happens, not more run than may, and when nothing more happens as many run as are wanted.
        #[test]
        fn the_number_wanted_is_reached(events in prop::collection::vec((0..4_u8, 0..6_u32, 0..20_000_u64), 0..60)) {
            let mut pool = Pool::new("m", 1, 4, 1_000);
            let mut alive: Vec<u32> = Vec::new();
            let mut now_ms = 0;
            let apply = |pool: &mut Pool, alive: &mut Vec<u32>, now_ms: u64| for action in pool.plan(now_ms) {
                match action {
                    Action::Start(id) => alive.push(id),
                    Action::Terminate(_) => {}
                    Action::Kill(id) => {
                        alive.retain(|other| *other != id);
                        pool.exited(id, now_ms);
                    }
                }
            };
            for (kind, number, pause_ms) in events {
                now_ms += pause_ms;
                match kind {
                    0 => drop(pool.set_wanted(number)),
                    1 => if let Some(&id) = alive.get(number as usize) { pool.ready(id, now_ms) },
                    _ => if (number as usize) < alive.len() {
                        let id = alive.remove(number as usize);
                        pool.exited(id, now_ms);
                    },
                }
                apply(&mut pool, &mut alive, now_ms);
                prop_assert!(pool.info().running <= 4);
            }
            for _ in 0..10 {
                now_ms += MAX_BACKOFF_MS;
                apply(&mut pool, &mut alive, now_ms);
            }
            prop_assert_eq!(pool.info().running, pool.info().wanted);
            prop_assert_eq!(alive.len() as u32, pool.info().wanted);
        }
    }
}
