//! What chat and plain completions share. Input: JSON. Output: option, extension and usage types.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// Options of a streamed answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamOptions {
    /// Whether a last chunk says what the answer took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include_usage: Option<bool>,
    /// Ignored: chunks carry no padding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include_obfuscation: Option<bool>,
}

/// NVIDIA's extensions. What is not known in it is ignored: clients send hints for a certain server there.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct NvExt {
    /// The same as at the top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guided_json: Option<Value>,
    /// The same as at the top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guided_regex: Option<String>,
    /// The same as at the top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guided_choice: Option<Vec<String>>,
    /// The same as at the top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guided_grammar: Option<String>,
    /// The same as at the top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore_eos: Option<bool>,
    /// The same as at the top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<i64>,
    /// The same as at the top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f64>,
    /// Always the likeliest token, whatever `temperature` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub greed_sampling: Option<bool>,
}

/// What an answer took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct CompletionUsage {
    /// Tokens in, special tokens included.
    pub prompt_tokens: u64,
    /// Tokens out of all answers.
    pub completion_tokens: u64,
    /// Both.
    pub total_tokens: u64,
    /// Of the tokens in.
    pub prompt_tokens_details: PromptTokensDetails,
}

/// Of the tokens in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct PromptTokensDetails {
    /// Tokens that did not have to be computed, because another request began the same.
    pub cached_tokens: u64,
}

impl CompletionUsage {
    /// The usage of an answer.
    #[must_use]
    pub fn new(prompt_tokens: u64, completion_tokens: u64, cached_tokens: u64) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }
}

/// Tells a null from a field that is not there.
pub(super) fn some<'de, T, D>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Option::deserialize(deserializer).map(Some)
}
