//! From messages to decisions and back. Input: requests from the bus in MessagePack or JSON. Output: answers in the
//! same format; what cannot be read is logged, counted and answered with a failure, never more.

use std::sync::Arc;

use bus::{Bus, Headers, Message};
use bytes::Bytes;
use process::TraceContext;
use schemas::error::{ErrorCode, Failure};
use schemas::policy::{KeyState, KeysReply, Resolved, Revoked};
use schemas::wire::{self, Format, WireError};
use schemas::{headers, subjects};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::Span;

use crate::administer::{Administered, refused};
use crate::authorize::{Authority, RETRY_AFTER_MS, nothing_held};
use crate::metrics::{Kind, Outcome};

/// What answers the bus; clones share it.
#[derive(Clone)]
pub(crate) struct Desk {
    /// Who decides.
    pub(crate) authority: Arc<Authority>,
    /// Where changes are told.
    pub(crate) bus: Bus,
    /// Keys on a page of a list.
    pub(crate) page_keys: usize,
}

/// What [`bus::Bus::serve`] sends.
pub(crate) type Answer = Option<(Headers, Bytes)>;

impl Desk {
    /// Answers [`schemas::policy::Resolve`].
    pub(crate) async fn resolve(&self, message: Message) -> Answer {
        let began_us = self.authority.clock.monotonic_us();
        let (reply, outcome) = match read(&message) {
            Ok(asked) => self.authority.resolve(&asked).await,
            Err(error) => (Resolved::Denied(unreadable(&message, &error)), Outcome::Malformed),
        };
        self.done(Kind::Resolve, outcome, began_us);
        write(&message, &reply)
    }

    /// Answers [`schemas::policy::Hold`].
    pub(crate) async fn hold(&self, message: Message) -> Answer {
        let began_us = self.authority.clock.monotonic_us();
        let (reply, outcome) = match read(&message) {
            Ok(asked) => self.authority.hold(&asked).await,
            Err(error) => {
                unreadable(&message, &error);
                // The one refusal that this reply can say.
                (nothing_held(), Outcome::Malformed)
            }
        };
        self.done(Kind::Hold, outcome, began_us);
        write(&message, &reply)
    }

    /// Answers key administration; the verb is the last token of the subject.
    pub(crate) async fn keys(&self, message: Message) -> Answer {
        let began_us = self.authority.clock.monotonic_us();
        let (reply, outcome) = match self.administer(&message).await {
            Ok(Administered { reply, revoked }) => {
                let reply = self.tell(reply, revoked).await;
                let outcome = outcome(&reply);
                (reply, outcome)
            }
            Err(error) => (KeysReply::Failed(unreadable(&message, &error)), Outcome::Malformed),
        };
        self.done(Kind::Keys, outcome, began_us);
        write(&message, &reply)
    }

    async fn administer(&self, message: &Message) -> Result<Administered, WireError> {
        let authority = &self.authority;
        let verb = message.subject().rsplit('.').next().unwrap_or_default();
        let state = match verb {
            // A key that nobody is told would lie about for ever.
            "create" if message.reply().is_none() => {
                return Ok(refused("reply", "A key is made only for who waits for it.").into());
            }
            "create" => return Ok(authority.create(read(message)?).await.into()),
            "list" => return Ok(authority.list(&read(message)?, self.page_keys).await.into()),
            "disable" => KeyState::Disabled,
            "enable" => KeyState::Active,
            "delete" => KeyState::Deleted,
            _ => return Ok(refused("verb", "There is no such verb.").into()),
        };
        Ok(authority.set_state(&read(message)?, state).await)
    }

    /// Tells everyone of a change before its answer goes out. If nobody could be told, the answer says so: the change
    /// is stored, and the same request again tells again.
    async fn tell(&self, reply: KeysReply, revoked: Option<Revoked>) -> KeysReply {
        let Some(revoked) = revoked else {
            return reply;
        };
        let told = match wire::encode(&revoked) {
            Ok(body) => self
                .bus
                .publish(subjects::REVOKED, Headers::new(), body.into())
                .await
                .map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match told {
            Ok(()) => {
                self.authority.metrics.revocations.inc();
                reply
            }
            Err(error) => {
                tracing::warn!(kid = revoked.kid, error, "change of a key not told");
                let message = "The key is changed, but gateways may not know yet: ask again.";
                KeysReply::Failed(Failure::new(ErrorCode::Unavailable, message).retry_after_ms(RETRY_AFTER_MS))
            }
        }
    }

    fn done(&self, kind: Kind, outcome: Outcome, began_us: u64) {
        let elapsed_us = self.authority.clock.monotonic_us().saturating_sub(began_us);
        self.authority.metrics.done(kind, outcome, elapsed_us);
    }
}

fn outcome(reply: &KeysReply) -> Outcome {
    match reply {
        KeysReply::Failed(failure) if failure.code == ErrorCode::InvalidField => Outcome::Denied,
        KeysReply::Failed(_) => Outcome::Failed,
        KeysReply::Created { .. } | KeysReply::Listed { .. } | KeysReply::Changed(_) => Outcome::Granted,
    }
}

fn format(message: &Message) -> Result<Format, WireError> {
    Format::from_content_type(message.headers.get(headers::CONTENT_TYPE))
}

/// What every log line about a request carries: the trace it belongs to.
pub(crate) fn span(message: &Message) -> Span {
    let parent = message.headers.get(headers::TRACEPARENT);
    tracing::info_span!("request", trace_id = TraceContext::continue_from(parent).trace_id_hex())
}

/// Reads a body in the format that its sender named.
fn read<T: DeserializeOwned>(message: &Message) -> Result<T, WireError> {
    wire::decode_as(format(message)?, &message.payload)
}

/// Writes an answer in the format of its question.
fn write<T: Serialize>(message: &Message, reply: &T) -> Answer {
    let format = format(message).unwrap_or_default();
    match wire::encode_as(format, reply) {
        Ok(body) => {
            let mut headers = Headers::new();
            if format != Format::default() {
                headers.insert(headers::CONTENT_TYPE, format.content_type());
            }
            Some((headers, body.into()))
        }
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "answer not encoded");
            None
        }
    }
}

/// Logs what could not be read, and says so to its sender. The body stays out of the log: it may hold anything.
fn unreadable(message: &Message, error: &WireError) -> Failure {
    tracing::warn!(
        subject = message.subject(),
        bytes = message.payload.len(),
        error = error as &dyn std::error::Error,
        "malformed message"
    );
    Failure::new(ErrorCode::UnsupportedWork, "The message cannot be read.")
}
