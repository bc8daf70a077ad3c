//! What is asked of a generator: the fields of one answer, and the check of their ranges.

use crate::generate::constraint::Constraint;
use crate::generate::detokenize::Detokenizer;
use crate::generate::sampling::{MAX_TOP_LOGPROBS, ParameterError, SamplingParams};
use crate::generate::scheduler::Refusal;
use crate::generate::tool_calls::ToolReader;

/// One answer to be generated.
#[derive(Debug, Clone)]
pub struct Generation {
    /// The prompt, special tokens included.
    pub prompt: Vec<u32>,
    /// Tokens of this answer that were generated and given out before (by another worker); the answer goes on behind them.
    pub resumed: Vec<u32>,
    /// Which of the request's choices it is; choices of equal seeds differ.
    pub choice: u32,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// The answer ends before the first of these; it is not given out.
    pub stop: Vec<String>,
    /// The answer also ends with one of these tokens.
    pub stop_tokens: Vec<u32>,
    /// Most tokens of the answer (resumed ones included); `None`, or more than the context has room for: up to the end of the context.
    pub max_tokens: Option<u32>,
    /// Before so many tokens no end token is chosen and no stop string looked for.
    pub min_tokens: u32,
    /// The model's end tokens do not end the answer.
    pub ignore_eos: bool,
    /// Log probabilities of the tokens, with so many alternatives ([`MAX_TOP_LOGPROBS`] at most).
    pub logprobs: Option<u8>,
    /// Log probabilities of the prompt's tokens from the second on, with so many alternatives; then all of the prompt is computed.
    pub prompt_logprobs: Option<u8>,
    /// What the answer has to conform to, as it is before the first token; a complete answer ends, whatever `ignore_eos` says.
    pub constraint: Option<Constraint>,
    /// Calls of functions are read out of the text.
    pub calls: Option<ToolReader>,
    /// 0 is the most urgent.
    pub priority: u8,
    /// Prompts share what is computed of them only under the same salt; it should name at least the tenant.
    pub salt: Vec<u8>,
    /// A fresh detokenizer of the model.
    pub detokenizer: Detokenizer,
}

impl Generation {
    /// The answer to a prompt, with nothing special asked for.
    pub fn new(prompt: Vec<u32>, detokenizer: Detokenizer) -> Self {
        Self {
            prompt,
            resumed: Vec::new(),
            choice: 0,
            sampling: SamplingParams::default(),
            stop: Vec::new(),
            stop_tokens: Vec::new(),
            max_tokens: None,
            min_tokens: 0,
            ignore_eos: false,
            logprobs: None,
            prompt_logprobs: None,
            constraint: None,
            calls: None,
            priority: 0,
            salt: Vec::new(),
            detokenizer,
        }
    }

    /// Checks everything that does not depend on how full the generator is.
    pub(super) fn check(&self, vocab: usize) -> Result<(), Refusal> {
        self.sampling.check(vocab)?;
        let refuse = |name, value: u32, expected| {
            Err(Refusal::Parameter(ParameterError {
                name,
                value: f64::from(value),
                expected,
            }))
        };
        match (self.max_tokens, self.logprobs.max(self.prompt_logprobs)) {
            (Some(0), _) => return refuse("max_tokens", 0, "1 or more"),
            (Some(max), _) if self.min_tokens > max => {
                return refuse("min_tokens", self.min_tokens, "at most `max_tokens`");
            }
            (_, Some(top)) if top > MAX_TOP_LOGPROBS => return refuse("logprobs", u32::from(top), "at most 20"),
            _ => {}
        }
        let mut tokens = self.prompt.iter().chain(&self.resumed);
        match tokens.find(|id| **id as usize >= vocab) {
            Some(&id) => Err(Refusal::TokenOutOfRange { id, vocab }),
            None => Ok(()),
        }
    }
}
