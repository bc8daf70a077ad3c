//! `POST /v1/ranking` in NVIDIA NIM's shape and `POST /v1/rerank` in that of Cohere and Jina. Input: JSON. Output: request and
//! response types.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::embeddings::EmbeddingsUsage;
use crate::work::Truncate;

/// Most passages of one request.
pub const MAX_PASSAGES: usize = 1_000;

/// Body of `POST /v1/ranking`. Unknown fields are refused by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RankingRequest {
    /// The model.
    pub model: String,
    /// What is searched for.
    pub query: RankingText,
    /// What is searched through, at most 1,000.
    pub passages: Vec<RankingText>,
    /// What to do with a pair over the model's limit: `NONE` (default) refuses it, `END` drops tokens at the end of its longer text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncate: Option<Truncate>,
    /// An opaque name of the end user, kept out of logs and ledgers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// A text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RankingText {
    /// The text.
    pub text: String,
}

/// Body of the answer to [`RankingRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RankingResponse {
    /// One per passage, the best first.
    pub rankings: Vec<Ranking>,
    /// What it took.
    pub usage: EmbeddingsUsage,
}

/// How well one passage answers the query.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ranking {
    /// Which passage.
    pub index: u32,
    /// The model's raw score; only its order and distance to others mean something.
    pub logit: f32,
}

/// Body of `POST /v1/rerank`. Unknown fields are refused by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RerankRequest {
    /// The model.
    pub model: String,
    /// What is searched for.
    pub query: String,
    /// What is searched through, at most 1,000.
    pub documents: Vec<RerankDocument>,
    /// How many of the best are answered; all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_n: Option<i64>,
    /// Whether results come with their documents; `false` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub return_documents: Option<bool>,
    /// What to do with a pair over the model's limit: `END` (default) drops tokens at the end of its longer text, `NONE` refuses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncate: Option<Truncate>,
    /// An opaque name of the end user, kept out of logs and ledgers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// A document: its text, bare or in an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RerankDocument(pub String);

impl Serialize for RerankDocument {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RerankDocument {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = RerankDocument;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string or an object with `text`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RerankDocument, E> {
                Ok(RerankDocument(text.to_owned()))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<RerankDocument, E> {
                Ok(RerankDocument(text))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RerankDocument, A::Error> {
                RankingText::deserialize(MapAccessDeserializer::new(map)).map(|object| RerankDocument(object.text))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for RerankDocument {
    fn schema_name() -> Cow<'static, str> {
        "RerankDocument".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let object = generator.subschema_for::<RankingText>();
        json_schema!({"oneOf": [{"type": "string"}, object], "description": "A text, bare or in an object."})
    }
}

/// Body of the answer to [`RerankRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RerankResponse {
    /// The answer's id.
    pub id: String,
    /// The model's name.
    pub model: String,
    /// The best documents, the best first.
    pub results: Vec<RerankResult>,
    /// What it took.
    pub usage: EmbeddingsUsage,
}

/// How well one document answers the query.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RerankResult {
    /// Which document.
    pub index: u32,
    /// 0 to 1: the logistic function of the model's raw score.
    pub relevance_score: f32,
    /// The document, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<RankingText>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_a_text_or_an_object_with_one() {
        let read = |json: &str| serde_json::from_str::<RerankDocument>(json);
        assert_eq!(read("\"a\"").unwrap().0, "a");
        assert_eq!(read(r#"{"text":"a"}"#).unwrap().0, "a");
        for bad in ["1", "null", "[]", "{}", r#"{"text":"a","title":"b"}"#] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
