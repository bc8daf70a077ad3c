//! Answers of `POST /v1/responses`, OpenAI's shape for text. Input: generated text. Output: the response and the events of its
//! stream.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::responses::{ResponsesFormat, ResponsesReasoning};

/// A response, whole or being written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ResponsesBody {
    /// Its id.
    pub id: String,
    /// `response`.
    pub object: String,
    /// When the request came, Unix seconds.
    pub created_at: u64,
    /// `in_progress`, `completed` or `incomplete`.
    pub status: String,
    /// Always `false`.
    pub background: bool,
    /// Always null: what fails is answered as an error.
    pub error: Option<Value>,
    /// Why it is incomplete.
    pub incomplete_details: Option<ResponsesIncomplete>,
    /// As in the request.
    pub instructions: Option<String>,
    /// As in the request.
    pub max_output_tokens: Option<i64>,
    /// As in the request.
    pub metadata: Map<String, Value>,
    /// The model's name.
    pub model: String,
    /// One message.
    pub output: Vec<ResponsesMessage>,
    /// Always `true`; there are no tools.
    pub parallel_tool_calls: bool,
    /// Always null.
    pub previous_response_id: Option<String>,
    /// As in the request.
    pub reasoning: ResponsesReasoning,
    /// Always `default`.
    pub service_tier: String,
    /// Always `false`.
    pub store: bool,
    /// What was drawn with.
    pub temperature: f64,
    /// The format of the answer.
    pub text: ResponsesTextFormat,
    /// Always `auto`.
    pub tool_choice: String,
    /// Always empty.
    pub tools: Vec<Value>,
    /// Always 0.
    pub top_logprobs: u32,
    /// What was drawn with.
    pub top_p: f64,
    /// Always `disabled`.
    pub truncation: String,
    /// What it took, once it is whole.
    pub usage: Option<ResponsesUsage>,
    /// As in the request.
    pub user: Option<String>,
}

/// Why a response is incomplete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResponsesIncomplete {
    /// `max_output_tokens` or `content_filter`.
    pub reason: String,
}

/// The format of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ResponsesTextFormat {
    /// The format.
    pub format: ResponsesFormat,
}

/// The message that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResponsesMessage {
    /// Its id.
    pub id: String,
    /// `message`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `in_progress`, `completed` or `incomplete`.
    pub status: String,
    /// `assistant`.
    pub role: String,
    /// One text.
    pub content: Vec<ResponsesOutputText>,
}

/// A text of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResponsesOutputText {
    /// `output_text`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text.
    pub text: String,
    /// Always empty.
    pub annotations: Vec<Value>,
    /// Always empty.
    pub logprobs: Vec<Value>,
}

/// What a response took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResponsesUsage {
    /// Tokens in, special tokens included.
    pub input_tokens: u64,
    /// Of the tokens in.
    pub input_tokens_details: ResponsesInputDetails,
    /// Tokens out.
    pub output_tokens: u64,
    /// Of the tokens out.
    pub output_tokens_details: ResponsesOutputDetails,
    /// Both.
    pub total_tokens: u64,
}

/// Of the tokens in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResponsesInputDetails {
    /// Tokens that did not have to be computed, because another request began the same.
    pub cached_tokens: u64,
    /// Always 0: keeping them costs nothing.
    pub cache_write_tokens: u64,
}

/// Of the tokens out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResponsesOutputDetails {
    /// Always 0: they are not told apart.
    pub reasoning_tokens: u64,
}

/// One event of a streamed response; which fields it has depends on its type.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ResponsesEvent {
    /// `response.created`, `response.in_progress`, `response.output_item.added`, `response.content_part.added`,
    /// `response.output_text.delta`, `response.output_text.done`, `response.content_part.done`, `response.output_item.done`,
    /// `response.completed`, `response.incomplete` or `error`; also the name of the event.
    #[serde(rename = "type")]
    pub kind: String,
    /// Counts the events from 0.
    pub sequence_number: u64,
    /// The response as it is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<ResponsesBody>,
    /// Which item, always 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_index: Option<u32>,
    /// The item as it is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<ResponsesMessage>,
    /// The item's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item_id: Option<String>,
    /// Which text of the item, always 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_index: Option<u32>,
    /// The text as it is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<ResponsesOutputText>,
    /// What is new of the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta: Option<String>,
    /// The whole text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Always empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<Value>>,
    /// Of `error`: a code from the closed set of `schemas/generated/errors.md`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Of `error`: what was wrong and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Of `error`: the field at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub param: Option<String>,
    /// Of `error`: the same as in other streams, for clients that look for an error only there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<super::service::StreamErrorObject>,
}
