//! Administrative requests to JetStream. Input: names and sequences. Output: plain data, or typed errors.

use std::time::SystemTime;

use base64::Engine as _;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::time::parse_utc;
use crate::{Bus, BusError, Headers, JetStreamError, StoredMessage};

/// What a stream holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamInfo {
    /// Name.
    pub name: String,
    /// When it was made: another time under the same name is another stream, whose sequences begin anew.
    pub created_at: Option<SystemTime>,
    /// Messages in it.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// First sequence kept.
    pub first_sequence: u64,
    /// Last sequence given out.
    pub last_sequence: u64,
    /// When the first message was stored: the age of the queue.
    pub first_time: Option<SystemTime>,
    /// Consumers it has.
    pub consumers: u64,
}

/// What a consumer has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerInfo {
    /// Stream.
    pub stream: String,
    /// Name.
    pub name: String,
    /// Messages not delivered yet: the queue's depth.
    pub pending: u64,
    /// Delivered, not settled.
    pub ack_pending: u64,
    /// Delivered more than once, not settled.
    pub redelivered: u64,
    /// Pulls that wait.
    pub waiting: u64,
}

/// JetStream's error codes (its `server/errors.json`).
pub(crate) mod code {
    pub(crate) const TEMPORARILY_UNAVAILABLE: u64 = 10008;
    pub(crate) const CONSUMER_NOT_FOUND: u64 = 10014;
    pub(crate) const NO_MESSAGE_FOUND: u64 = 10037;
    pub(crate) const SEQUENCE_NOT_FOUND: u64 = 10043;
    pub(crate) const STREAM_NAME_IN_USE: u64 = 10058;
    pub(crate) const STREAM_NOT_FOUND: u64 = 10059;
}

/// Attempts while the broker says that JetStream is starting or electing.
const BUSY_ATTEMPTS: u32 = 20;
/// Pause between them: an election takes some hundred milliseconds.
const BUSY_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

impl Bus {
    /// What a stream holds.
    ///
    /// # Errors
    /// [`JetStreamError::NotFound`] and others.
    pub async fn stream_info(&self, stream: &str) -> Result<StreamInfo, JetStreamError> {
        let operation = format!("STREAM.INFO.{stream}");
        let body = self.api(&operation, None).await?;
        let state = field(&body, "state", &operation)?;
        Ok(StreamInfo {
            name: stream.to_owned(),
            created_at: body.get("created").and_then(Value::as_str).and_then(parse_utc),
            messages: number(state, "messages"),
            bytes: number(state, "bytes"),
            first_sequence: number(state, "first_seq"),
            last_sequence: number(state, "last_seq"),
            first_time: state.get("first_ts").and_then(Value::as_str).and_then(parse_utc),
            consumers: number(state, "consumer_count"),
        })
    }

    /// What a consumer has to do.
    ///
    /// # Errors
    /// [`JetStreamError::NotFound`] and others.
    pub async fn consumer_info(&self, stream: &str, consumer: &str) -> Result<ConsumerInfo, JetStreamError> {
        let body = self.api(&format!("CONSUMER.INFO.{stream}.{consumer}"), None).await?;
        Ok(ConsumerInfo {
            stream: stream.to_owned(),
            name: consumer.to_owned(),
            pending: number(&body, "num_pending"),
            ack_pending: number(&body, "num_ack_pending"),
            redelivered: number(&body, "num_redelivered"),
            waiting: number(&body, "num_waiting"),
        })
    }

    /// Names of the streams that start with `prefix`, sorted.
    ///
    /// # Errors
    /// [`JetStreamError`].
    pub async fn stream_names(&self, prefix: &str) -> Result<Vec<String>, JetStreamError> {
        let mut names = Vec::new();
        let mut offset = 0;
        loop {
            let body = self.api("STREAM.NAMES", Some(json!({ "offset": offset }))).await?;
            let page = body
                .get("streams")
                .and_then(Value::as_array)
                .map(Vec::as_slice)
                .unwrap_or_default();
            names.extend(
                page.iter()
                    .filter_map(Value::as_str)
                    .filter(|name| name.starts_with(prefix))
                    .map(str::to_owned),
            );
            offset += page.len() as u64;
            if page.is_empty() || offset >= number(&body, "total") {
                names.sort_unstable();
                return Ok(names);
            }
        }
    }

    /// Reads one message without taking it.
    ///
    /// # Errors
    /// [`JetStreamError::NotFound`] when the sequence is not (any more) in the stream.
    pub async fn get_message(&self, stream: &str, sequence: u64) -> Result<StoredMessage, JetStreamError> {
        let operation = format!("STREAM.MSG.GET.{stream}");
        let body = self.api(&operation, Some(json!({ "seq": sequence }))).await?;
        let message = field(&body, "message", &operation)?;
        let text = |name: &str| message.get(name).and_then(Value::as_str).unwrap_or_default();
        let decode = |name: &str| {
            base64::engine::general_purpose::STANDARD
                .decode(text(name))
                .map_err(|error| JetStreamError::Malformed {
                    operation: operation.clone(),
                    reason: format!("{name}: {error}"),
                })
        };
        Ok(StoredMessage {
            sequence: number(message, "seq"),
            subject: text("subject").to_owned(),
            headers: Headers::from_block(&decode("hdrs")?),
            payload: decode("data")?.into(),
            time: parse_utc(text("time")),
        })
    }

    /// Deletes one message: queued work is cancelled this way. `false` when it was not there (any more).
    ///
    /// # Errors
    /// [`JetStreamError::NotFound`] when there is no such stream, and others.
    pub async fn delete_message(&self, stream: &str, sequence: u64) -> Result<bool, JetStreamError> {
        let operation = format!("STREAM.MSG.DELETE.{stream}");
        // Overwriting the bytes on disk would cost a write for nothing: the data is not secret.
        match self
            .api_code(&operation, Some(json!({ "seq": sequence, "no_erase": true })))
            .await?
        {
            Ok(_) => Ok(true),
            Err(refused) if matches!(refused.err_code, code::NO_MESSAGE_FOUND | code::SEQUENCE_NOT_FOUND) => Ok(false),
            Err(refused) => Err(refused.into_error(operation)),
        }
    }

    /// Deletes a stream with everything in it; `false` when it was not there.
    ///
    /// # Errors
    /// [`JetStreamError`].
    pub async fn delete_stream(&self, stream: &str) -> Result<bool, JetStreamError> {
        let operation = format!("STREAM.DELETE.{stream}");
        match self.api_code(&operation, None).await? {
            Ok(_) => Ok(true),
            Err(refused) if refused.err_code == code::STREAM_NOT_FOUND => Ok(false),
            Err(refused) => Err(refused.into_error(operation)),
        }
    }

    /// One API request; a refusal is an error.
    pub(crate) async fn api(&self, operation: &str, body: Option<Value>) -> Result<Value, JetStreamError> {
        self.api_code(operation, body)
            .await?
            .map_err(|refused| refused.into_error(operation.to_owned()))
    }

    /// One API request; a refusal is returned with its code for the caller to judge.
    pub(crate) async fn api_code(
        &self,
        operation: &str,
        body: Option<Value>,
    ) -> Result<Result<Value, Refused>, JetStreamError> {
        let subject = format!("$JS.API.{operation}");
        let payload: Bytes = body.map(|body| body.to_string().into()).unwrap_or_default();
        let mut attempt = 0;
        loop {
            let answer = self
                .request(&subject, Headers::new(), payload.clone(), self.request_timeout())
                .await?;
            let body: Value = serde_json::from_slice(&answer.payload).map_err(|error| JetStreamError::Malformed {
                operation: operation.to_owned(),
                reason: error.to_string(),
            })?;
            let Some(error) = body.get("error") else {
                return Ok(Ok(body));
            };
            let err_code = number(error, "err_code");
            attempt += 1;
            if err_code == code::TEMPORARILY_UNAVAILABLE && attempt < BUSY_ATTEMPTS {
                tokio::time::sleep(BUSY_PAUSE).await;
                continue;
            }
            let description = error
                .get("description")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned();
            return Ok(Err(Refused { err_code, description }));
        }
    }
}

/// A refusal by JetStream.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) err_code: u64,
    pub(crate) description: String,
}

impl Refused {
    pub(crate) fn into_error(self, operation: String) -> JetStreamError {
        match self.err_code {
            code::STREAM_NOT_FOUND | code::CONSUMER_NOT_FOUND | code::NO_MESSAGE_FOUND => JetStreamError::NotFound {
                what: format!("{} of {operation}", self.description.trim_end_matches(" not found")),
            },
            err_code => JetStreamError::Refused {
                operation,
                err_code,
                description: self.description,
            },
        }
    }
}

/// Errors that pass by themselves: reconnecting, or a broker that is starting.
pub(crate) fn is_transient(error: &JetStreamError) -> bool {
    match error {
        JetStreamError::Bus(error) => matches!(
            error,
            BusError::Disconnected
                | BusError::Timeout { .. }
                | BusError::NoResponders { .. }
                | BusError::TooManyRequests { .. }
        ),
        JetStreamError::Refused { err_code, .. } => *err_code == code::TEMPORARILY_UNAVAILABLE,
        _ => false,
    }
}

pub(crate) fn number(body: &Value, name: &str) -> u64 {
    body.get(name).and_then(Value::as_u64).unwrap_or_default()
}

pub(crate) fn field<'a>(body: &'a Value, name: &str, operation: &str) -> Result<&'a Value, JetStreamError> {
    body.get(name).ok_or_else(|| JetStreamError::Malformed {
        operation: operation.to_owned(),
        reason: format!("{name} is missing"),
    })
}
