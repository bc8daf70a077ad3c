//! `POST /v1/completions`, OpenAI's older shape with the fields that NIM adds. Input: JSON. Output: request and response
//! types; chunks of a streamed answer have the shape of the whole one.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::chat::ResponseFormat;
use super::embeddings::{EmbeddingsInput, OneOrMany};
use super::generation::{CompletionUsage, NvExt, StreamOptions, some};

/// Body of `POST /v1/completions`. Unknown fields are refused by name; those that say "ignored" change nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CompletionsRequest {
    /// The model.
    pub model: String,
    /// What the answer goes on from.
    pub prompt: CompletionPrompt,
    /// Text after the answer: not supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suffix: Option<String>,
    /// Most tokens of one answer; 16 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<i64>,
    /// 0 to 2; 1 by default. 0: always the likeliest token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// 0 to 1; 1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Answers wanted to each prompt; 1 by default, at most 128 for all prompts together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<i64>,
    /// Answers written, of which the `n` likeliest per token are given; `n` to 20, not with `stream`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_of: Option<i64>,
    /// Whether the answer comes in chunks as it is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// Only with `stream`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_options: Option<StreamOptions>,
    /// How many of the likeliest tokens come with each token and its log probability, 0 to 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<i64>,
    /// Whether the answer begins with the prompt, with `logprobs` also its tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub echo: Option<bool>,
    /// Texts that end the answer, at most 16; they are not part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<OneOrMany>,
    /// −2 to 2; 0 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f64>,
    /// −2 to 2; 0 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f64>,
    /// Token id (as text) to −100…100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logit_bias: Option<BTreeMap<String, f64>>,
    /// The same seed and request, the same answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// An opaque name of the end user, kept out of logs and ledgers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// What the answer has to conform to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_format: Option<ResponseFormat>,
    /// NIM: only so many of the likeliest tokens; −1 or 0: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<i64>,
    /// NIM: only tokens at least this likely, relative to the likeliest; 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f64>,
    /// NIM: over 0, at most 10; 1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f64>,
    /// NIM: tokens before the answer may end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_tokens: Option<i64>,
    /// NIM: whether the model's end tokens are tokens like all others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore_eos: Option<bool>,
    /// NIM: the answer is JSON of this schema (an object, or its text).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guided_json: Option<Value>,
    /// NIM: the answer matches this regular expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guided_regex: Option<String>,
    /// NIM: the answer is one of these texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guided_choice: Option<Vec<String>>,
    /// NIM: the answer conforms to this grammar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guided_grammar: Option<String>,
    /// NIM: ignored, there is one backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guided_decoding_backend: Option<String>,
    /// NIM: ignored, JSON is written with the model's own spaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guided_whitespace_pattern: Option<String>,
    /// NVIDIA's extensions; what is not known in it is ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvext: Option<NvExt>,
}

/// A text, a list of token ids, or a list of either.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CompletionPrompt(pub EmbeddingsInput);

impl JsonSchema for CompletionPrompt {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "CompletionPrompt".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A text, a list of token ids, or a list of either; at most 128 prompts.",
            "oneOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 128},
                {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                {
                    "type": "array",
                    "items": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                    "minItems": 1,
                    "maxItems": 128
                }
            ]
        })
    }
}

/// Body of the answer, and of each chunk of a streamed one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TextCompletion {
    /// `cmpl-…`.
    pub id: String,
    /// `text_completion`.
    pub object: String,
    /// When the request came, Unix seconds.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// Stands for weights and number format: the same seed gives the same answer while it stays the same.
    pub system_fingerprint: String,
    /// The answers, `n` of them; in a chunk what is new.
    pub choices: Vec<TextChoice>,
    /// What it took; in chunks only with `stream_options.include_usage`, null before the last.
    #[serde(default, deserialize_with = "some", skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<CompletionUsage>>,
}

/// One answer, or what is new in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TextChoice {
    /// The text.
    pub text: String,
    /// Which answer, from 0: all to the first prompt, then all to the next.
    pub index: u32,
    /// How likely its tokens were, if asked for.
    pub logprobs: Option<TextLogprobs>,
    /// `stop`, `length` or `content_filter`; null in chunks before the last of an answer.
    pub finish_reason: Option<String>,
}

/// How likely the tokens were: four lists of one length.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct TextLogprobs {
    /// The tokens' texts; bytes that are no whole character as `bytes:\xe2\x82`.
    pub tokens: Vec<String>,
    /// Natural logarithms of their probabilities; null for the first token of an echoed prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// The likeliest tokens in their places; null where their logarithm is.
    pub top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    /// Where each begins in the text, in characters.
    pub text_offset: Vec<u64>,
}
