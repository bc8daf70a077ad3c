//! Work: what a gateway or an internal publisher asks of a worker. Input: a validated request. Output: the body of
//! `portalis.v1.work.<model>.<lane>.<tenant>`.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, SeqAccess};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::generate::GenerateTask;
use crate::ids::RequestId;

/// Priority of work; each lane has its own consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Somebody waits.
    #[default]
    Interactive,
    /// A job waits.
    Batch,
    /// Nobody waits.
    Background,
}

impl Lane {
    /// All lanes, most urgent first.
    pub const ALL: [Self; 3] = [Self::Interactive, Self::Batch, Self::Background];

    /// The lane's token in subjects.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Batch => "batch",
            Self::Background => "background",
        }
    }

    /// The lane of a subject token.
    #[must_use]
    pub fn parse(token: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| lane.as_str() == token)
    }
}

/// One request for a worker. Identity, deadline, reply subject and trace travel as headers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Work {
    /// Who asked what, once.
    pub request_id: RequestId,
    /// The model's true name (the subject holds its slug).
    pub model: String,
    /// When the request reached the mesh, Unix milliseconds; queue wait is counted from here.
    #[serde(default)]
    pub submitted_at_ms: u64,
    /// What to do.
    pub task: Task,
}

/// What to do. A kind that a worker does not know is refused with `unsupported_work`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Embed texts.
    Embed(EmbedTask),
    /// Write text that goes on from a prompt.
    Generate(Box<GenerateTask>),
    /// Say how well passages answer a query.
    Rank(RankTask),
}

/// Embed texts, one vector per input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EmbedTask {
    /// The inputs, at least one.
    pub inputs: Vec<EmbedInput>,
    /// What to do with an input over the model's limit.
    #[serde(default)]
    pub truncate: Truncate,
    /// Which side of a search the inputs are; ignored by symmetric models and for token ids, which are taken as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_type: Option<InputType>,
}

/// Say how well each passage answers the query.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RankTask {
    /// What is searched for.
    pub query: String,
    /// What is searched through, at least one.
    pub passages: Vec<String>,
    /// What to do with a pair over the model's limit; what is cut is cut from its longer text.
    #[serde(default)]
    pub truncate: Truncate,
}

/// What to do with an input over the model's limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum Truncate {
    /// Refuse it.
    #[default]
    #[serde(rename = "NONE")]
    None,
    /// Drop tokens at the start.
    #[serde(rename = "START")]
    Start,
    /// Drop tokens at the end.
    #[serde(rename = "END")]
    End,
}

/// Which side of a search an input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InputType {
    /// What is searched for.
    Query,
    /// What is searched through.
    Passage,
}

/// One input: text, or token ids of the model's own vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EmbedInput {
    /// UTF-8 text.
    Text(String),
    /// Token ids without special tokens.
    Tokens(Vec<u32>),
}

impl Serialize for EmbedInput {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => serializer.serialize_str(text),
            Self::Tokens(ids) => ids.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for EmbedInput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = EmbedInput;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string or an array of token ids")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<EmbedInput, E> {
                Ok(EmbedInput::Text(text.to_owned()))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<EmbedInput, E> {
                Ok(EmbedInput::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<EmbedInput, A::Error> {
                let mut ids = Vec::with_capacity(sequence.size_hint().unwrap_or(0).min(65_536));
                while let Some(id) = sequence.next_element()? {
                    ids.push(id);
                }
                Ok(EmbedInput::Tokens(ids))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for EmbedInput {
    fn schema_name() -> Cow<'static, str> {
        "EmbedInput".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "oneOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 4_294_967_295_u32}}
            ],
            "description": "Text, or token ids of the model's vocabulary without special tokens."
        })
    }
}

/// Asks a worker to stop what nobody waits for any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cancel {
    /// The requests whose clients have left.
    pub request_ids: Vec<RequestId>,
}
