//! Embedding vectors on the wire. Input: f32 values. Output: little-endian bytes in MessagePack, numbers in JSON.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, SeqAccess};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One embedding, shape `[dimensions]`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Vector(pub Vec<f32>);

impl Vector {
    /// The values as little-endian IEEE 754 bytes, the layout of OpenAI's base64 encoding.
    #[must_use]
    pub fn to_le_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|value| value.to_le_bytes()).collect()
    }
}

impl Serialize for Vector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            self.0.serialize(serializer)
        } else {
            serializer.serialize_bytes(&self.to_le_bytes())
        }
    }
}

impl<'de> Deserialize<'de> for Vector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Vector;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("little-endian f32 bytes or an array of numbers")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Vector, E> {
                let (chunks, rest) = bytes.as_chunks::<4>();
                if !rest.is_empty() {
                    return Err(E::invalid_length(bytes.len(), &"a multiple of 4 bytes"));
                }
                Ok(Vector(chunks.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vector, A::Error> {
                let mut values = Vec::with_capacity(sequence.size_hint().unwrap_or(0).min(65_536));
                while let Some(value) = sequence.next_element()? {
                    values.push(value);
                }
                Ok(Vector(values))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Vector {
    fn schema_name() -> Cow<'static, str> {
        "Vector".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "array",
            "items": {"type": "number", "format": "float"},
            "description": "In MessagePack a byte string of little-endian 32-bit floats."
        })
    }
}
