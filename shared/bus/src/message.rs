//! A message from the bus. Input: what the client received. Output: the same without the client's types.

use bytes::Bytes;

use crate::Headers;

/// A received message. The payload is a slice of the connection's read buffer: copy it before keeping it for long.
#[derive(Debug, Clone)]
pub struct Message {
    /// Payload.
    pub payload: Bytes,
    /// Headers.
    pub headers: Headers,
    pub(crate) subject: async_nats::Subject,
    pub(crate) reply: Option<async_nats::Subject>,
    pub(crate) status: Option<u16>,
    pub(crate) description: Option<String>,
}

impl Message {
    /// Subject it was published on.
    #[must_use]
    pub fn subject(&self) -> &str {
        self.subject.as_str()
    }

    /// Subject on which an answer is awaited.
    #[must_use]
    pub fn reply(&self) -> Option<&str> {
        self.reply.as_ref().map(async_nats::Subject::as_str)
    }

    /// Status line of the broker's own messages, e.g. 503 when nobody listens.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// Text of the status line.
    #[must_use]
    pub fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }

    /// Whether the broker says that nobody listened.
    #[must_use]
    pub fn is_no_responders(&self) -> bool {
        self.status == Some(NO_RESPONDERS)
    }
}

/// Status of the broker's answer when nobody listens.
pub(crate) const NO_RESPONDERS: u16 = 503;

impl From<async_nats::Message> for Message {
    fn from(message: async_nats::Message) -> Self {
        Self {
            payload: message.payload,
            headers: Headers::from_client(message.headers),
            subject: message.subject,
            reply: message.reply,
            status: message.status.map(u16::from),
            description: message.description,
        }
    }
}
