//! Request and reply. Input: subject, payload, timeout. Output: the one answer, or a typed error at once when nobody
//! listens or the connection is gone. One wildcard inbox per connection; see `pending.rs` for why nothing leaks.

use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;

use crate::pending::MAX_PENDING;
use crate::{Bus, BusError, Headers, Message};

impl Bus {
    /// Sends a request and waits for its answer. Cancel-safe: dropping the future gives the request up.
    ///
    /// # Errors
    /// [`BusError::Disconnected`] at once without a connection or when it is lost meanwhile,
    /// [`BusError::NoResponders`] at once when nobody listens, [`BusError::Timeout`].
    pub async fn request(
        &self,
        subject: &str,
        headers: Headers,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Message, BusError> {
        let message = self.request_raw(subject, headers, payload, timeout).await?;
        if message.is_no_responders() && message.payload.is_empty() {
            return Err(BusError::NoResponders {
                subject: subject.to_owned(),
            });
        }
        Ok(message)
    }

    /// Proves that the connection works both ways, and that the server has taken everything sent before.
    ///
    /// # Errors
    /// [`BusError::Disconnected`] or [`BusError::Timeout`].
    pub async fn round_trip(&self, timeout: Duration) -> Result<(), BusError> {
        let mut reply = self.reserve()?;
        let own = self.reply_subject(reply.token());
        let sent = async {
            self.send(own.into(), None, Headers::new(), Bytes::new()).await?;
            reply.answer().await.ok_or(BusError::Disconnected)
        };
        match tokio::time::timeout(timeout, sent).await {
            Ok(answer) => answer.map(drop),
            Err(_) => Err(timed_out("the own inbox", timeout)),
        }
    }

    async fn request_raw(
        &self,
        subject: &str,
        headers: Headers,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Message, BusError> {
        let mut reply = self.reserve()?;
        let inbox = self.reply_subject(reply.token());
        let exchange = async {
            self.send(subject.into(), Some(inbox.into()), headers, payload).await?;
            reply.answer().await.ok_or(BusError::Disconnected)
        };
        match tokio::time::timeout(timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(timed_out(subject, timeout)),
        }
    }

    fn reserve(&self) -> Result<crate::pending::PendingReply<'_>, BusError> {
        self.inner
            .link
            .pending
            .reserve()
            .ok_or(BusError::TooManyRequests { limit: MAX_PENDING })
    }

    fn reply_subject(&self, token: u64) -> String {
        let inbox = &self.inner.inbox;
        // Dot and sixteen hexadecimal digits at most.
        let mut subject = String::with_capacity(inbox.len() + 17);
        subject.push_str(inbox);
        // Writing to a string cannot fail.
        let _ = write!(subject, ".{token:x}");
        subject
    }
}

pub(crate) fn timed_out(subject: &str, after: Duration) -> BusError {
    BusError::Timeout {
        subject: subject.to_owned(),
        after_ms: u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
    }
}
