//! The one way in and out of bytes. Input: a message type. Output: MessagePack with named fields (default) or JSON.
//!
//! Decoding refuses bodies over [`MAX_MESSAGE_BYTES`] and bytes after the value, so that a message means one thing only.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest body that is decoded, in bytes. Above the largest work message (2 MiB body plus framing) and
/// below the broker's `max_payload` of 8 MiB.
pub const MAX_MESSAGE_BYTES: usize = 6 * 1024 * 1024;

/// Deepest nesting that is decoded, as in JSON. Our messages nest less than 10 deep; the library's 1024 overflow the
/// stack of a thread on a body made for it.
pub const MAX_DEPTH: usize = 128;

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `application/msgpack`: named fields, the default when no content type is given.
    #[default]
    MessagePack,
    /// `application/json`.
    Json,
}

impl Format {
    /// Content type of MessagePack bodies.
    pub const MESSAGE_PACK: &'static str = "application/msgpack";
    /// Content type of JSON bodies.
    pub const JSON: &'static str = "application/json";

    /// The format named by a `Content-Type` header; absent means MessagePack.
    ///
    /// # Errors
    /// [`WireError::UnknownContentType`] for any other type.
    pub fn from_content_type(content_type: Option<&str>) -> Result<Self, WireError> {
        let Some(value) = content_type else {
            return Ok(Self::MessagePack);
        };
        let essence = value.split(';').next().unwrap_or_default().trim();
        if essence.eq_ignore_ascii_case(Self::MESSAGE_PACK) || essence.eq_ignore_ascii_case("application/x-msgpack") {
            Ok(Self::MessagePack)
        } else if essence.eq_ignore_ascii_case(Self::JSON) {
            Ok(Self::Json)
        } else {
            Err(WireError::UnknownContentType(essence.chars().take(64).collect()))
        }
    }

    /// The content type to send with a body of this format.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::MessagePack => Self::MESSAGE_PACK,
            Self::Json => Self::JSON,
        }
    }
}

/// Why bytes could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The body is larger than [`MAX_MESSAGE_BYTES`].
    #[error("message of {bytes} bytes is over the limit of {MAX_MESSAGE_BYTES}")]
    TooLarge {
        /// Size of the refused body.
        bytes: usize,
    },
    /// Bytes follow the value.
    #[error("{extra} bytes follow the message")]
    TrailingBytes {
        /// How many.
        extra: usize,
    },
    /// Not MessagePack, or not of this type.
    #[error("message is not valid MessagePack of this type")]
    MessagePack(#[source] rmp_serde::decode::Error),
    /// Not JSON, or not of this type.
    #[error("message is not valid JSON of this type")]
    Json(#[source] serde_json::Error),
    /// The value cannot be written.
    #[error("message cannot be encoded")]
    Encode(#[source] rmp_serde::encode::Error),
    /// The content type is neither MessagePack nor JSON.
    #[error("content type {0:?} is neither application/msgpack nor application/json")]
    UnknownContentType(String),
}

/// Writes a message as MessagePack with named fields.
///
/// # Errors
/// [`WireError::Encode`] if the value's `Serialize` fails; types of this crate never do.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, WireError> {
    let mut buffer = Vec::with_capacity(256);
    let mut serializer = rmp_serde::Serializer::new(&mut buffer).with_struct_map();
    message.serialize(&mut serializer).map_err(WireError::Encode)?;
    Ok(buffer)
}

/// Reads a MessagePack message.
///
/// # Errors
/// [`WireError::TooLarge`], [`WireError::TrailingBytes`] or [`WireError::MessagePack`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    check_size(bytes)?;
    let mut rest = bytes;
    let value = {
        let mut deserializer = rmp_serde::Deserializer::new(&mut rest);
        deserializer.set_max_depth(MAX_DEPTH);
        T::deserialize(&mut deserializer).map_err(WireError::MessagePack)?
    };
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(WireError::TrailingBytes { extra: rest.len() })
    }
}

/// Writes a message in the format its receiver asked for.
///
/// # Errors
/// As [`encode`]; for JSON, [`WireError::Json`].
pub fn encode_as<T: Serialize>(format: Format, message: &T) -> Result<Vec<u8>, WireError> {
    match format {
        Format::MessagePack => encode(message),
        Format::Json => serde_json::to_vec(message).map_err(WireError::Json),
    }
}

/// Reads a message in the format its sender named.
///
/// # Errors
/// As [`decode`]; for JSON, [`WireError::Json`].
pub fn decode_as<T: DeserializeOwned>(format: Format, bytes: &[u8]) -> Result<T, WireError> {
    match format {
        Format::MessagePack => decode(bytes),
        Format::Json => {
            check_size(bytes)?;
            serde_json::from_slice(bytes).map_err(WireError::Json)
        }
    }
}

fn check_size(bytes: &[u8]) -> Result<(), WireError> {
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(WireError::TooLarge { bytes: bytes.len() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailing_bytes_and_oversize_are_refused() {
        let mut bytes = encode(&7_u32).unwrap();
        assert_eq!(decode::<u32>(&bytes).unwrap(), 7);
        bytes.push(0);
        assert!(matches!(
            decode::<u32>(&bytes),
            Err(WireError::TrailingBytes { extra: 1 })
        ));
        let large = vec![0; MAX_MESSAGE_BYTES + 1];
        assert!(matches!(decode::<u32>(&large), Err(WireError::TooLarge { .. })));
        assert!(matches!(decode::<String>(&[0xc1]), Err(WireError::MessagePack(_))));
    }

    #[test]
    fn content_types() {
        let format = Format::from_content_type;
        assert_eq!(format(None).unwrap(), Format::MessagePack);
        assert_eq!(format(Some("Application/JSON; charset=utf-8")).unwrap(), Format::Json);
        assert_eq!(format(Some("application/x-msgpack")).unwrap(), Format::MessagePack);
        assert!(format(Some("text/plain")).is_err());
    }
}
