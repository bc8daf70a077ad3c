//! Properties of the scheduler, against a cache that remembers what was written where.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits {
    max_sequences: 4,
    max_step_tokens: 8,
    block_tokens: 4,
    blocks: 16,
    max_context: 64,
    max_waiting: 50,
};

fn new(tokens: impl IntoIterator<Item = u32>) -> NewSequence {
    NewSequence {
        tokens: tokens.into_iter().collect(),
        ..NewSequence::default()
    }
}

/// What each entry of a plan is: sequence, first position, tokens, whether it samples.
fn shape(plan: &StepPlan) -> Vec<(u64, u32, usize, bool)> {
    let of = |entry: &PlanEntry| (entry.id.0, entry.first_position, entry.tokens.len(), entry.samples);
    plan.entries.iter().map(of).collect()
}

/// Plans, and reports token 7 for every entry that samples.
fn step(scheduler: &mut Scheduler) -> StepPlan {
    let plan = scheduler.plan();
    let samples = plan.entries.iter().filter(|entry| entry.samples);
    let sampled: Vec<(SeqId, u32)> = samples.map(|entry| (entry.id, 7)).collect();
    scheduler.on_step(&sampled);
    plan
}

#[test]
fn a_long_prompt_gets_what_the_decodes_leave() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.add(new([1, 2])).unwrap();
    scheduler.add(new([3, 4, 5])).unwrap();
    assert_eq!(shape(&step(&mut scheduler)), [(0, 0, 2, true), (1, 0, 3, true)]);
    scheduler.add(new(100..114)).unwrap();
    let first = step(&mut scheduler);
    assert_eq!(shape(&first), [(0, 2, 1, true), (1, 3, 1, true), (2, 0, 6, false)]);
    assert_eq!(
        first.entries.iter().map(|entry| entry.phase).collect::<Vec<_>>(),
        [Phase::Decode, Phase::Decode, Phase::Prefill]
    );
    assert_eq!(
        shape(&step(&mut scheduler)),
        [(0, 3, 1, true), (1, 4, 1, true), (2, 6, 6, false)]
    );
    assert_eq!(
        shape(&step(&mut scheduler)),
        [(0, 4, 1, true), (1, 5, 1, true), (2, 12, 2, true)]
    );
    assert_eq!(
        shape(&step(&mut scheduler)),
        [(0, 5, 1, true), (1, 6, 1, true), (2, 14, 1, true)]
    );
}

#[test]
fn equal_prompts_are_computed_once_even_in_one_step() {
    let mut scheduler = Scheduler::new(Limits {
        max_step_tokens: 32,
        ..LIMITS
    });
    let ids: Vec<SeqId> = (0..3).map(|_| scheduler.add(new(0..13)).unwrap()).collect();
    let other_tenant = NewSequence {
        salt: vec![1],
        ..new(0..13)
    };
    let other = scheduler.add(other_tenant).unwrap();
    let plan = step(&mut scheduler);
    // Three full blocks are shared, the thirteenth token is each one's own.
    assert_eq!(
        shape(&plan)[..3],
        [(0, 0, 13, true), (1, 12, 1, true), (2, 12, 1, true)]
    );
    assert_eq!(plan.entries[1].blocks[..3], plan.entries[0].blocks[..3]);
    assert_ne!(plan.entries[1].blocks[3], plan.entries[0].blocks[3]);
    assert_eq!(
        ids.iter().map(|id| scheduler.cached_tokens(*id)).collect::<Vec<_>>(),
        [Some(0), Some(12), Some(12)]
    );
    assert_eq!(scheduler.cached_tokens(other), Some(0));
    assert_eq!(shape(&plan)[3], (3, 0, 13, true));
}

#[test]
fn a_prompt_of_whole_blocks_still_computes_its_last_one() {
    let mut scheduler = Scheduler::new(LIMITS);
    let first = scheduler.add(new(0..8)).unwrap();
    step(&mut scheduler);
    scheduler.remove(first);
    let second = scheduler.add(new(0..8)).unwrap();
    assert_eq!(shape(&step(&mut scheduler)), [(1, 4, 4, true)]);
    assert_eq!(scheduler.cached_tokens(second), Some(4));
    // What was generated is found too: 8 + 4 tokens make a third block, of which the fourth token was never computed.
    for _ in 0..4 {
        step(&mut scheduler);
    }
    let tokens = scheduler.tokens(second).unwrap().to_vec();
    assert_eq!(tokens.len(), 13);
    scheduler.remove(second);
    let third = scheduler.add(new(tokens)).unwrap();
    assert_eq!(shape(&step(&mut scheduler)), [(2, 12, 1, true)]);
    assert_eq!(scheduler.cached_tokens(third), Some(12));
}

#[test]
fn the_youngest_of_the_least_urgent_makes_room_and_comes_back() {
    let mut scheduler = Scheduler::new(Limits { blocks: 4, ..LIMITS });
    let with = |tokens: std::ops::Range<u32>, priority| NewSequence {
        priority,
        ..new(tokens)
    };
    let slow = scheduler.add(with(10..14, 1)).unwrap();
    let urgent = scheduler.add(with(20..24, 0)).unwrap();
    // Each one has its block and one more is kept for it.
    assert_eq!(shape(&step(&mut scheduler)), [(1, 0, 4, true), (0, 0, 4, true)]);
    for _ in 0..4 {
        assert_eq!(step(&mut scheduler).entries.len(), 2);
    }
    // Both need a third block.
    let plan = step(&mut scheduler);
    assert_eq!(plan.preempted, [slow]);
    assert_eq!(shape(&plan), [(1, 8, 1, true)]);
    assert_eq!((scheduler.running(), scheduler.waiting()), (1, 1));
    assert_eq!(scheduler.tokens(slow).unwrap().len(), 9);
    scheduler.remove(urgent);
    // Its first block is still there; the last one was what the other took.
    assert_eq!(shape(&step(&mut scheduler)), [(0, 4, 5, true)]);
    assert_eq!(
        scheduler.cached_tokens(slow),
        Some(0),
        "what counts is the first admission"
    );
}

#[test]
fn a_failed_step_leaves_nothing_behind() {
    let mut scheduler = Scheduler::new(Limits {
        max_step_tokens: 32,
        ..LIMITS
    });
    let ids = [scheduler.add(new(0..9)).unwrap(), scheduler.add(new(0..9)).unwrap()];
    let first = scheduler.plan();
    assert_eq!(shape(&first), [(0, 0, 9, true), (1, 8, 1, true)]);
    scheduler.on_failure();
    assert_eq!((scheduler.pool().free(), scheduler.pool().parked()), (16, 0));
    assert_eq!(shape(&scheduler.plan()), shape(&first));
    // A plan that is not reported on has failed.
    let again = scheduler.plan();
    assert_eq!(shape(&again), shape(&first));
    // A sequence that asked for a token and got none asks again.
    scheduler.on_step(&[(ids[0], 7)]);
    assert_eq!(shape(&step(&mut scheduler)), [(0, 9, 1, true), (1, 8, 1, true)]);
}

#[test]
fn who_leaves_during_a_step_leaves_after_it() {
    let mut scheduler = Scheduler::new(LIMITS);
    let id = scheduler.add(new(0..4)).unwrap();
    scheduler.plan();
    assert!(scheduler.remove(id));
    assert!(!scheduler.remove(id));
    assert_eq!(scheduler.pool().free(), 15, "the step still writes its block");
    scheduler.on_step(&[(id, 7)]);
    assert!(scheduler.is_idle());
    assert_eq!(scheduler.pool().free(), 16);
    assert!(!scheduler.remove(id));
}

#[test]
fn what_can_never_run_is_refused() {
    let mut scheduler = Scheduler::new(Limits {
        blocks: 3,
        max_waiting: 1,
        ..LIMITS
    });
    assert_eq!(scheduler.add(new([])), Err(Refusal::Empty));
    assert_eq!(scheduler.add(new(0..12)), Err(Refusal::TooLong { tokens: 12, max: 11 }));
    scheduler.add(new(0..11)).unwrap();
    assert_eq!(scheduler.add(new(0..11)), Err(Refusal::Full { waiting: 1 }));
    step(&mut scheduler);
    assert!(scheduler.add(new(0..11)).is_ok());
}

#[test]
fn urgent_sequences_delay_others_but_do_not_starve_them() {
    let mut scheduler = Scheduler::new(Limits {
        max_sequences: 1,
        ..LIMITS
    });
    let with = |priority| NewSequence { priority, ..new([1]) };
    let patient = scheduler.add(with(9)).unwrap();
    for _ in 0..MAX_OVERTAKES {
        let urgent = scheduler.add(with(0)).unwrap();
        assert_eq!(step(&mut scheduler).entries[0].id, urgent);
        scheduler.remove(urgent);
    }
    scheduler.add(with(0)).unwrap();
    assert_eq!(step(&mut scheduler).entries[0].id, patient);
}

/// A sequence as the outside knows it.
struct Wanted {
    rank: Rank,
    tokens: Vec<u32>,
    /// It is finished when it has so many.
    end: usize,
}

struct World {
    scheduler: Scheduler,
    /// Token and position that each slot of the cache holds.
    slots: Vec<Option<(u32, usize)>>,
    wanted: HashMap<SeqId, Wanted>,
    /// Sequences that got a token in the last step.
    decoding: HashSet<SeqId>,
}

impl World {
    fn new(limits: Limits) -> Self {
        let scheduler = Scheduler::new(limits);
        let slots = scheduler.limits().blocks * scheduler.limits().block_tokens;
        Self {
            scheduler,
            slots: vec![None; slots],
            wanted: HashMap::new(),
            decoding: HashSet::new(),
        }
    }

    fn add(&mut self, tokens: Vec<u32>, outputs: usize, priority: u8, salt: u8) {
        // Salts are told apart by their tokens, so that a mix-up shows in what the slots hold.
        let tokens: Vec<u32> = tokens.iter().map(|token| token + 2 * u32::from(salt)).collect();
        let max_context = self.scheduler.limits().max_context;
        let (end, is_short) = (max_context.min(tokens.len() + outputs), tokens.len() < max_context);
        let added = self.scheduler.add(NewSequence {
            tokens: tokens.clone(),
            priority,
            salt: vec![salt],
        });
        assert_eq!(added.is_ok(), !tokens.is_empty() && is_short);
        if let Ok(id) = added {
            let rank = (priority, id);
            self.wanted.insert(id, Wanted { rank, tokens, end });
        }
    }

    fn cancel(&mut self, at: usize) {
        let mut ids: Vec<SeqId> = self.wanted.keys().copied().collect();
        ids.sort_unstable();
        if let Some(id) = ids.get(at % ids.len().max(1)) {
            assert!(self.scheduler.remove(*id));
            self.wanted.remove(id);
            self.decoding.remove(id);
        }
    }

    fn step(&mut self, fails: bool) {
        let waited: HashSet<Rank> = self.scheduler.waiting.iter().copied().collect();
        let plan = self.scheduler.plan();
        assert_eq!(
            plan.entries.is_empty(),
            self.wanted.is_empty(),
            "work and plans go together"
        );
        self.check_bounds(&plan);
        self.check_order(&plan, &waited);
        let written = self.write(&plan);
        self.decoding.clear();
        if fails {
            written.into_iter().for_each(|slot| self.slots[slot] = None);
            self.scheduler.on_failure();
            return;
        }
        self.read(&plan);
        self.report(&plan);
    }

    fn check_bounds(&self, plan: &StepPlan) {
        let limits = self.scheduler.limits();
        assert!(plan.tokens() <= limits.max_step_tokens);
        assert!(self.scheduler.running() <= limits.max_sequences);
        assert_eq!(self.scheduler.running() + self.scheduler.waiting(), self.wanted.len());
        let ids: HashSet<SeqId> = plan.entries.iter().map(|entry| entry.id).collect();
        assert_eq!(ids.len(), plan.entries.len(), "a sequence is there twice");
        for entry in &plan.entries {
            let wanted = &self.wanted[&entry.id];
            let first = entry.first_position as usize;
            let end = first + entry.tokens.len();
            assert!(!entry.tokens.is_empty());
            assert_eq!(entry.tokens, wanted.tokens[first..end]);
            assert_eq!(entry.samples, end == wanted.tokens.len());
            assert_eq!(entry.blocks.len(), end.div_ceil(limits.block_tokens));
            assert!(entry.blocks.iter().all(|block| (*block as usize) < limits.blocks));
        }
        // The pool's books agree with the tables.
        let tables = self
            .scheduler
            .sequences
            .values()
            .flat_map(|sequence| sequence.table.blocks());
        let used: HashSet<u32> = tables.copied().collect();
        assert_eq!(self.scheduler.pool().free() + used.len(), limits.blocks);
    }

    fn check_order(&self, plan: &StepPlan, waited: &HashSet<Rank>) {
        let planned: HashSet<SeqId> = plan.entries.iter().map(|entry| entry.id).collect();
        for id in &self.decoding {
            assert!(planned.contains(id) || plan.preempted.contains(id), "a stream stalls");
        }
        let rank = |id: &SeqId| self.wanted[id].rank;
        for entry in &plan.entries {
            let is_admitted = waited.contains(&rank(&entry.id));
            // Fewer sequences than it takes to be overtaken too often.
            let passed = self.scheduler.waiting.iter().any(|waiting| *waiting < rank(&entry.id));
            assert!(!is_admitted || !passed, "a waiting sequence was passed over");
            let worse = plan.preempted.iter().any(|victim| rank(victim) < rank(&entry.id));
            assert!(!worse, "a better sequence made room for a worse one");
        }
    }

    fn slot(&self, entry: &PlanEntry, position: usize) -> usize {
        let block_tokens = self.scheduler.limits().block_tokens;
        entry.blocks[position / block_tokens] as usize * block_tokens + position % block_tokens
    }

    fn write(&mut self, plan: &StepPlan) -> HashSet<usize> {
        let mut written = HashSet::new();
        for entry in &plan.entries {
            for (position, &token) in (entry.first_position as usize..).zip(&entry.tokens) {
                let slot = self.slot(entry, position);
                assert!(written.insert(slot), "two sequences write one slot");
                self.slots[slot] = Some((token, position));
            }
        }
        written
    }

    fn read(&self, plan: &StepPlan) {
        for entry in &plan.entries {
            let end = entry.first_position as usize + entry.tokens.len();
            for (position, &token) in self.wanted[&entry.id].tokens[..end].iter().enumerate() {
                assert_eq!(self.slots[self.slot(entry, position)], Some((token, position)));
            }
        }
    }

    fn report(&mut self, plan: &StepPlan) {
        let mut sampled = Vec::new();
        let mut finished = Vec::new();
        for entry in plan.entries.iter().filter(|entry| entry.samples) {
            let wanted = self.wanted.get_mut(&entry.id).unwrap();
            // Few different tokens, in a pattern, so that outputs share blocks too.
            let token = wanted.tokens[0] / 2 * 2 + wanted.tokens.len() as u32 / 3 % 2;
            wanted.tokens.push(token);
            sampled.push((entry.id, token));
            if wanted.tokens.len() >= wanted.end {
                finished.push(entry.id);
            } else {
                self.decoding.insert(entry.id);
            }
        }
        self.scheduler.on_step(&sampled);
        for id in finished {
            assert_eq!(self.scheduler.tokens(id), Some(&self.wanted[&id].tokens[..]));
            assert!(self.scheduler.remove(id));
            self.wanted.remove(&id);
        }
    }
}

#[derive(Debug, Clone)]
enum Event {
    Add {
        tokens: Vec<u32>,
        outputs: usize,
        priority: u8,
        salt: u8,
    },
    Cancel(usize),
    Step {
        fails: bool,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let add = (prop::collection::vec(0..2_u32, 0..40), 1..30_usize, 0..3_u8, 0..2_u8);
    prop_oneof![
        4 => add.prop_map(|(tokens, outputs, priority, salt)| Event::Add { tokens, outputs, priority, salt }),
        1 => any::<usize>().prop_map(Event::Cancel),
        8 => prop::bool::weighted(0.1).prop_map(|fails| Event::Step { fails }),
    ]
}

proptest! {
    #[test]
    fn every_sequence_finishes_and_every_bound_is_kept(
        (max_sequences, max_step_tokens, block_tokens, blocks) in (1..6_usize, 1..20_usize, 1..6_usize, 1..14_usize),
        events in prop::collection::vec(event(), 1..60),
    ) {
        let mut world = World::new(Limits {
            max_sequences,
            max_step_tokens,
            block_tokens,
            blocks,
            max_context: 48,
            max_waiting: usize::MAX,
        });
        for event in events {
            match event {
                Event::Add { tokens, outputs, priority, salt } => world.add(tokens, outputs, priority, salt),
                Event::Cancel(at) => world.cancel(at),
                Event::Step { fails } => world.step(fails),
            }
        }
        // The most urgent sequence goes on in every step, at least by one token, and is never the one that makes room.
        let mut steps = 0;
        while !world.wanted.is_empty() {
            world.step(false);
            steps += 1;
            prop_assert!(steps <= 60 * 100, "the sequences do not finish");
        }
        prop_assert!(world.scheduler.is_idle());
        prop_assert_eq!(world.scheduler.pool().free(), blocks);
    }
}
