//! `POST /v1/embeddings`, OpenAI's shape with NIM's fields. Input: JSON. Output: request and response types.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::work::{EmbedInput, InputType, Truncate};

/// Most inputs of one request (OpenAI's limit).
pub const MAX_INPUTS: usize = 2_048;

/// Body of `POST /v1/embeddings`. Unknown fields are refused by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingsRequest {
    /// The model, optionally with NIM's suffix `-query` or `-passage` in place of `input_type`.
    pub model: String,
    /// What to embed.
    pub input: EmbeddingsInput,
    /// `float` (default) or `base64` (little-endian 32-bit floats).
    #[serde(default)]
    pub encoding_format: Option<EncodingFormat>,
    /// Length of the vectors; only for models that can shorten them.
    #[serde(default)]
    pub dimensions: Option<i64>,
    /// An opaque name of the end user, kept out of logs and ledgers.
    #[serde(default)]
    pub user: Option<String>,
    /// NIM: which side of a search the inputs are.
    #[serde(default)]
    pub input_type: Option<InputType>,
    /// NIM: what to do with an input over the model's limit; `NONE` by default.
    #[serde(default)]
    pub truncate: Option<Truncate>,
    /// NIM: number type of the vectors; only `float` is supported.
    #[serde(default)]
    pub embedding_type: Option<EmbeddingType>,
    /// NIM: kind of input; only `text` is supported, once or once per input.
    #[serde(default)]
    pub modality: Option<OneOrMany>,
}

/// One input or several.
#[derive(Debug, Clone, PartialEq)]
pub enum EmbeddingsInput {
    /// One text or one list of token ids.
    One(EmbedInput),
    /// Several.
    Many(Vec<EmbedInput>),
}

impl Serialize for EmbeddingsInput {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::One(input) => input.serialize(serializer),
            Self::Many(inputs) => inputs.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for EmbeddingsInput {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputVisitor)
    }
}

/// Reads a string, a list of strings, a list of ids or a list of lists of ids, deciding by the first element.
struct InputVisitor;

/// One element of the `input` list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Element {
    Id(u32),
    Input(EmbedInput),
}

impl<'de> serde::de::Visitor<'de> for InputVisitor {
    type Value = EmbeddingsInput;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a string, a list of strings, a list of token ids, or a list of lists of token ids")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<EmbeddingsInput, E> {
        Ok(EmbeddingsInput::One(EmbedInput::Text(text.to_owned())))
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<EmbeddingsInput, E> {
        Ok(EmbeddingsInput::One(EmbedInput::Text(text)))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut sequence: A) -> Result<EmbeddingsInput, A::Error> {
        use serde::de::Error as _;
        let refuse = |index: usize| {
            A::Error::custom(format!(
                "element {index}: expected all strings, all token ids, or all lists of token ids"
            ))
        };
        let mut ids = Vec::new();
        let mut inputs = Vec::new();
        let mut index = 0;
        loop {
            match sequence.next_element::<Element>() {
                Ok(None) => break,
                Ok(Some(Element::Id(id))) if inputs.is_empty() => ids.push(id),
                Ok(Some(Element::Input(input))) if ids.is_empty() => {
                    let same = inputs
                        .first()
                        .is_none_or(|first| std::mem::discriminant(first) == std::mem::discriminant(&input));
                    if !same {
                        return Err(refuse(index));
                    }
                    inputs.push(input);
                }
                Ok(Some(_)) => return Err(refuse(index)),
                Err(error) if error.to_string().contains("did not match any variant") => {
                    return Err(refuse(index));
                }
                Err(error) => return Err(error),
            }
            index += 1;
        }
        if ids.is_empty() {
            Ok(EmbeddingsInput::Many(inputs))
        } else {
            Ok(EmbeddingsInput::One(EmbedInput::Tokens(ids)))
        }
    }
}

impl JsonSchema for EmbeddingsInput {
    fn schema_name() -> Cow<'static, str> {
        "EmbeddingsInput".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "One text or one list of token ids, or a list of them (at most 2048).",
            "oneOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2048},
                {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                {
                    "type": "array",
                    "items": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                    "minItems": 1,
                    "maxItems": 2048
                }
            ]
        })
    }
}

/// How vectors are written in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EncodingFormat {
    /// Numbers.
    #[default]
    Float,
    /// Base64 of little-endian 32-bit floats.
    Base64,
}

/// NIM's number types of vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EmbeddingType {
    /// 32-bit floats, the only one supported.
    Float,
    /// Not supported.
    Int8,
    /// Not supported.
    Uint8,
    /// Not supported.
    Binary,
    /// Not supported.
    Ubinary,
}

/// A text or a list of texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// Body of the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EmbeddingsResponse {
    /// `list`.
    pub object: String,
    /// One per input, in their order.
    pub data: Vec<EmbeddingObject>,
    /// The model's name.
    pub model: String,
    /// What it took.
    pub usage: EmbeddingsUsage,
}

/// One vector of the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EmbeddingObject {
    /// `embedding`.
    pub object: String,
    /// Which input.
    pub index: u32,
    /// The vector.
    pub embedding: EncodedVector,
}

/// A vector as numbers or base64.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum EncodedVector {
    /// Numbers.
    Float(Vec<f32>),
    /// Base64 of little-endian 32-bit floats.
    Base64(String),
}

/// Tokens of an embeddings request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EmbeddingsUsage {
    /// Tokens in, special tokens included.
    pub prompt_tokens: u64,
    /// The same.
    pub total_tokens: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(json: &str) -> Result<EmbeddingsInput, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn every_documented_input_shape() {
        let text = |t: &str| EmbedInput::Text(t.to_owned());
        assert_eq!(input("\"a\"").unwrap(), EmbeddingsInput::One(text("a")));
        assert_eq!(
            input("[\"a\",\"b\"]").unwrap(),
            EmbeddingsInput::Many(vec![text("a"), text("b")])
        );
        assert_eq!(
            input("[1,2]").unwrap(),
            EmbeddingsInput::One(EmbedInput::Tokens(vec![1, 2]))
        );
        assert_eq!(
            input("[[1],[2,3]]").unwrap(),
            EmbeddingsInput::Many(vec![EmbedInput::Tokens(vec![1]), EmbedInput::Tokens(vec![2, 3])])
        );
        assert_eq!(input("[]").unwrap(), EmbeddingsInput::Many(vec![]));
    }

    #[test]
    fn mixed_and_foreign_shapes_name_the_element() {
        for (json, element) in [
            ("[\"a\",1]", "element 1"),
            ("[1,\"a\"]", "element 1"),
            ("[[1],\"a\"]", "element 1"),
            ("[-1]", "element 0"),
            ("[1.5]", "element 0"),
            ("[null]", "element 0"),
            ("[4294967296]", "element 0"),
        ] {
            let error = input(json).unwrap_err().to_string();
            assert!(error.contains(element), "{json}: {error}");
        }
        assert!(input("{}").is_err());
    }
}
