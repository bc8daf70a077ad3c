//! `POST /v1/tokenize` and `POST /v1/detokenize`, in the shape of vLLM and NIM. Input: JSON. Output: request and response types.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::chat::{ChatMessage, ChatTool};

/// Body of `POST /v1/tokenize`: a `prompt`, or `messages` as the model's chat template writes them. Unknown fields are refused by name.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenizeRequest {
    /// The model.
    pub model: String,
    /// A text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// A conversation, oldest first; only for models that write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<ChatMessage>>,
    /// Whether the model's special tokens are put around; by default they are around a `prompt` and not around `messages`, whose
    /// template writes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub add_special_tokens: Option<bool>,
    /// Whether each token comes as text too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub return_token_strs: Option<bool>,
    /// Of `messages`: whether the template begins the assistant's turn; `true` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub add_generation_prompt: Option<bool>,
    /// Of `messages`: whether the last one is unfinished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continue_final_message: Option<bool>,
    /// Of `messages`: functions that the template is told of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<ChatTool>>,
    /// Of `messages`: further variables of the chat template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template_kwargs: Option<Map<String, Value>>,
}

/// Body of the answer to [`TokenizeRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenizeResponse {
    /// How many.
    pub count: u32,
    /// Most tokens of one input, or of prompt and answer together.
    pub max_model_len: u32,
    /// Their ids.
    pub tokens: Vec<u32>,
    /// How the vocabulary spells them, if it was asked for.
    pub token_strs: Option<Vec<String>>,
}

/// Body of `POST /v1/detokenize`. Unknown fields are refused by name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DetokenizeRequest {
    /// The model.
    pub model: String,
    /// Token ids of its vocabulary.
    pub tokens: Vec<u32>,
}

/// Body of the answer to [`DetokenizeRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DetokenizeResponse {
    /// The text, special tokens included.
    pub prompt: String,
}
