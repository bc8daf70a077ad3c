//! Replies of workers. Input: results of a batch. Output: frames to the caller's reply subject, coalesced per gateway.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::generate::TextPart;
use crate::ids::RequestId;
use crate::vector::Vector;

/// All frames of one worker step for one gateway; body of `portalis.v1.reply.<gateway>.b`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReplyBatch {
    /// The frames; those of one request are in order.
    pub frames: Vec<ReplyFrame>,
}

/// One step of one request's answer; alone it is the body of a plain reply subject.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReplyFrame {
    /// The request answered.
    pub request_id: RequestId,
    /// Delivery attempt of the work, from 1; frames of an older attempt are dropped.
    pub attempt: u32,
    /// Position among the frames of this attempt, from 0; a gap means a lost frame.
    pub sequence: u32,
    /// What happened.
    pub frame: Frame,
}

/// What happened to a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Frame {
    /// A worker has it.
    Accepted(Accepted),
    /// Some of the answer; more follows.
    Part(EmbedPart),
    /// What a step added to a text; more follows. All choices of a step share a frame.
    Text(Vec<TextPart>),
    /// The rest of the answer and what it took; nothing follows.
    Done(Done),
    /// It failed; nothing follows.
    Failed(Failure),
}

/// A worker has the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Accepted {
    /// The worker's instance name, as in its heartbeats.
    pub worker: String,
    /// Where the work can be given back to the queue when the worker dies.
    pub ack_subject: String,
}

/// Consecutive vectors of the answer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct EmbedPart {
    /// Index of the first vector among the inputs.
    pub first: u32,
    /// The vectors.
    pub vectors: Vec<Vector>,
}

/// The end of an answer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Done {
    /// The vectors not sent before.
    #[serde(default)]
    pub embed: EmbedPart,
    /// The text not sent before; with it every choice has ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub text: Vec<TextPart>,
    /// How well each passage answers the query, in the order of the passages: the model's raw scores.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<f32>,
    /// What it took.
    pub usage: Usage,
}

/// What a request took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Tokens in, special tokens included; of a generation the prompt's, once for all choices.
    pub input_tokens: u64,
    /// Tokens out of all choices, those that an earlier worker sent included.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub output_tokens: u64,
    /// Tokens in that did not have to be computed, because another request began the same.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cached_tokens: u64,
    /// From submission to the start of its first batch, in microseconds.
    pub queue_us: u64,
    /// Its share of the device's busy time, in nanoseconds.
    pub compute_ns: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}
