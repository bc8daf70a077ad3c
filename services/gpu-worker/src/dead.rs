//! Work that fails for good. Input: a message that nobody could finish, found by the worker itself or by the broker's count
//! of deliveries. Output: a dead letter with the reason, an answer to its sender, and a queue that goes on.

use std::time::Duration;

use bus::{Bus, Headers, Job, PublishError, PullEvent, Puller, StoredMessage};
use process::{CancellationToken, Clock};
use schemas::dead::DeadLetter;
use schemas::error::{ErrorCode, Failure};
use schemas::reply::{Frame, ReplyBatch, ReplyFrame};
use schemas::wire::Format;
use schemas::work::Work;
use schemas::{headers, streams, subjects, wire};
use serde::Deserialize;
use serde_bytes::ByteBuf;

use crate::metrics::Metrics;

/// Longest wait for the broker to take a dead letter.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Advisories pulled at once: dead work is rare.
const PULL: u32 = 8;
/// Time a pull stays open, and between its signs of life.
const PULL_TIMES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(500));
/// Pause after the broker had no pull for us, e.g. while it restarts.
const PAUSE: Duration = Duration::from_millis(250);

/// A letter as it is made from a queued message.
pub(crate) struct Corpse<'a> {
    /// Subject it was queued on.
    pub subject: &'a str,
    /// Stream it was queued in.
    pub stream: &'a str,
    /// Its sequence there.
    pub sequence: u64,
    /// How often it was delivered.
    pub deliveries: u64,
    /// Its headers.
    pub headers: &'a Headers,
    /// Its body.
    pub payload: &'a [u8],
}

impl<'a> Corpse<'a> {
    /// The letter of a message in hand.
    pub(crate) fn of_job(job: &'a Job) -> Self {
        Self {
            subject: job.subject(),
            stream: job.stream(),
            sequence: job.stream_sequence(),
            deliveries: job.delivered(),
            headers: &job.headers,
            payload: &job.payload,
        }
    }
}

/// Stores a dead letter; the same message is stored once.
///
/// # Errors
/// When the broker does not take it; the message stays where it is then.
pub(crate) async fn bury(bus: &Bus, corpse: &Corpse<'_>, reason: &str, now_ms: u64) -> Result<(), PublishError> {
    let Some((slug, ..)) = subjects::parse_work(corpse.subject) else {
        return Ok(()); // Not work; nothing of ours.
    };
    let kept = |name: &str| name != headers::IDENTITY;
    let letter = DeadLetter {
        subject: corpse.subject.to_owned(),
        stream: corpse.stream.to_owned(),
        stream_sequence: corpse.sequence,
        deliveries: corpse.deliveries,
        reason: reason.to_owned(),
        died_at_ms: now_ms,
        headers: corpse
            .headers
            .iter()
            .filter(|(name, _)| kept(name))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        payload: ByteBuf::from(corpse.payload.to_vec()),
    };
    let Ok(payload) = wire::encode(&letter) else {
        return Ok(());
    };
    // The time of death is left out on purpose: two movers make one letter.
    let message_headers = Headers::new().with(
        headers::MESSAGE_ID,
        format!("{}:{}:{}", corpse.stream, corpse.sequence, corpse.subject),
    );
    bus.publish_acked(&subjects::dead(slug), message_headers, payload.into(), TIMEOUT)
        .await
        .map(drop)
}

/// The broker's note that a message was delivered too often.
#[derive(Debug, Deserialize)]
struct Advisory {
    stream: String,
    stream_seq: u64,
    deliveries: u64,
}

/// Moves messages that were delivered too often, for all models, until the worker stops. All workers share the consumer.
pub(crate) struct Mover {
    pub bus: Bus,
    pub clock: Clock,
    pub metrics: Metrics,
}

impl Mover {
    /// Runs until `stop`.
    ///
    /// # Errors
    /// When the bus is closed.
    pub(crate) async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let spec = streams::dead_letter_mover();
        let consumer = bus::ConsumerRef::new(&spec.stream, &spec.name);
        let mut puller = Puller::new(&self.bus).await?;
        while !stop.is_cancelled() {
            if puller.outstanding(&consumer) == 0
                && let Err(error) = puller.request(&consumer, PULL, PULL_TIMES.0, PULL_TIMES.1).await
            {
                tracing::debug!(%error, "no advisories pulled now");
            }
            let event = tokio::select! {
                event = puller.next() => event,
                () = stop.cancelled() => break,
            };
            match event {
                Some(PullEvent::Job(job)) => self.move_one(job).await,
                Some(PullEvent::Ended {
                    reason: bus::EndReason::Expired,
                    ..
                }) => {}
                Some(PullEvent::Ended { .. }) => {
                    tokio::select! {
                        () = tokio::time::sleep(PAUSE) => {}
                        () = stop.cancelled() => {}
                    }
                    let _ = self.bus.ensure_stream(&streams::advisories()).await;
                    let _ = self.bus.ensure_consumer(&spec).await;
                }
                None => return Ok(()),
            }
        }
        puller.close(PULL_TIMES.0).await;
        Ok(())
    }

    async fn move_one(&self, job: Job) {
        let advisory: Advisory = match serde_json::from_slice(&job.payload) {
            Ok(advisory) => advisory,
            Err(error) => {
                self.metrics.malformed.with_label_values(&["advisory"]).inc();
                tracing::warn!(%error, "advisory cannot be read");
                let _ = job.term("not an advisory").await;
                return;
            }
        };
        match self.inter(&advisory).await {
            Ok(()) => drop(job.ack().await),
            Err(error) => {
                tracing::warn!(%error, stream = advisory.stream, "dead letter not moved yet");
                let _ = job.nak(Some(PAUSE)).await;
            }
        }
    }

    async fn inter(&self, advisory: &Advisory) -> Result<(), MoveError> {
        if !advisory.stream.starts_with(&streams::work_stream_name("")) {
            return Ok(()); // Another application's queue on the same broker.
        }
        let message = match self.bus.get_message(&advisory.stream, advisory.stream_seq).await {
            Ok(message) => message,
            Err(bus::JetStreamError::NotFound { .. }) => return Ok(()), // Moved already, or cancelled.
            Err(error) => return Err(error.into()),
        };
        let corpse = Corpse {
            subject: &message.subject,
            stream: &advisory.stream,
            sequence: advisory.stream_seq,
            deliveries: advisory.deliveries,
            headers: &message.headers,
            payload: &message.payload,
        };
        let reason = format!("delivered {} times without an answer", advisory.deliveries);
        bury(&self.bus, &corpse, &reason, self.clock.now_unix_ms()).await?;
        self.metrics.dead_letters.inc();
        tracing::error!(
            subject = message.subject,
            sequence = advisory.stream_seq,
            reason,
            "work is dead"
        );
        answer_dead(&self.bus, &message, advisory.deliveries).await;
        self.bus.delete_message(&advisory.stream, advisory.stream_seq).await?;
        Ok(())
    }
}

/// Why a message could not be moved now.
#[derive(Debug, thiserror::Error)]
enum MoveError {
    #[error("the stream does not answer")]
    Stream(#[from] bus::JetStreamError),
    #[error("the dead letter was not stored")]
    Publish(#[from] PublishError),
}

/// The failure that the sender of dead work is told.
pub(crate) fn poisoned() -> Failure {
    Failure::new(
        ErrorCode::Poisoned,
        "the request failed on every attempt; report the request id",
    )
}

async fn answer_dead(bus: &Bus, message: &StoredMessage, deliveries: u64) {
    let format = Format::from_content_type(message.headers.get(headers::CONTENT_TYPE)).unwrap_or_default();
    let (Some(subject), Ok(work)) = (
        message.headers.get(headers::REPLY),
        wire::decode_as::<Work>(format, &message.payload),
    ) else {
        return;
    };
    let attempt = u32::try_from(deliveries).unwrap_or(u32::MAX).saturating_add(1);
    let frame = ReplyFrame {
        request_id: work.request_id,
        attempt,
        sequence: 0,
        frame: Frame::Failed(poisoned()),
    };
    let payload = if subjects::is_reply_batch(subject) && format == Format::MessagePack {
        wire::encode(&ReplyBatch { frames: vec![frame] })
    } else {
        wire::encode_as(format, &frame)
    };
    if let Ok(payload) = payload {
        let mut message_headers = Headers::new();
        if format == Format::Json {
            message_headers.insert(headers::CONTENT_TYPE, Format::JSON);
        }
        let sent = bus.publish(subject, message_headers, payload.into()).await;
        tracing::debug!(?sent, "sender of dead work told");
    }
}

/// Makes what all workers share: streams, consumers and the mover's advisories.
///
/// # Errors
/// When the broker does not make them as asked.
pub(crate) async fn provision(bus: &Bus) -> Result<(), bus::JetStreamError> {
    bus.ensure_stream(&streams::dead()).await?;
    bus.ensure_stream(&streams::advisories()).await?;
    bus.ensure_consumer(&streams::dead_letter_mover()).await
}
