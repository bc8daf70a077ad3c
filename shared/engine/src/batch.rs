//! Decides which waiting items run together; input: items, removals and the time, output: run these, wait until then, or nothing to do.
//!
//! Pure: it has no clock and no threads. Rules:
//! - A batch starts when the budget of tokens or items is reached, or when its oldest item has waited `max_wait_us`.
//! - Lanes go by number, the lowest first; within a lane items keep their order and none is skipped.
//! - An item that waited `max_lane_delay_us` goes before all that waited less, whatever its lane: no lane starves.
//! - A batch never exceeds the budget, except that an item larger than the budget runs alone.

use std::collections::{BTreeMap, VecDeque};

/// Limits of batches and of the waiting room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most tokens of a batch.
    pub max_batch_tokens: usize,
    /// Most items of a batch; 0 is taken as 1.
    pub max_batch_items: usize,
    /// Longest time an item waits for others to join it, in µs.
    pub max_wait_us: u64,
    /// After this time, in µs, an item goes before those of more urgent lanes.
    pub max_lane_delay_us: u64,
    /// Most items waiting; more are refused.
    pub max_pending_items: usize,
}

/// Something to be computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// The caller's name for it; unique among the waiting ones.
    pub id: u64,
    /// What it takes of the token budget.
    pub tokens: usize,
    /// When it arrived, in µs of the caller's clock; within a lane it must not fall (an earlier time is taken as the lane's last).
    pub arrived_at_us: u64,
    /// Its lane; 0 is the most urgent.
    pub lane: u8,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Run these items as one batch; they are no longer waiting.
    Run(Vec<u64>),
    /// Ask again at this time, or when an item arrives.
    WaitUntil(u64),
    /// Nothing waits.
    Idle,
}

/// The waiting room is full; the item was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{pending} items are waiting, no more are taken")]
pub struct PlannerFull {
    /// Items waiting.
    pub pending: usize,
}

/// The waiting items and the rules.
#[derive(Debug)]
pub struct BatchPlanner {
    limits: Limits,
    lanes: BTreeMap<u8, VecDeque<Item>>,
    items: usize,
    tokens: usize,
}

impl BatchPlanner {
    /// An empty planner.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits: Limits {
                max_batch_items: limits.max_batch_items.max(1),
                ..limits
            },
            lanes: BTreeMap::new(),
            items: 0,
            tokens: 0,
        }
    }

    /// Items waiting.
    pub fn len(&self) -> usize {
        self.items
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.items == 0
    }

    /// Tokens of all waiting items.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Takes an item, unless the waiting room is full.
    pub fn push(&mut self, mut item: Item) -> Result<(), PlannerFull> {
        if self.items >= self.limits.max_pending_items {
            return Err(PlannerFull { pending: self.items });
        }
        let lane = self.lanes.entry(item.lane).or_default();
        if let Some(last) = lane.back() {
            item.arrived_at_us = item.arrived_at_us.max(last.arrived_at_us);
        }
        lane.push_back(item);
        self.items += 1;
        self.tokens = self.tokens.saturating_add(item.tokens);
        Ok(())
    }

    /// Drops a waiting item (its client went away); false when it is not waiting.
    pub fn remove(&mut self, id: u64) -> bool {
        for lane in self.lanes.values_mut() {
            if let Some(at) = lane.iter().position(|item| item.id == id)
                && let Some(item) = lane.remove(at)
            {
                self.forget(item);
                return true;
            }
        }
        false
    }

    /// Decides; a `Run` hands its items over.
    pub fn poll(&mut self, now_us: u64) -> Decision {
        let Some(oldest) = self.heads().map(|item| item.arrived_at_us).min() else {
            return Decision::Idle;
        };
        let due_at_us = oldest.saturating_add(self.limits.max_wait_us);
        let full = self.items >= self.limits.max_batch_items || self.tokens >= self.limits.max_batch_tokens;
        if !full && now_us < due_at_us {
            return Decision::WaitUntil(due_at_us);
        }
        Decision::Run(self.take(now_us))
    }

    fn heads(&self) -> impl Iterator<Item = &Item> {
        self.lanes.values().filter_map(VecDeque::front)
    }

    /// Takes heads in order of precedence; a lane whose head does not fit is closed for this batch.
    fn take(&mut self, now_us: u64) -> Vec<u64> {
        let mut ids = Vec::new();
        let mut tokens = 0_usize;
        let mut closed = Vec::new();
        while ids.len() < self.limits.max_batch_items {
            let Some(lane) = self.next_lane(now_us, &closed) else {
                break;
            };
            let Some(item) = self.lanes.get(&lane).and_then(VecDeque::front).copied() else {
                break;
            };
            let sum = tokens.saturating_add(item.tokens);
            if !ids.is_empty() && sum > self.limits.max_batch_tokens {
                closed.push(lane);
                continue;
            }
            tokens = sum;
            ids.push(item.id);
            if let Some(queue) = self.lanes.get_mut(&lane) {
                queue.pop_front();
            }
            self.forget(item);
        }
        ids
    }

    /// The lane to take from: that of the oldest overdue head, else the most urgent one.
    fn next_lane(&self, now_us: u64, closed: &[u8]) -> Option<u8> {
        let open = || self.heads().filter(|item| !closed.contains(&item.lane));
        let waited = |item: &&Item| now_us.saturating_sub(item.arrived_at_us);
        let overdue = open()
            .filter(|item| waited(item) >= self.limits.max_lane_delay_us)
            .min_by_key(|item| item.arrived_at_us);
        overdue.or_else(|| open().next()).map(|item| item.lane)
    }

    /// Keeps the totals after an item left.
    fn forget(&mut self, item: Item) {
        self.items -= 1;
        // Sums that saturated are counted anew.
        self.tokens = match self.tokens {
            usize::MAX => self
                .lanes
                .values()
                .flatten()
                .fold(0, |sum, item| sum.saturating_add(item.tokens)),
            tokens => tokens - item.tokens,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        max_batch_tokens: 100,
        max_batch_items: 4,
        max_wait_us: 1_000,
        max_lane_delay_us: 5_000,
        max_pending_items: 50,
    };

    fn planner(items: &[(u64, usize, u64, u8)]) -> BatchPlanner {
        let mut planner = BatchPlanner::new(LIMITS);
        for &(id, tokens, arrived_at_us, lane) in items {
            let item = Item {
                id,
                tokens,
                arrived_at_us,
                lane,
            };
            planner.push(item).unwrap();
        }
        planner
    }

    #[test]
    fn waits_for_company_but_not_longer_than_asked() {
        let mut planner = planner(&[(1, 10, 500, 0), (2, 10, 600, 0)]);
        assert_eq!(planner.poll(700), Decision::WaitUntil(1_500));
        assert_eq!(planner.poll(1_499), Decision::WaitUntil(1_500));
        assert_eq!(planner.poll(1_500), Decision::Run(vec![1, 2]));
        assert_eq!(planner.poll(1_500), Decision::Idle);
        assert_eq!((planner.len(), planner.tokens()), (0, 0));
    }

    #[test]
    fn a_full_budget_runs_at_once() {
        let mut by_items = planner(&[(1, 1, 0, 0), (2, 1, 0, 0), (3, 1, 0, 0), (4, 1, 0, 0), (5, 1, 0, 0)]);
        assert_eq!(by_items.poll(0), Decision::Run(vec![1, 2, 3, 4]));
        assert_eq!(by_items.poll(0), Decision::WaitUntil(1_000));
        let mut by_tokens = planner(&[(1, 60, 0, 0), (2, 60, 0, 0)]);
        assert_eq!(by_tokens.poll(0), Decision::Run(vec![1]));
        assert_eq!(by_tokens.len(), 1);
    }

    #[test]
    fn an_oversized_item_runs_alone() {
        let mut planner = planner(&[(1, 10, 0, 0), (2, 500, 0, 0), (3, 10, 0, 0)]);
        assert_eq!(planner.poll(0), Decision::Run(vec![1]));
        assert_eq!(planner.poll(0), Decision::Run(vec![2]));
        assert_eq!(planner.poll(1_000), Decision::Run(vec![3]));
    }

    #[test]
    fn urgent_lanes_first_until_another_waited_too_long() {
        let items = [(1, 60, 0, 2), (2, 60, 100, 0), (3, 30, 100, 1)];
        assert_eq!(planner(&items).poll(4_999), Decision::Run(vec![2, 3]));
        assert_eq!(planner(&items).poll(5_000), Decision::Run(vec![1, 3]));
    }

    #[test]
    fn removed_items_do_not_run() {
        let mut planner = planner(&[(1, 10, 0, 0), (2, 20, 0, 1)]);
        assert!(planner.remove(1));
        assert!(!planner.remove(1));
        assert_eq!(planner.tokens(), 20);
        assert_eq!(planner.poll(1_000), Decision::Run(vec![2]));
    }

    #[test]
    fn a_full_room_refuses() {
        let mut planner = BatchPlanner::new(Limits {
            max_pending_items: 1,
            ..LIMITS
        });
        let item = Item {
            id: 1,
            tokens: usize::MAX,
            arrived_at_us: 0,
            lane: 0,
        };
        planner.push(item).unwrap();
        assert_eq!(planner.push(item), Err(PlannerFull { pending: 1 }));
        assert_eq!(planner.poll(0), Decision::Run(vec![1]));
        assert_eq!(planner.tokens(), 0);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push { tokens: usize, lane: u8 },
        Remove(u64),
        Poll,
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..150_usize, 0..3_u8).prop_map(|(tokens, lane)| Step::Push { tokens, lane }),
            1 => (0..100_u64).prop_map(Step::Remove),
            3 => Just(Step::Poll),
            3 => (0..2_000_u64).prop_map(Step::Pass),
        ]
    }

    /// What a run must satisfy, given all that waited before it.
    fn check_run(waiting: &mut Vec<Item>, ids: &[u64], now_us: u64) {
        assert!(!ids.is_empty() && ids.len() <= LIMITS.max_batch_items);
        let find = |id: &u64| *waiting.iter().find(|item| item.id == *id).expect("it waited");
        let batch: Vec<Item> = ids.iter().map(find).collect();
        let tokens: usize = batch.iter().map(|item| item.tokens).sum();
        assert!(tokens <= LIMITS.max_batch_tokens || ids.len() == 1);
        let overdue = |item: &&Item| now_us - item.arrived_at_us >= LIMITS.max_lane_delay_us;
        if let Some(first) = waiting.iter().filter(overdue).min_by_key(|item| item.arrived_at_us) {
            assert_eq!(batch[0].arrived_at_us, first.arrived_at_us, "an overdue item starves");
        }
        for lane in 0..3 {
            let queue = waiting.iter().filter(|item| item.lane == lane).map(|item| item.id);
            let ran: Vec<u64> = batch
                .iter()
                .filter(|item| item.lane == lane)
                .map(|item| item.id)
                .collect();
            assert_eq!(queue.take(ran.len()).collect::<Vec<_>>(), ran, "order within a lane");
        }
        waiting.retain(|item| !ids.contains(&item.id));
    }

    proptest! {
        #[test]
        fn no_item_is_lost_or_doubled_and_every_bound_is_kept(steps in prop::collection::vec(step(), 1..200)) {
            let mut planner = BatchPlanner::new(LIMITS);
            let mut waiting: Vec<Item> = Vec::new();
            let (mut now_us, mut next) = (0, 0);
            for step in steps {
                match step {
                    Step::Pass(us) => now_us += us,
                    Step::Push { tokens, lane } => {
                        let item = Item { id: next, tokens, arrived_at_us: now_us, lane };
                        next += 1;
                        if planner.push(item).is_ok() {
                            waiting.push(item);
                        } else {
                            prop_assert_eq!(waiting.len(), LIMITS.max_pending_items);
                        }
                    }
                    Step::Remove(id) => {
                        let known = waiting.iter().any(|item| item.id == id);
                        prop_assert_eq!(planner.remove(id), known);
                        waiting.retain(|item| item.id != id);
                    }
                    Step::Poll => match planner.poll(now_us) {
                        Decision::Idle => prop_assert!(waiting.is_empty()),
                        Decision::WaitUntil(at) => {
                            let oldest = waiting.iter().map(|item| item.arrived_at_us).min();
                            prop_assert_eq!(Some(at), oldest.map(|us| us + LIMITS.max_wait_us));
                            prop_assert!(at > now_us);
                            let tokens: usize = waiting.iter().map(|item| item.tokens).sum();
                            prop_assert!(tokens < LIMITS.max_batch_tokens);
                        }
                        Decision::Run(ids) => check_run(&mut waiting, &ids, now_us),
                    },
                }
                prop_assert_eq!(planner.len(), waiting.len());
                prop_assert_eq!(planner.tokens(), waiting.iter().map(|item| item.tokens).sum::<usize>());
            }
            // Polling at the far end of time empties the room.
            while let Decision::Run(ids) = planner.poll(u64::MAX) {
                check_run(&mut waiting, &ids, u64::MAX);
            }
            prop_assert!(waiting.is_empty() && planner.is_empty());
        }
    }
}
