//! `POST /v1/translations`, Portalis' own: a Python module in, Rust out. Input: JSON. Output: request, answer and event
//! types; the report of `portalis translate` is made of the same parts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::generation::CompletionUsage;

/// Body of `POST /v1/translations`. Unknown fields are refused by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TranslationRequest {
    /// The model that translates.
    pub model: String,
    /// A Python module.
    pub source: String,
    /// Whether what became of each function comes as an event as soon as it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// How often a function is asked for again, with the words of what refused it; 0 to 3, 1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<i64>,
    /// Only `false`: what a model wrote is not compiled and run here, `portalis translate --verify` does that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<bool>,
    /// An opaque name of the end user, kept out of logs and ledgers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// What a top-level statement of a module is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TranslationKind {
    /// `def`.
    Function,
    /// `class`.
    Class,
    /// `import` or `from … import`.
    Import,
    /// Anything else.
    Statement,
}

/// What became of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TranslationStatus {
    /// The first answer passed every check that was asked for.
    Translated,
    /// A later answer did, after the model was told what was wrong.
    Repaired,
    /// It is Rust, but nobody has compiled it, or it should have been run and was not.
    Unverified,
    /// No answer passed.
    Failed,
    /// It is of a kind that is not translated.
    Unsupported,
}

/// One top-level statement of a module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TranslationItem {
    /// What it is.
    pub kind: TranslationKind,
    /// The name of a function or class.
    pub name: Option<String>,
    /// The line it begins on, from 1.
    pub line: u64,
    /// What became of it.
    pub status: TranslationStatus,
    /// Why it is not simply translated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How many answers the model gave.
    pub attempts: u32,
    /// Whether all of them came from the cache.
    pub cached: bool,
    /// Whether rustc takes it; absent when it was not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compiles: Option<bool>,
    /// Whether it gives what Python gave in all cases; absent when it was not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behaves: Option<bool>,
    /// The last answer that was Rust, also when it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rust: Option<String>,
}

impl TranslationItem {
    /// Whether its Rust stands in the output.
    #[must_use]
    pub fn is_written(&self) -> bool {
        use TranslationStatus::{Repaired, Translated, Unverified};
        matches!(self.status, Translated | Repaired | Unverified)
    }
}

/// How many functions became what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TranslationSummary {
    /// Functions of the module, not counting those in classes.
    pub functions: u64,
    /// Passed every check at the first answer.
    pub translated: u64,
    /// Passed at a later answer.
    pub repaired: u64,
    /// Rust that was not compiled, or not run although it should have been.
    pub unverified: u64,
    /// No answer passed.
    pub failed: u64,
    /// Of a kind that is not translated.
    pub unsupported: u64,
}

/// The answer: what became of every statement, and one Rust file. The last event of a streamed answer has this shape too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Translation {
    /// `translation-…`.
    pub id: String,
    /// `translation`.
    pub object: String,
    /// When the request came, Unix seconds.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// Whether every function was translated and there is no class.
    pub complete: bool,
    /// Functions by what became of them.
    pub summary: TranslationSummary,
    /// Every top-level statement, in source order.
    pub items: Vec<TranslationItem>,
    /// The Rust file: functions in source order, and comments for what was not translated.
    pub rust: String,
    /// What all answers of the model took, those from the cache included.
    pub usage: CompletionUsage,
}

/// One event of a streamed answer: a statement whose fate is known. They come in any order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TranslationEvent {
    /// `translation-…`, the same in all events.
    pub id: String,
    /// `translation.item`.
    pub object: String,
    /// When the request came, Unix seconds.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// Its place among the top-level statements, from 0.
    pub index: u64,
    /// What became of it.
    pub item: TranslationItem,
}
