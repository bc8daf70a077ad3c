//! The types that documents are made from. Input: types of this crate and examples of them. Output: entries with the
//! type taken away, so that one loop serves all.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{body_examples, message_examples};
use crate::wire::{self, Format, WireError};

/// Reads bytes in one format and writes the value in another.
type Recode = fn(Format, &[u8], Format) -> Result<Vec<u8>, WireError>;

/// One type that crosses a process boundary.
pub struct Entry {
    /// The type's name.
    pub name: String,
    /// At least one value of it; enums have one per variant worth showing.
    pub examples: Vec<Example>,
    /// Whether we write it (a public answer): then fields with defaults are always present.
    written: bool,
    schema: fn(SchemaSettings) -> Schema,
    register: fn(&mut SchemaGenerator) -> Schema,
    recode: Recode,
}

/// A fixed value of a type in both formats.
pub struct Example {
    /// What it shows; empty for the plain case.
    pub name: &'static str,
    /// The value as JSON.
    pub json: Value,
    /// The value as MessagePack; these bytes never change.
    pub message_pack: Vec<u8>,
}

impl Entry {
    /// The type's JSON Schema, complete in itself.
    #[must_use]
    pub fn json_schema(&self) -> Value {
        let settings = SchemaSettings::draft2020_12();
        let settings = if self.written {
            settings.for_serialize()
        } else {
            settings
        };
        (self.schema)(settings).to_value()
    }

    /// Adds the type and all it needs to a generator; returns a reference to it.
    pub(super) fn register(&self, generator: &mut SchemaGenerator) -> Value {
        (self.register)(generator).to_value()
    }

    /// Whether we write it and clients read it.
    pub(super) fn is_written(&self) -> bool {
        self.written
    }

    /// Reads bytes as this type and writes the value again.
    ///
    /// # Errors
    /// [`WireError`] when the bytes are not a value of this type.
    pub fn recode(&self, from: Format, bytes: &[u8], to: Format) -> Result<Vec<u8>, WireError> {
        (self.recode)(from, bytes, to)
    }
}

/// Every message of the bus and every value of the buckets, by name.
///
/// # Errors
/// [`WireError`] when an example cannot be written.
pub fn messages() -> Result<Vec<Entry>, WireError> {
    sorted(message_examples::entries())
}

/// Every public HTTP body, by name.
///
/// # Errors
/// [`WireError`] when an example cannot be written.
pub fn bodies() -> Result<Vec<Entry>, WireError> {
    sorted(body_examples::entries())
}

fn sorted(entries: Vec<Result<Entry, WireError>>) -> Result<Vec<Entry>, WireError> {
    let mut entries = entries.into_iter().collect::<Result<Vec<_>, _>>()?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// An entry of something we read: absent fields with defaults are fine.
pub(super) fn read<T>(examples: Vec<(&'static str, T)>) -> Result<Entry, WireError>
where
    T: JsonSchema + Serialize + DeserializeOwned,
{
    let examples = examples.into_iter().map(|(name, value)| {
        let json = wire::encode_as(Format::Json, &value)?;
        Ok(Example {
            name,
            json: wire::decode_as(Format::Json, &json)?,
            message_pack: wire::encode(&value)?,
        })
    });
    Ok(Entry {
        name: T::schema_name().into_owned(),
        examples: examples.collect::<Result<_, WireError>>()?,
        written: false,
        schema: |settings| settings.into_generator().into_root_schema_for::<T>(),
        register: SchemaGenerator::subschema_for::<T>,
        recode: |from, bytes, to| wire::encode_as(to, &wire::decode_as::<T>(from, bytes)?),
    })
}

/// An entry of something we write: all its fields are present.
pub(super) fn written<T>(example: T) -> Result<Entry, WireError>
where
    T: JsonSchema + Serialize + DeserializeOwned,
{
    Ok(Entry {
        written: true,
        ..read(vec![("", example)])?
    })
}
