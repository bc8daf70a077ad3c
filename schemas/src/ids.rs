//! Identifiers. Input: names and random ids. Output: request ids, event ids and the tokens that stand in subjects.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

/// One client request, made by the gateway or an internal publisher (UUID version 7: sortable by time).
///
/// In MessagePack 16 bytes (the hyphenated text is accepted too), in JSON the hyphenated text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(Uuid);

impl RequestId {
    /// A new id from the wall clock and random bits.
    #[must_use]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// An id from its 16 bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// The 16 bytes of the id.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl Default for RequestId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(formatter)
    }
}

impl FromStr for RequestId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text).map(Self)
    }
}

impl Serialize for RequestId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_bytes(self.0.as_bytes())
        }
    }
}

impl<'de> Deserialize<'de> for RequestId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = RequestId;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a UUID as 16 bytes or as text")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RequestId, E> {
                text.parse()
                    .map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<RequestId, E> {
                let array = <[u8; 16]>::try_from(bytes).map_err(|_| E::invalid_length(bytes.len(), &self))?;
                Ok(RequestId::from_bytes(array))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for RequestId {
    fn schema_name() -> Cow<'static, str> {
        "RequestId".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "uuid",
            "description": "UUID version 7; in MessagePack 16 bytes or this text."
        })
    }
}

/// Deterministic id of a booking: 32 hexadecimal digits of blake3 over what makes the booking unique.
/// The ledger's unique key, so the same fact published twice is booked once.
#[must_use]
pub fn event_id(parts: &[&[u8]]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        // The length stands before each part so that no two lists of parts read the same.
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let mut hex = hasher.finalize().to_hex().to_string();
    hex.truncate(32);
    hex
}

/// Longest model name accepted anywhere, in bytes.
pub const MAX_MODEL_NAME_BYTES: usize = 256;
/// Longest slug; short enough for a stream name made from it.
const MAX_SLUG_BYTES: usize = 48;

/// The subject token that stands for a model: the name itself when it is already one (`[a-z0-9_-]`, at most 48),
/// else its first safe characters and the CRC-32 (IEEE, `zlib.crc32`) of the name as 8 hexadecimal digits.
///
/// Two names share a slug by chance once in 2³² where their safe characters agree, and by intent easily: CRC-32 is
/// no secret. Names are chosen by operators, and the true name stands in every message, so a collision shows as work
/// for the wrong model, never as a silent answer of another one.
#[must_use]
pub fn model_slug(name: &str) -> String {
    if is_token(name) && name.len() <= MAX_SLUG_BYTES {
        return name.to_owned();
    }
    let safe: String = name
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' })
        .take(MAX_SLUG_BYTES - 9)
        .collect();
    let hash = crc32fast::hash(name.as_bytes());
    format!("{}-{hash:08x}", safe.trim_matches('-'))
}

/// Whether a text may stand as one token of a subject: `[a-z0-9_-]`, 1 to 64 characters.
#[must_use]
pub fn is_token(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn slugs_are_tokens_and_distinct() {
        assert_eq!(model_slug("all-minilm-l6-v2"), "all-minilm-l6-v2");
        let upper = model_slug("Org/All-MiniLM.L6");
        assert!(upper.starts_with("org-all-minilm-l6-"), "{upper}");
        // Clients in other languages compute slugs too, so the rule never changes.
        assert_eq!(model_slug("Org/Name"), "org-name-675d4739");
        assert_ne!(upper, model_slug("org/all-minilm.l6"));
    }

    proptest! {
        #[test]
        fn any_name_has_a_safe_slug(name in ".{1,300}") {
            prop_assert!(is_token(&model_slug(&name)), "{}", model_slug(&name));
        }

        #[test]
        fn request_ids_survive_both_formats(bytes in any::<[u8; 16]>()) {
            let id = RequestId::from_bytes(bytes);
            let packed = crate::wire::encode(&id).unwrap();
            prop_assert_eq!(crate::wire::decode::<RequestId>(&packed).unwrap(), id);
            let json = serde_json::to_string(&id).unwrap();
            prop_assert_eq!(serde_json::from_str::<RequestId>(&json).unwrap(), id);
        }
    }

    #[test]
    fn event_ids_do_not_run_parts_together() {
        assert_ne!(event_id(&[b"ab", b"c"]), event_id(&[b"a", b"bc"]));
        assert_eq!(event_id(&[b"a"]).len(), 32);
    }
}
