//! Decides which sequences run which tokens in the next step; input: sequences, sampled tokens and removals, output: a [`StepPlan`].
//!
//! Pure: it has no clock, no threads and no cache; it only counts blocks. Rules:
//! - Continuous batching: sequences join and leave at every step; a step runs single decode tokens and chunks of prompts together.
//! - Decodes come first and always fit (never more sequences than step tokens), so a long prompt does not stall the streams of others:
//!   it gets what is left of `max_step_tokens`, over as many steps as it needs.
//! - A sequence is admitted when the blocks of all its present tokens are free, and one more for each running sequence, so that the admission does
//!   not at once push others out. Blocks that start equal prompts are shared, also within one step (so n choices compute their prompt once).
//! - When a decode finds no free block, the running sequence of the least urgent priority that came last gives its blocks back and waits again;
//!   its tokens are computed anew later (most of its blocks are often still there). The most urgent, oldest sequence is never the victim,
//!   and alone it always fits, so every sequence finishes.
//! - Waiting sequences go by priority (0 is the most urgent), then by arrival; none is skipped, and none is overtaken more than
//!   [`MAX_OVERTAKES`] times.
//!
//! A plan names, per sequence, the tokens to run and the blocks to use. The backend must write the keys and values of all rows of a step before any
//! row of the step attends, layer by layer: rows may read blocks that another sequence fills in the same step.

mod plan;

use std::collections::{BTreeSet, HashMap};

use super::blocks::{BlockPool, BlockTable, KeyChain};

pub use plan::{Phase, PlanEntry, StepPlan};

/// After this many later arrivals went first, a waiting sequence goes before all others: urgent ones delay it, they cannot starve it.
pub const MAX_OVERTAKES: u32 = 64;

/// Sizes of the cache, of a step and of the waiting room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most sequences running at once; taken as at least 1 and at most `max_step_tokens`, so that each can go on in every step.
    pub max_sequences: usize,
    /// Most tokens of a step; 0 is taken as 1.
    pub max_step_tokens: usize,
    /// Tokens of a block; 0 is taken as 1.
    pub block_tokens: usize,
    /// Blocks of the cache.
    pub blocks: usize,
    /// Most tokens of a sequence, prompt and output together; taken as no more than the cache holds.
    pub max_context: usize,
    /// Most sequences waiting; more are refused.
    pub max_waiting: usize,
}

/// Names a sequence; never used again. Later sequences have higher numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId(pub u64);

/// What is to be continued.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewSequence {
    /// The tokens that are there: the prompt, and what was generated elsewhere.
    pub tokens: Vec<u32>,
    /// 0 is the most urgent.
    pub priority: u8,
    /// Blocks are shared between sequences of the same salt only.
    pub salt: Vec<u8>,
}

/// A sequence was not taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is nothing to continue.
    #[error("the prompt is empty")]
    Empty,
    /// No room for even one more token.
    #[error("the prompt has {tokens} tokens, at most {max} leave room for an answer")]
    TooLong {
        /// Its tokens.
        tokens: usize,
        /// The longest prompt that is taken.
        max: usize,
    },
    /// A token id that the model does not have.
    #[error("token id {id} is outside the vocabulary of {vocab}")]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A parameter is outside its range.
    #[error(transparent)]
    Parameter(#[from] super::sampling::ParameterError),
    /// The tokens to go on from do not conform to the constraint.
    #[error(transparent)]
    Constraint(#[from] super::constraint::ConstraintError),
    /// The waiting room is full; the same sequence may be taken later.
    #[error("{waiting} sequences are waiting, no more are taken")]
    Full {
        /// Sequences waiting.
        waiting: usize,
    },
}

/// Precedence: the urgent first, then the older.
type Rank = (u8, SeqId);

#[derive(Debug)]
struct Sequence {
    tokens: Vec<u32>,
    /// Leading tokens whose keys and values are in its blocks.
    computed: usize,
    /// Keys of the full blocks of `tokens`.
    chain: KeyChain,
    table: BlockTable,
    priority: u8,
    /// Tokens that were there when it was added.
    given: usize,
    /// Tokens found in the cache when it was first admitted.
    cached: Option<usize>,
    /// Later arrivals that were admitted before it.
    overtaken: u32,
}

impl Sequence {
    fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }
}

/// The sequences, their blocks, and the rules.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    sequences: HashMap<SeqId, Sequence>,
    running: BTreeSet<Rank>,
    waiting: BTreeSet<Rank>,
    next: u64,
    /// The plan that was given out and not reported on.
    in_flight: Option<plan::InFlight>,
}

impl Scheduler {
    /// An empty scheduler.
    pub fn new(limits: Limits) -> Self {
        let max_step_tokens = limits.max_step_tokens.max(1);
        let block_tokens = limits.block_tokens.max(1);
        let blocks = u32::try_from(limits.blocks).unwrap_or(u32::MAX);
        let limits = Limits {
            max_sequences: limits.max_sequences.clamp(1, max_step_tokens),
            max_step_tokens,
            block_tokens,
            blocks: blocks as usize,
            max_context: limits.max_context.min((blocks as usize).saturating_mul(block_tokens)),
            max_waiting: limits.max_waiting,
        };
        Self {
            limits,
            pool: BlockPool::new(blocks),
            sequences: HashMap::new(),
            running: BTreeSet::new(),
            waiting: BTreeSet::new(),
            next: 0,
            in_flight: None,
        }
    }

    /// The limits as they hold.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Sequences that hold blocks.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that hold none: new ones and those that had to give them back.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.sequences.is_empty()
    }

    /// The blocks of the cache.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// All tokens of a sequence, as far as they are known.
    pub fn tokens(&self, id: SeqId) -> Option<&[u32]> {
        Some(&self.sequences.get(&id)?.tokens)
    }

    /// Tokens that a sequence did not have to compute when it was first admitted; `None` before that.
    pub fn cached_tokens(&self, id: SeqId) -> Option<usize> {
        self.sequences.get(&id)?.cached
    }

    /// Whether [`Self::add`] would take a sequence of so many tokens; the error says why not.
    pub fn check(&self, tokens: usize) -> Result<(), Refusal> {
        let max = self.limits.max_context.saturating_sub(1);
        if tokens == 0 {
            return Err(Refusal::Empty);
        }
        if tokens > max {
            return Err(Refusal::TooLong { tokens, max });
        }
        if self.waiting.len() >= self.limits.max_waiting {
            return Err(Refusal::Full {
                waiting: self.waiting.len(),
            });
        }
        Ok(())
    }

    /// Takes a sequence; it waits until a plan admits it.
    pub fn add(&mut self, new: NewSequence) -> Result<SeqId, Refusal> {
        self.check(new.tokens.len())?;
        let id = self.next_id();
        let mut chain = KeyChain::new(&new.salt);
        chain.extend(&new.tokens, self.limits.block_tokens);
        self.waiting.insert((new.priority, id));
        let sequence = Sequence {
            given: new.tokens.len(),
            tokens: new.tokens,
            computed: 0,
            chain,
            table: BlockTable::default(),
            priority: new.priority,
            cached: None,
            overtaken: 0,
        };
        self.sequences.insert(id, sequence);
        Ok(id)
    }

    /// A number that no sequence has or will get.
    pub(super) fn next_id(&mut self) -> SeqId {
        let id = SeqId(self.next);
        self.next += 1;
        id
    }

    /// A sequence is finished or nobody wants it any more: its blocks are free (after the step, when one is under way). False when it is unknown.
    pub fn remove(&mut self, id: SeqId) -> bool {
        if let Some(step) = &mut self.in_flight {
            let known = self.sequences.contains_key(&id) && !step.leaving.contains(&id);
            if known {
                step.leaving.push(id);
            }
            return known;
        }
        let Some(mut sequence) = self.sequences.remove(&id) else {
            return false;
        };
        sequence.table.release(&mut self.pool);
        let rank = (sequence.priority, id);
        self.running.remove(&rank);
        self.waiting.remove(&rank);
        true
    }

    /// The step was computed: what was sampled for the entries that asked for it.
    ///
    /// An entry that asked and got nothing (and whose sequence is not removed) asks again in a later plan.
    pub fn on_step(&mut self, sampled: &[(SeqId, u32)]) {
        let Some(step) = self.in_flight.take() else {
            return;
        };
        let sampled: HashMap<SeqId, u32> = sampled.iter().copied().collect();
        for ran in &step.ran {
            let Some(sequence) = self.sequences.get_mut(&ran.id) else {
                continue;
            };
            sequence.computed += ran.tokens;
            if !ran.samples {
                continue;
            }
            match sampled.get(&ran.id) {
                Some(&token) => {
                    sequence.tokens.push(token);
                    sequence.chain.extend(&sequence.tokens, self.limits.block_tokens);
                }
                None => self.suspend(ran.id),
            }
        }
        self.leave(&step.leaving);
    }

    /// The step was not computed: what it should have written is not there, so its sequences start over with what was there before.
    pub fn on_failure(&mut self) {
        let Some(step) = self.in_flight.take() else {
            return;
        };
        for ran in &step.ran {
            self.suspend(ran.id);
        }
        for block in step.published {
            self.pool.retract(block);
        }
        self.leave(&step.leaving);
    }

    fn leave(&mut self, leaving: &[SeqId]) {
        for &id in leaving {
            self.remove(id);
        }
    }

    /// Takes a running sequence's blocks and lets it wait, at the place its arrival gives it.
    fn suspend(&mut self, id: SeqId) {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        sequence.table.release(&mut self.pool);
        sequence.computed = 0;
        let rank = (sequence.priority, id);
        self.running.remove(&rank);
        self.waiting.insert(rank);
    }
}

#[cfg(test)]
mod tests;
