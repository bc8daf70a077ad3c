//! Texts to tokens and back. Input: a text, a conversation or token ids. Output: bodies of `portalis.v1.tokens.<model>`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::generate::ChatPrompt;

/// Gateway or internal publisher → any worker of the model. The header Portalis-Identity says who asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TokensAsk {
    /// The model's true name (the subject holds its slug).
    pub model: String,
    /// What is asked.
    pub question: TokensQuestion,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokensQuestion {
    /// Which tokens is this?
    Tokenize(Tokenize),
    /// Which text are these token ids?
    Detokenize(Vec<u32>),
}

/// Which tokens is this?
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Tokenize {
    /// The text.
    pub text: TokenizeText,
    /// Whether the model's special tokens are put around.
    #[serde(default)]
    pub add_special_tokens: bool,
    /// Whether each token's spelling is wanted too.
    #[serde(default)]
    pub spellings: bool,
}

/// What is tokenized.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenizeText {
    /// A text as it is.
    Text(String),
    /// A conversation, written by the model's chat template.
    Chat(Box<ChatPrompt>),
}

/// worker → asker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokensReply {
    /// The tokens.
    Tokenized(Tokenized),
    /// The text, special tokens included.
    Detokenized(String),
    /// Why not.
    Failed(Failure),
}

/// The tokens of a text.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Tokenized {
    /// Their ids.
    pub tokens: Vec<u32>,
    /// One per token, if they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spellings: Vec<String>,
}
