//! What `POST /v1/chat/completions` answers, whole and in chunks. Input: generated text. Output: response types; the tool
//! calls among them come back in later requests.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::generation::{CompletionUsage, some};

/// Body of the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChatCompletion {
    /// `chatcmpl-…`.
    pub id: String,
    /// `chat.completion`.
    pub object: String,
    /// When the request came, Unix seconds.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// The answers, `n` of them.
    pub choices: Vec<ChatChoice>,
    /// What it took.
    pub usage: CompletionUsage,
    /// Stands for weights and number format: the same seed gives the same answer while it stays the same.
    pub system_fingerprint: String,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChatChoice {
    /// Which, from 0.
    pub index: u32,
    /// What the model said.
    pub message: AnswerMessage,
    /// How likely its tokens were, if asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length`, `tool_calls` or `content_filter`.
    pub finish_reason: String,
}

/// What the model said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AnswerMessage {
    /// `assistant`.
    pub role: String,
    /// The text; null when it only called functions.
    pub content: Option<String>,
    /// Always null.
    pub refusal: Option<String>,
    /// Functions called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ChatToolCall>,
}

/// A function that was called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChatToolCall {
    /// Ignored: a position, which clients leave in calls that they put together from chunks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    /// Its id.
    pub id: String,
    /// `function`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The function and its arguments.
    pub function: ChatFunctionCall,
}

/// A function and its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChatFunctionCall {
    /// The function's name.
    pub name: String,
    /// The arguments as JSON text.
    pub arguments: String,
}

/// How likely the tokens of an answer were.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChatLogprobs {
    /// One per token.
    pub content: Option<Vec<ChatTokenLogprob>>,
    /// Always null.
    pub refusal: Option<Vec<ChatTokenLogprob>>,
}

/// How likely one token was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChatTokenLogprob {
    /// The token's text; bytes that are no whole character as `bytes:\xe2\x82`.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The token's bytes.
    pub bytes: Option<Vec<u8>>,
    /// The likeliest tokens in its place.
    pub top_logprobs: Vec<ChatTopLogprob>,
}

/// One of the likeliest tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChatTopLogprob {
    /// The token's text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The token's bytes.
    pub bytes: Option<Vec<u8>>,
}

/// One event of a streamed answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChatChunk {
    /// The same in all chunks of an answer.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: String,
    /// The same in all chunks.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// Stands for weights and number format.
    pub system_fingerprint: String,
    /// What is new; empty in the chunk with the usage.
    pub choices: Vec<ChatChunkChoice>,
    /// Only with `stream_options.include_usage`: null, and in the last chunk what it took.
    #[serde(default, deserialize_with = "some", skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<CompletionUsage>>,
}

/// What is new in one answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChatChunkChoice {
    /// Which answer, from 0.
    pub index: u32,
    /// What is new.
    pub delta: ChatDelta,
    /// How likely the new tokens were, if asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended; null before.
    pub finish_reason: Option<String>,
}

/// What is new in a message.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ChatDelta {
    /// `assistant`, in the first chunk of an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Text that follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Functions called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ChatToolCallDelta>,
}

/// What is new of a call: first its id and its function's name, then its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ChatToolCallDelta {
    /// Its position among the calls of the answer.
    pub index: u32,
    /// Its id, in its first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function`, in its first chunk.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// What is new of the function.
    pub function: ChatFunctionDelta,
}

/// What is new of a function that is called.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ChatFunctionDelta {
    /// Its name, in the first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// JSON text that follows.
    pub arguments: String,
}
