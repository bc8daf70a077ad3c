//! Publishing. Input: subject, headers, payload. Output: sent or a typed error; for streams also the broker's
//! acknowledgement with the message's place in the queue.

use std::time::Duration;

use async_nats::Subject;
use async_nats::client::PublishErrorKind;
use async_nats::client::traits::Publisher;
use async_nats::message::OutboundMessage;
use bytes::Bytes;
use serde::Deserialize;

use crate::connection::at_once;
use crate::error::FullLimit;
use crate::request::timed_out;
use crate::{Bus, BusError, Headers, Message, PublishError};

/// Where a stream stored a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishAck {
    /// Stream.
    pub stream: String,
    /// Its place in the stream.
    pub sequence: u64,
    /// Whether the message id was known already: nothing new was stored.
    pub duplicate: bool,
}

/// JetStream's error codes for publishing (its `server/errors.json`).
mod code {
    /// A limit of the stream is reached; which one stands in the text only.
    pub(super) const STORE_FAILED: u64 = 10077;
    pub(super) const WRONG_LAST_SEQUENCE: u64 = 10071;
    /// The same, when the last sequence is not known (clustered).
    pub(super) const WRONG_LAST_SEQUENCE_UNKNOWN: u64 = 10164;
    pub(super) const MESSAGE_TOO_LARGE: u64 = 10054;
    pub(super) const ACCOUNT_RESOURCES: u64 = 10002;
    pub(super) const INSUFFICIENT_RESOURCES: u64 = 10023;
    pub(super) const MEMORY_EXCEEDED: u64 = 10028;
    pub(super) const STORAGE_EXCEEDED: u64 = 10047;
}

impl Bus {
    /// Publishes without waiting for anybody.
    ///
    /// # Errors
    /// [`BusError::Disconnected`] at once without a connection; [`BusError::Timeout`] when the connection takes nothing
    /// for the request timeout; [`BusError::TooLarge`], [`BusError::InvalidSubject`].
    pub async fn publish(&self, subject: &str, headers: Headers, payload: Bytes) -> Result<(), BusError> {
        self.send_in_time(subject.into(), None, headers, payload).await
    }

    /// Publishes with a reply subject of the caller's own, e.g. under an [`crate::Bus::inbox`].
    ///
    /// # Errors
    /// As [`Bus::publish`].
    pub async fn publish_with_reply(
        &self,
        subject: &str,
        reply: &str,
        headers: Headers,
        payload: Bytes,
    ) -> Result<(), BusError> {
        self.send_in_time(subject.into(), Some(reply.into()), headers, payload)
            .await
    }

    /// Answers a request; does nothing when no answer is awaited.
    ///
    /// # Errors
    /// As [`Bus::publish`].
    pub async fn respond(&self, request: &Message, headers: Headers, payload: Bytes) -> Result<(), BusError> {
        match &request.reply {
            Some(reply) => self.send_in_time(reply.clone(), None, headers, payload).await,
            None => Ok(()),
        }
    }

    /// Publishes to a stream and waits for the broker to say that it is stored.
    ///
    /// # Errors
    /// [`PublishError::NoStream`] at once when no stream takes the subject, [`PublishError::Full`] with the limit,
    /// [`PublishError::WrongSequence`]; after [`PublishError::Bus`] the message may have been stored.
    pub async fn publish_acked(
        &self,
        subject: &str,
        headers: Headers,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<PublishAck, PublishError> {
        match self.request(subject, headers, payload, timeout).await {
            Ok(answer) => parse_publish_ack(&answer),
            Err(BusError::NoResponders { subject }) => Err(PublishError::NoStream { subject }),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends, waiting for room as long as the request timeout.
    pub(crate) async fn send_in_time(
        &self,
        subject: Subject,
        reply: Option<Subject>,
        headers: Headers,
        payload: Bytes,
    ) -> Result<(), BusError> {
        let timeout = self.inner.request_timeout;
        let shown = subject.clone();
        match tokio::time::timeout(timeout, self.send(subject, reply, headers, payload)).await {
            Ok(sent) => sent,
            Err(_) => Err(timed_out(shown.as_str(), timeout)),
        }
    }

    /// Sends when there is a connection; waits for room without limit, so callers wrap it in their timeout.
    pub(crate) async fn send(
        &self,
        subject: Subject,
        reply: Option<Subject>,
        headers: Headers,
        payload: Bytes,
    ) -> Result<(), BusError> {
        // Without this the client queues 2048 messages and delivers them late, after it is connected again.
        if !self.is_connected() {
            return Err(BusError::Disconnected);
        }
        let (shown, bytes) = (subject.clone(), payload.len());
        let message = OutboundMessage {
            subject,
            reply,
            payload,
            headers: headers.into_client(),
        };
        self.inner
            .client
            .publish_message(message)
            .await
            .map_err(|error| match error.kind() {
                PublishErrorKind::MaxPayloadExceeded => BusError::TooLarge {
                    subject: shown.to_string(),
                    bytes,
                    limit_bytes: self.max_payload_bytes(),
                },
                PublishErrorKind::InvalidSubject => BusError::InvalidSubject {
                    subject: shown.to_string(),
                },
                PublishErrorKind::Send => BusError::Closed,
            })
    }

    /// Refuses what the broker would not take, where the client only finds out later.
    pub(crate) fn check_size(&self, subject: &str, bytes: usize) -> Result<(), BusError> {
        let limit_bytes = self.max_payload_bytes();
        if bytes > limit_bytes {
            return Err(BusError::TooLarge {
                subject: subject.to_owned(),
                bytes,
                limit_bytes,
            });
        }
        Ok(())
    }

    /// Sends if that is possible without waiting; for `Drop`.
    pub(crate) fn send_at_once(&self, subject: Subject, payload: Bytes) -> bool {
        matches!(at_once(self.send(subject, None, Headers::new(), payload)), Some(Ok(())))
    }
}

#[derive(Deserialize)]
struct RawAck {
    #[serde(default)]
    stream: String,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<RawError>,
}

#[derive(Deserialize)]
struct RawError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// Reads a publish acknowledgement that came to a reply subject of the caller's own.
///
/// # Errors
/// As [`Bus::publish_acked`]; [`PublishError::Malformed`] when it is none.
pub fn parse_publish_ack(answer: &Message) -> Result<PublishAck, PublishError> {
    if answer.is_no_responders() {
        let subject = answer.headers.get("Nats-Subject").unwrap_or_default().to_owned();
        return Err(PublishError::NoStream { subject });
    }
    let ack: RawAck = serde_json::from_slice(&answer.payload).map_err(|_| PublishError::Malformed)?;
    let Some(error) = ack.error else {
        if ack.stream.is_empty() || ack.seq == 0 {
            return Err(PublishError::Malformed);
        }
        return Ok(PublishAck {
            stream: ack.stream,
            sequence: ack.seq,
            duplicate: ack.duplicate,
        });
    };
    Err(refusal(ack.stream, error))
}

fn refusal(stream: String, error: RawError) -> PublishError {
    match error.err_code {
        code::STORE_FAILED => match full_limit(&error.description) {
            Some(limit) => PublishError::Full { stream, limit },
            None => PublishError::Refused {
                stream,
                err_code: error.err_code,
                description: error.description,
            },
        },
        code::ACCOUNT_RESOURCES | code::INSUFFICIENT_RESOURCES | code::MEMORY_EXCEEDED | code::STORAGE_EXCEEDED => {
            PublishError::Full {
                stream,
                limit: FullLimit::Storage,
            }
        }
        code::WRONG_LAST_SEQUENCE | code::WRONG_LAST_SEQUENCE_UNKNOWN => PublishError::WrongSequence {
            stream,
            last_sequence: error.description.rsplit(' ').next().and_then(|last| last.parse().ok()),
        },
        code::MESSAGE_TOO_LARGE => PublishError::TooLarge { stream },
        err_code => PublishError::Refused {
            stream,
            err_code,
            description: error.description,
        },
    }
}

/// The broker has one code for all limits of a stream; its store's error text is the only thing that tells them apart.
fn full_limit(description: &str) -> Option<FullLimit> {
    match description {
        "maximum messages per subject exceeded" => Some(FullLimit::SubjectMessages),
        "maximum messages exceeded" => Some(FullLimit::StreamMessages),
        "maximum bytes exceeded" => Some(FullLimit::StreamBytes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(payload: &'static str) -> Message {
        Message {
            payload: Bytes::from_static(payload.as_bytes()),
            headers: Headers::new(),
            subject: Subject::from_static("x"),
            reply: None,
            status: None,
            description: None,
        }
    }

    #[test]
    fn acknowledgements_and_refusals_are_told_apart() {
        assert_eq!(
            parse_publish_ack(&answer(r#"{"stream":"W","seq":7,"duplicate":true}"#)),
            Ok(PublishAck {
                stream: "W".to_owned(),
                sequence: 7,
                duplicate: true
            })
        );
        let refused = |text| {
            parse_publish_ack(&answer(text)).map_err(|error| match error {
                PublishError::WrongSequence { last_sequence, .. } => {
                    format!("wrong {last_sequence:?}")
                }
                other => format!("{other:?}"),
            })
        };
        assert_eq!(
            refused(
                r#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 4"},"stream":"W","seq":0}"#
            ),
            Err("wrong Some(4)".to_owned())
        );
        for not_an_ack in ["", "{}", "[]", r#"{"stream":"W"}"#, "\u{0}"] {
            assert_eq!(
                parse_publish_ack(&answer(not_an_ack)),
                Err(PublishError::Malformed),
                "{not_an_ack}"
            );
        }
    }
}
