//! A message taken from a queue. Input: a delivery. Output: exactly one settlement: ack, nak or term;
//! a job that is dropped unsettled is given back.

use std::time::{Duration, SystemTime};

use async_nats::Subject;
use bytes::Bytes;

use crate::{Bus, BusError, Headers, Message, time};

/// What the broker writes into the ack subject:
/// `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<nanos>.<pending>`,
/// with `<domain>.<account>` before the stream and a random token at the end in the longer form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) ack: Subject,
    stream: (usize, usize),
    consumer: (usize, usize),
    pub(crate) delivered: u64,
    pub(crate) stream_sequence: u64,
    pub(crate) consumer_sequence: u64,
    published_nanos: u64,
    pub(crate) pending: u64,
}

impl Delivery {
    /// Reads an ack subject; `None` when it is none.
    pub(crate) fn parse(ack: &Subject) -> Option<Self> {
        let text = ack.as_str();
        let rest = text.strip_prefix("$JS.ACK.")?;
        // Domain and account come first in the longer form.
        let skipped = if rest.split('.').count() >= 9 { 2 } else { 0 };
        let mut at = text.len() - rest.len();
        let mut tokens = rest.split('.').map(|token| {
            let range = (at, at + token.len());
            at += token.len() + 1;
            (range, token)
        });
        let mut tokens = tokens.by_ref().skip(skipped);
        let (stream, _) = tokens.next()?;
        let (consumer, _) = tokens.next()?;
        let mut number = || tokens.next()?.1.parse::<u64>().ok();
        Some(Self {
            ack: ack.clone(),
            stream,
            consumer,
            delivered: number()?,
            stream_sequence: number()?,
            consumer_sequence: number()?,
            published_nanos: number()?,
            pending: number()?,
        })
    }

    pub(crate) fn stream(&self) -> &str {
        self.ack.as_str().get(self.stream.0..self.stream.1).unwrap_or_default()
    }

    pub(crate) fn consumer(&self) -> &str {
        self.ack
            .as_str()
            .get(self.consumer.0..self.consumer.1)
            .unwrap_or_default()
    }

    pub(crate) fn published_at(&self) -> SystemTime {
        time::from_nanos(self.published_nanos)
    }
}

/// Work in hand. Settle it with [`Job::ack`], [`Job::nak`] or [`Job::term`]. Dropped unsettled it is given back at once
/// if the connection takes it without waiting, else the broker gives it to somebody else after the ack wait.
#[derive(Debug)]
pub struct Job {
    /// Subject it was published on.
    subject: Subject,
    /// Headers.
    pub headers: Headers,
    /// Payload.
    pub payload: Bytes,
    delivery: Delivery,
    bus: Bus,
    settled: bool,
}

impl Job {
    pub(crate) fn new(bus: Bus, message: Message, delivery: Delivery) -> Self {
        Self {
            subject: message.subject,
            headers: message.headers,
            payload: message.payload,
            delivery,
            bus,
            settled: false,
        }
    }

    /// Subject it was published on.
    #[must_use]
    pub fn subject(&self) -> &str {
        self.subject.as_str()
    }

    /// Stream it came from.
    #[must_use]
    pub fn stream(&self) -> &str {
        self.delivery.stream()
    }

    /// Consumer it came through.
    #[must_use]
    pub fn consumer(&self) -> &str {
        self.delivery.consumer()
    }

    /// Its place in the stream.
    #[must_use]
    pub fn stream_sequence(&self) -> u64 {
        self.delivery.stream_sequence
    }

    /// Which delivery this is, from 1.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.delivery.delivered
    }

    /// Messages still queued behind it for its consumer.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.delivery.pending
    }

    /// When the broker stored it.
    #[must_use]
    pub fn published_at(&self) -> SystemTime {
        self.delivery.published_at()
    }

    /// Where it is settled: whoever knows this can give it back with [`Bus::nak_at`].
    #[must_use]
    pub fn ack_subject(&self) -> &str {
        self.delivery.ack.as_str()
    }

    /// Done. Sent, not confirmed: if it is lost, the job comes again.
    ///
    /// # Errors
    /// [`BusError::Disconnected`] and the like; the job will be delivered again then.
    pub async fn ack(self) -> Result<(), BusError> {
        self.settle(Bytes::from_static(b"+ACK")).await
    }

    /// Gives it back, to be delivered again after `delay`, or at once.
    ///
    /// # Errors
    /// As [`Job::ack`].
    pub async fn nak(self, delay: Option<Duration>) -> Result<(), BusError> {
        self.settle(nak_payload(delay)).await
    }

    /// Never deliver it again; `reason` goes into the broker's advisory.
    ///
    /// # Errors
    /// As [`Job::ack`].
    pub async fn term(self, reason: &str) -> Result<(), BusError> {
        self.settle(format!("+TERM {}", reason.replace(['\r', '\n'], " ")).into())
            .await
    }

    /// Still working on it: starts the ack wait anew.
    ///
    /// # Errors
    /// As [`Job::ack`].
    pub async fn in_progress(&self) -> Result<(), BusError> {
        self.send(Bytes::from_static(b"+WPI")).await
    }

    /// Lets go of it without a word: somebody else settles it at [`Job::ack_subject`].
    pub fn forget(mut self) {
        self.settled = true;
    }

    async fn settle(mut self, payload: Bytes) -> Result<(), BusError> {
        self.send(payload).await?;
        self.settled = true;
        Ok(())
    }

    async fn send(&self, payload: Bytes) -> Result<(), BusError> {
        self.bus
            .send_in_time(self.delivery.ack.clone(), None, Headers::new(), payload)
            .await
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.settled && !self.bus.send_at_once(self.delivery.ack.clone(), nak_payload(None)) {
            tracing::warn!(
                subject = self.subject.as_str(),
                sequence = self.delivery.stream_sequence,
                "a dropped job could not be given back: it comes again after the ack wait"
            );
        }
    }
}

impl Bus {
    /// Gives back a job that somebody else holds, e.g. a dead worker's: it is delivered again at once.
    ///
    /// # Errors
    /// [`BusError::InvalidSubject`] when it is no ack subject; else as [`Bus::publish`].
    pub async fn nak_at(&self, ack_subject: &str) -> Result<(), BusError> {
        self.settle_at(ack_subject, nak_payload(None)).await
    }

    /// Settles for good a job that somebody else held, e.g. one that was cancelled.
    ///
    /// # Errors
    /// As [`Bus::nak_at`].
    pub async fn term_at(&self, ack_subject: &str, reason: &str) -> Result<(), BusError> {
        self.settle_at(
            ack_subject,
            format!("+TERM {}", reason.replace(['\r', '\n'], " ")).into(),
        )
        .await
    }

    async fn settle_at(&self, ack_subject: &str, payload: Bytes) -> Result<(), BusError> {
        let subject = Subject::from(ack_subject);
        // It came in a message: nobody may make us publish anywhere else.
        if Delivery::parse(&subject).is_none() {
            return Err(BusError::InvalidSubject {
                subject: ack_subject.to_owned(),
            });
        }
        self.send_in_time(subject, None, Headers::new(), payload).await
    }
}

fn nak_payload(delay: Option<Duration>) -> Bytes {
    match delay {
        Some(delay) if !delay.is_zero() => format!(r#"-NAK {{"delay":{}}}"#, delay.as_nanos()).into(),
        _ => Bytes::from_static(b"-NAK"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ack_subjects_of_both_forms_are_read() {
        let short = Delivery::parse(&"$JS.ACK.WORK_m.interactive.2.17.5.1795271734297861033.3".into()).unwrap();
        assert_eq!((short.stream(), short.consumer()), ("WORK_m", "interactive"));
        assert_eq!(
            (
                short.delivered,
                short.stream_sequence,
                short.consumer_sequence,
                short.pending
            ),
            (2, 17, 5, 3)
        );
        let long = Delivery::parse(&"$JS.ACK.hub.ACCHASH.WORK_m.batch.1.9.8.1795271734297861033.0.rnd".into()).unwrap();
        assert_eq!(
            (long.stream(), long.consumer(), long.stream_sequence),
            ("WORK_m", "batch", 9)
        );
        assert_eq!(long.published_at(), time::from_nanos(1_795_271_734_297_861_033));
        for wrong in [
            "",
            "$JS.ACK.",
            "$JS.ACK.a.b.1.2.3.4",
            "$JS.ACK.a.b.1.2.x.4.5",
            "portalis.v1.work.m.a.t",
        ] {
            assert!(Delivery::parse(&wrong.into()).is_none(), "{wrong}");
        }
    }
}
