//! One request that is being written. Input: a message from the queue, progress of its choices. Output: how far it is, the
//! frames of its answer, what was spent on it. Pure but for the message it owns.

use std::collections::BTreeMap;
use std::sync::Arc;

use bus::Job;
use engine::generate::sampling::Logprobs;
use engine::generate::{FinishReason as EngineFinish, Generation, Progress, TextModel};
use schemas::error::{ErrorCode, Failure};
use schemas::generate::{Echo, FinishReason, GenerateTask, PromptToken, TextPart, TokenLogprob, ToolCall, TopToken};
use schemas::ids::RequestId;
use schemas::reply::{Done, Frame, ReplyFrame, Usage};
use serde_bytes::ByteBuf;

use super::prepare::{Made, PromptFacts};
use super::stepper::ChoiceProgress;
use crate::job::{Request, Spent};

/// The model's numbers are broken, or the request forbids every token.
const NO_TOKEN: &str = "the model gave no usable token: its numbers are broken, or every token is forbidden";
/// The fuel of the grammar's parser ran out.
const CONSTRAINT_FAILED: &str = "the grammar that the answer has to conform to is too complex to be followed further";
/// Letters and digits of an id of nine, as Mistral's templates demand.
const ID_ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const ID_CHARS: usize = 9;

/// Why a request ends before its text does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Its client has left.
    Cancelled,
    /// Its deadline has passed.
    Expired,
}

/// A request in hand.
#[derive(Debug)]
pub(super) struct Writing {
    /// The message; settling it is the last thing that happens.
    pub(super) job: Job,
    /// Who asked, and where the answer goes.
    pub(super) request: Request,
    /// What was asked.
    pub(super) task: Arc<GenerateTask>,
    /// It is being given up; what the model still tells of it only counts.
    pub(super) ending: Option<Ending>,
    /// The model has it.
    pub(super) is_running: bool,
    /// Parts of this step, or of all steps when nobody reads along.
    parts: BTreeMap<u32, TextPart>,
    open_choices: u32,
    next_sequence: u32,
    prompts: Vec<PromptFacts>,
    /// Tokens in that did not have to be computed, by prompt.
    cached_tokens: BTreeMap<u32, u64>,
    /// Functions called, by choice.
    calls: BTreeMap<u32, u32>,
    /// Tokens out, by choice.
    output_tokens: BTreeMap<u32, u64>,
    compute_ns: u64,
    queue_us: Option<u64>,
    /// Why a choice could not be written to its end.
    broken: Option<&'static str>,
}

impl Writing {
    /// A request that was just taken from the queue.
    pub(super) fn new(job: Job, request: Request, task: GenerateTask) -> Self {
        let over = |resume: &&schemas::generate::Resume| resume.finish.is_some();
        let finished = task.resume.iter().filter(over);
        let output_tokens: BTreeMap<u32, u64> = finished
            .map(|resume| (resume.choice, resume.tokens.len() as u64))
            .collect();
        Self {
            open_choices: task
                .all_choices()
                .saturating_sub(u32::try_from(output_tokens.len()).unwrap_or(u32::MAX)),
            job,
            request,
            task: Arc::new(task),
            ending: None,
            is_running: false,
            parts: BTreeMap::new(),
            next_sequence: 0,
            prompts: Vec::new(),
            cached_tokens: BTreeMap::new(),
            calls: BTreeMap::new(),
            output_tokens,
            compute_ns: 0,
            queue_us: None,
            broken: None,
        }
    }

    /// Delivery attempt over all messages of the request, from 1.
    pub(super) fn attempt(&self) -> u32 {
        u32::try_from(self.job.delivered())
            .unwrap_or(u32::MAX)
            .saturating_add(self.task.attempts_before)
    }

    /// Whether anything was computed for it.
    pub(super) fn has_run(&self) -> bool {
        self.compute_ns > 0
    }

    /// Whether all choices have ended.
    pub(super) fn is_whole(&self) -> bool {
        self.open_choices == 0
    }

    /// Why it cannot be answered, if a choice could not be written to its end.
    pub(super) fn broken(&self) -> Option<Failure> {
        self.broken.map(|reason| Failure::new(ErrorCode::Internal, reason))
    }

    /// Its prompts are made; gives what is to be generated.
    pub(super) fn on_made(&mut self, made: Made) -> Vec<Generation> {
        self.prompts = made.prompts;
        made.generations
    }

    /// Tokens of its prompts, as far as they are made.
    pub(super) fn prompt_tokens(&self) -> u64 {
        self.prompts.iter().map(|prompt| prompt.count).sum()
    }

    /// The next frame of its answer.
    pub(super) fn frame(&mut self, frame: Frame) -> ReplyFrame {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        ReplyFrame {
            request_id: self.request.request_id,
            attempt: self.attempt(),
            sequence,
            frame,
        }
    }

    /// Takes in what a step did for one choice, and its share of the step's time.
    pub(super) fn on_progress(&mut self, model: &TextModel, made: ChoiceProgress, share_ns: u64, now_ms: u64) {
        let ChoiceProgress { choice, progress, .. } = made;
        self.compute_ns += share_ns;
        let wait_us = now_ms.saturating_sub(self.request.submitted_at_ms) * 1_000;
        self.queue_us.get_or_insert(wait_us);
        let prompt = choice / self.task.choices.max(1);
        if choice.is_multiple_of(self.task.choices.max(1)) {
            self.cached_tokens.insert(prompt, u64::from(progress.cached_tokens));
        }
        self.output_tokens.insert(choice, u64::from(progress.output_tokens));
        let echo = self.echo(model, prompt, &progress);
        let calls = self.calls(model, choice, progress.calls);
        let part = self.parts.entry(choice).or_insert_with(|| TextPart {
            choice,
            ..TextPart::default()
        });
        part.echo = part.echo.take().or(echo);
        part.tool_calls.extend(calls);
        part.text.push_str(&progress.text);
        let logprobs = progress.tokens.iter().zip(&progress.logprobs);
        part.logprobs.extend(logprobs.map(|(token, logprobs)| TokenLogprob {
            bytes: bytes(model, *token),
            logprob: logprobs.logprob,
            top: top(model, logprobs),
        }));
        part.tokens.extend(progress.tokens);
        if let Some(finish) = progress.finish {
            self.open_choices = self.open_choices.saturating_sub(1);
            match finish {
                EngineFinish::Stop => part.finish = Some(FinishReason::Stop),
                EngineFinish::ToolCalls => part.finish = Some(FinishReason::ToolCalls),
                EngineFinish::Length => part.finish = Some(FinishReason::Length),
                EngineFinish::NoToken => self.broken = Some(NO_TOKEN),
                EngineFinish::ConstraintFailed => self.broken = Some(CONSTRAINT_FAILED),
            }
        }
    }

    /// The prompt, when it comes before the answer and this is the answer's first token.
    fn echo(&self, model: &TextModel, prompt: u32, progress: &Progress) -> Option<Echo> {
        if progress.tokens.is_empty() || progress.output_tokens as usize != progress.tokens.len() {
            return None;
        }
        let facts = self.prompts.get(prompt as usize)?;
        let first = std::iter::once(None);
        let found = first.chain(progress.prompt_logprobs.iter().map(Some));
        let tokens = facts.ids.iter().zip(found).map(|(id, logprobs)| PromptToken {
            bytes: bytes(model, *id),
            logprob: logprobs.map(|logprobs| logprobs.logprob),
            top: logprobs.map(|logprobs| top(model, logprobs)).unwrap_or_default(),
        });
        Some(Echo {
            text: facts.text.clone()?,
            tokens: tokens.collect(),
        })
    }

    /// Calls with the ids that the model's family wants; the gateway makes others.
    fn calls(&mut self, model: &TextModel, choice: u32, made: Vec<engine::generate::ToolCall>) -> Vec<ToolCall> {
        let is_short = model.tool_style().is_some_and(|style| style.format().has_short_ids());
        let count = self.calls.entry(choice).or_default();
        let named = made.into_iter().map(|call| {
            *count += 1;
            let id = if is_short {
                short_id(&self.request.request_id, choice, *count)
            } else {
                String::new()
            };
            ToolCall {
                id,
                name: call.name,
                arguments: call.arguments,
            }
        });
        named.collect()
    }

    /// What somebody who reads along is sent after a step, if there is anything new.
    pub(super) fn text_frame(&mut self) -> Option<ReplyFrame> {
        if !self.task.stream || self.is_whole() {
            return None;
        }
        let parts = self.take_parts();
        (!parts.is_empty()).then(|| self.frame(Frame::Text(parts)))
    }

    /// The end of the answer, with the text that was not sent before.
    pub(super) fn done_frame(&mut self) -> ReplyFrame {
        let done = Done {
            text: self.take_parts(),
            usage: self.usage(),
            ..Done::default()
        };
        self.frame(Frame::Done(done))
    }

    fn take_parts(&mut self) -> Vec<TextPart> {
        let says = |part: &TextPart| !part.tokens.is_empty() || !part.text.is_empty() || part.finish.is_some();
        std::mem::take(&mut self.parts).into_values().filter(says).collect()
    }

    fn usage(&self) -> Usage {
        Usage {
            input_tokens: self.prompt_tokens(),
            output_tokens: self.output_tokens.values().sum(),
            cached_tokens: self.cached_tokens.values().sum(),
            queue_us: self.queue_us.unwrap_or_default(),
            compute_ns: self.compute_ns,
        }
    }

    /// What was spent on it.
    pub(super) fn spent(&self) -> Spent {
        let usage = self.usage();
        Spent {
            operation: "generate",
            attempt: self.attempt(),
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            compute_ns: usage.compute_ns,
            queue_us: usage.queue_us,
        }
    }
}

fn bytes(model: &TextModel, token: u32) -> ByteBuf {
    ByteBuf::from(model.token_bytes(token).to_vec())
}

fn top(model: &TextModel, logprobs: &Logprobs) -> Vec<TopToken> {
    let one = |(token, logprob): &(u32, f32)| TopToken {
        bytes: bytes(model, *token),
        logprob: *logprob,
    };
    logprobs.top.iter().map(one).collect()
}

/// An id of nine letters and digits that every delivery of a request gives to the same call.
fn short_id(request_id: &RequestId, choice: u32, place: u32) -> String {
    // The last half of an id is random; odd multipliers keep calls of one request apart.
    let [.., a, b, c, d, e, f, g, h] = *request_id.as_bytes();
    let place = (u64::from(choice) << 32 | u64::from(place)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut rest = u64::from_le_bytes([a, b, c, d, e, f, g, h]) ^ place;
    let mut id = String::with_capacity(ID_CHARS);
    for _ in 0..ID_CHARS {
        id.push(char::from(ID_ALPHABET[(rest % 62) as usize]));
        rest /= 62;
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_ids_are_the_same_again_and_differ_by_call() {
        let request = RequestId::new();
        let id = |choice, place| short_id(&request, choice, place);
        assert_eq!(id(0, 1), id(0, 1));
        let all: std::collections::BTreeSet<String> = (0..3)
            .flat_map(|choice| (0..3).map(move |place| id(choice, place)))
            .collect();
        assert_eq!(all.len(), 9);
        assert!(
            all.iter()
                .all(|id| id.len() == ID_CHARS && id.bytes().all(|byte| byte.is_ascii_alphanumeric()))
        );
        assert_ne!(id(0, 1), short_id(&RequestId::new(), 0, 1));
    }
}
