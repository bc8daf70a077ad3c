//! What a generator tells: the progress of each sequence, facts about a step, and how full it is.

use std::time::Duration;

use super::FinishReason;
use crate::generate::sampling::Logprobs;
use crate::generate::scheduler::SeqId;
use crate::generate::tool_calls::ToolCall;

/// What a step did for one sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// The sequence.
    pub id: SeqId,
    /// Text that can be given out; may lag behind the tokens by an unfinished character or what may be the start of a stop string.
    pub text: String,
    /// Tokens that were chosen (one, or none while the prompt is computed), the one that ended the answer included.
    pub tokens: Vec<u32>,
    /// One for each of `tokens` when they were asked for, else none.
    pub logprobs: Vec<Logprobs>,
    /// How likely the prompt's tokens were, from its second one on; once, with the first token, when they were asked for.
    pub prompt_logprobs: Vec<Logprobs>,
    /// Functions called; their text is not in `text`.
    pub calls: Vec<ToolCall>,
    /// Set in the last progress of a sequence.
    pub finish: Option<FinishReason>,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Those of them that were in the cache already when it was first admitted.
    pub cached_tokens: u32,
    /// Tokens chosen so far, resumed ones and the one that ended the answer included.
    pub output_tokens: u32,
    /// Tokens that this step computed for it: its share of the step.
    pub step_tokens: u32,
}

/// Facts about a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepStats {
    /// Tokens of prompts, and tokens computed again after a preemption.
    pub prefill_tokens: u32,
    /// Tokens that followed a sampled one.
    pub decode_tokens: u32,
    /// Sequences that took part.
    pub sequences: u32,
    /// Sequences that had to give their blocks back.
    pub preempted: u32,
    /// The part of its time that went into masks of constrained answers.
    pub masking: Duration,
    /// How long it took, sampling included.
    pub busy: Duration,
}

/// The outcome of a step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Step {
    /// One for each sequence that took part.
    pub progress: Vec<Progress>,
    /// Facts about it.
    pub stats: StepStats,
}

/// How full a generator is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupancy {
    /// Sequences with blocks.
    pub running: usize,
    /// Sequences waiting for a place.
    pub waiting: usize,
    /// Sequences that could start besides those, as far as places go; none while others wait.
    pub places: usize,
    /// Blocks of the cache that are not in use (their content may still be reused).
    pub free_blocks: usize,
    /// Blocks of the cache.
    pub blocks: usize,
}
