//! A message as a stream keeps it. Input: a delivery or an API answer. Output: plain data.

use std::time::SystemTime;

use bytes::Bytes;

use crate::Headers;

/// A message read from a stream without taking it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMessage {
    /// Its place in the stream.
    pub sequence: u64,
    /// Subject.
    pub subject: String,
    /// Headers.
    pub headers: Headers,
    /// Payload.
    pub payload: Bytes,
    /// When the broker stored it.
    pub time: Option<SystemTime>,
}
