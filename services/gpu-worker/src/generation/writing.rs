//! One request that is being written. Input: a message from the queue, progress of its choices. Output: how far it is, the
//! frames of its answer, what was spent on it. Pure but for the message it owns.

use std::collections::BTreeMap;

use bus::Job;
use engine::generate::{FinishReason as EngineFinish, TextModel};
use schemas::generate::{FinishReason, GenerateTask, TextPart, TokenLogprob, TopToken};
use schemas::reply::{Done, Frame, ReplyFrame, Usage};
use serde_bytes::ByteBuf;

use super::stepper::ChoiceProgress;
use crate::job::{Request, Spent};

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
    pub(super) task: GenerateTask,
    /// It is being given up; what the model still tells of it only counts.
    pub(super) ending: Option<Ending>,
    /// The model has it.
    pub(super) is_running: bool,
    /// Parts of this step, or of all steps when nobody reads along.
    parts: BTreeMap<u32, TextPart>,
    open_choices: u32,
    next_sequence: u32,
    input_tokens: u64,
    cached_tokens: u64,
    /// Tokens out, by choice.
    output_tokens: BTreeMap<u32, u64>,
    compute_ns: u64,
    queue_us: Option<u64>,
    /// A choice for which the model had no usable token.
    is_broken: bool,
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
                .choices
                .saturating_sub(u32::try_from(output_tokens.len()).unwrap_or(u32::MAX)),
            job,
            request,
            task,
            ending: None,
            is_running: false,
            parts: BTreeMap::new(),
            next_sequence: 0,
            input_tokens: 0,
            cached_tokens: 0,
            output_tokens,
            compute_ns: 0,
            queue_us: None,
            is_broken: false,
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

    /// Whether the model gave no usable token.
    pub(super) fn is_broken(&self) -> bool {
        self.is_broken
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
        let progress = made.progress;
        self.compute_ns += share_ns;
        let wait_us = now_ms.saturating_sub(self.request.submitted_at_ms) * 1_000;
        self.queue_us.get_or_insert(wait_us);
        self.input_tokens = u64::from(progress.prompt_tokens);
        if made.choice == 0 {
            self.cached_tokens = u64::from(progress.cached_tokens);
        }
        self.output_tokens
            .insert(made.choice, u64::from(progress.output_tokens));
        let part = self.parts.entry(made.choice).or_insert_with(|| TextPart {
            choice: made.choice,
            ..TextPart::default()
        });
        part.text.push_str(&progress.text);
        let logprobs = progress.tokens.iter().zip(&progress.logprobs);
        part.logprobs.extend(logprobs.map(|(token, logprobs)| {
            TokenLogprob {
                bytes: bytes(model, *token),
                logprob: logprobs.logprob,
                top: logprobs
                    .top
                    .iter()
                    .map(|(token, logprob)| TopToken {
                        bytes: bytes(model, *token),
                        logprob: *logprob,
                    })
                    .collect(),
            }
        }));
        part.tokens.extend(progress.tokens);
        if let Some(finish) = progress.finish {
            self.open_choices = self.open_choices.saturating_sub(1);
            match finish {
                EngineFinish::Stop => part.finish = Some(FinishReason::Stop),
                EngineFinish::Length => part.finish = Some(FinishReason::Length),
                EngineFinish::NoToken => self.is_broken = true,
            }
        }
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
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens.values().sum(),
            cached_tokens: self.cached_tokens,
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
