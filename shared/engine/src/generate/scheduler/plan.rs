//! Makes the plan of one step; input: the scheduler's state, output: a [`StepPlan`], with the blocks it needs allocated.

use super::{MAX_OVERTAKES, Rank, Scheduler, SeqId};
use crate::generate::blocks::BlockTable;

/// What a row of tokens is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Tokens that were given, or that are computed again after their blocks were taken.
    Prefill,
    /// The token that was sampled last.
    Decode,
}

/// One sequence's part of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanEntry {
    /// The sequence.
    pub id: SeqId,
    /// The tokens to run.
    pub tokens: Vec<u32>,
    /// Position of the first of them; all before it are in the blocks.
    pub first_position: u32,
    /// The blocks of all tokens up to the last of these.
    pub blocks: Vec<u32>,
    /// Whether they reach the end of the sequence, so that the next token is to be sampled.
    pub samples: bool,
    /// What they are for.
    pub phase: Phase,
}

/// What to run now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepPlan {
    /// At most one entry per sequence. An entry may read blocks that an earlier one of the same plan fills.
    pub entries: Vec<PlanEntry>,
    /// Sequences that had to give their blocks back and wait again.
    pub preempted: Vec<SeqId>,
}

impl StepPlan {
    /// Tokens of all entries.
    pub fn tokens(&self) -> usize {
        self.entries.iter().map(|entry| entry.tokens.len()).sum()
    }
}

/// What a plan that was given out will have done.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    pub(super) ran: Vec<Ran>,
    /// Blocks that others can find since this plan, and that it fills.
    pub(super) published: Vec<u32>,
    /// Sequences that go as soon as the step is over.
    pub(super) leaving: Vec<SeqId>,
}

#[derive(Debug)]
pub(super) struct Ran {
    pub(super) id: SeqId,
    pub(super) tokens: usize,
    pub(super) samples: bool,
}

/// A plan in the making.
struct Draft {
    plan: StepPlan,
    step: InFlight,
    /// Tokens that still fit.
    budget: usize,
}

impl Scheduler {
    /// The next step; empty when there is nothing to run. It must be followed by [`Self::on_step`] or [`Self::on_failure`];
    /// a plan that was never reported on is taken as failed.
    pub fn plan(&mut self) -> StepPlan {
        self.on_failure();
        let mut draft = Draft {
            plan: StepPlan::default(),
            step: InFlight::default(),
            budget: self.limits.max_step_tokens,
        };
        let running: Vec<Rank> = self.running.iter().copied().collect();
        for &rank in &running {
            self.plan_decode(rank, &mut draft);
        }
        for &rank in &running {
            self.plan_prefill(rank, &mut draft);
        }
        // Whoever had to go needs its blocks back before others may come.
        while draft.plan.preempted.is_empty() && draft.budget > 0 && self.admit(&mut draft) {}
        if !draft.plan.entries.is_empty() {
            self.in_flight = Some(draft.step);
        }
        draft.plan
    }

    /// A sequence that lacks one token runs it, after others made room where necessary.
    fn plan_decode(&mut self, rank: Rank, draft: &mut Draft) {
        while self.running.contains(&rank) {
            let Some(sequence) = self.sequences.get_mut(&rank.1) else {
                return;
            };
            if sequence.remaining() != 1 {
                return;
            }
            let blocks = sequence.tokens.len().div_ceil(self.limits.block_tokens);
            if sequence.table.grow(&mut self.pool, blocks) {
                self.run(rank.1, draft);
                return;
            }
            // Entries planned so far belong to better ranks than this one, so no planned sequence is suspended.
            let Some(&victim) = self.running.last() else {
                return;
            };
            self.suspend(victim.1);
            draft.plan.preempted.push(victim.1);
        }
    }

    /// A sequence that lacks more gets what is left of the step; its blocks were allocated when it was admitted.
    fn plan_prefill(&mut self, rank: Rank, draft: &mut Draft) {
        let lacks_more = self
            .sequences
            .get(&rank.1)
            .is_some_and(|sequence| sequence.remaining() > 1);
        if lacks_more && draft.budget > 0 && self.running.contains(&rank) {
            self.run(rank.1, draft);
        }
    }

    /// Lets the first waiting sequence in, if a place and its blocks are free.
    fn admit(&mut self, draft: &mut Draft) -> bool {
        if self.running.len() >= self.limits.max_sequences {
            return false;
        }
        let Some(rank) = self.next_waiting() else {
            return false;
        };
        let block_tokens = self.limits.block_tokens;
        let spare = self.running.len();
        let Some(sequence) = self.sequences.get_mut(&rank.1) else {
            return false;
        };
        // At least the last token is computed, for its logits.
        let reusable = (sequence.tokens.len() - 1) / block_tokens;
        let keys = &sequence.chain.keys()[..reusable];
        let blocks = sequence.tokens.len().div_ceil(block_tokens);
        let found = self.pool.find(keys);
        if blocks - found.blocks + found.parked + spare > self.pool.free() {
            return false;
        }
        sequence.table = BlockTable::adopt(&mut self.pool, keys);
        sequence.computed = found.blocks * block_tokens;
        if !sequence.table.grow(&mut self.pool, blocks) {
            // Cannot be: the blocks were counted above. Nothing is lost by waiting on.
            sequence.table.release(&mut self.pool);
            sequence.computed = 0;
            return false;
        }
        sequence.cached.get_or_insert(sequence.computed);
        self.waiting.remove(&rank);
        self.running.insert(rank);
        self.note_overtaking(rank.1);
        self.run(rank.1, draft);
        true
    }

    /// The first waiting sequence; one that was overtaken too often goes before all others.
    fn next_waiting(&self) -> Option<Rank> {
        let overtaken = |rank: &&Rank| {
            let sequence = self.sequences.get(&rank.1);
            sequence.is_some_and(|sequence| sequence.overtaken >= MAX_OVERTAKES)
        };
        let overdue = self.waiting.iter().filter(overtaken).min_by_key(|rank| rank.1);
        overdue.or_else(|| self.waiting.first()).copied()
    }

    fn note_overtaking(&mut self, admitted: SeqId) {
        for (_, id) in self.waiting.iter().filter(|(_, id)| *id < admitted) {
            if let Some(sequence) = self.sequences.get_mut(id) {
                sequence.overtaken += 1;
            }
        }
    }

    /// Puts the next tokens of a sequence into the plan, as many as fit; their blocks are there.
    fn run(&mut self, id: SeqId, draft: &mut Draft) {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        let first = sequence.computed;
        let end = sequence.tokens.len().min(first + draft.budget);
        let samples = end == sequence.tokens.len();
        let is_decode = samples && end - first == 1 && end > sequence.given;
        let block_tokens = self.limits.block_tokens;
        let fresh = sequence
            .table
            .publish(&mut self.pool, sequence.chain.keys(), end / block_tokens);
        draft.budget -= end - first;
        draft.step.published.extend(fresh);
        draft.step.ran.push(Ran {
            id,
            tokens: end - first,
            samples,
        });
        draft.plan.entries.push(PlanEntry {
            id,
            tokens: sequence.tokens[first..end].to_vec(),
            first_position: u32::try_from(first).unwrap_or(u32::MAX),
            blocks: sequence.table.blocks()[..end.div_ceil(block_tokens)].to_vec(),
            samples,
            phase: if is_decode { Phase::Decode } else { Phase::Prefill },
        });
    }
}
