//! What leaves the worker. Input: frames, cost events, messages to settle. Output: one message per gateway and step with
//! all its frames; then the cost events, acknowledged; only then the work is acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bus::{Bus, Headers, Job, PublishError};
use process::CancellationToken;
use schemas::cost::{CostBatch, CostEvent};
use schemas::generate::TextPart;
use schemas::ids::{event_id, model_slug};
use schemas::reply::{Frame, ReplyBatch, ReplyFrame};
use schemas::wire::Format;
use schemas::{headers, subjects, wire};

use crate::job::ReplyTo;
use crate::metrics::Metrics;

/// Vectors of one coalesced message, in bytes: with its framing well below the broker's limit of 8 MiB.
const MAX_BATCH_BYTES: usize = 512 * 1024;
/// Longest wait for the broker to take cost events.
const COST_TIMEOUT: Duration = Duration::from_secs(2);
/// First and longest pause between two tries.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Frames on their way, collected over one step.
#[derive(Debug, Default)]
pub struct Outbox {
    coalesced: BTreeMap<String, Vec<ReplyFrame>>,
    single: Vec<(ReplyTo, ReplyFrame)>,
}

impl Outbox {
    /// Adds a frame.
    pub fn push(&mut self, reply: &ReplyTo, frame: ReplyFrame) {
        if subjects::is_reply_batch(&reply.subject) && reply.format == Format::MessagePack {
            match self.coalesced.get_mut(&reply.subject) {
                Some(frames) => frames.push(frame),
                None => drop(self.coalesced.insert(reply.subject.clone(), vec![frame])),
            }
        } else {
            self.single.push((reply.clone(), frame));
        }
    }

    /// Sends all frames; what cannot be sent is lost, and the gateway notices the gap.
    pub async fn send(&mut self, bus: &Bus) {
        for (subject, frames) in std::mem::take(&mut self.coalesced) {
            for frames in bounded(frames) {
                send_one(bus, &subject, Format::MessagePack, &ReplyBatch { frames }).await;
            }
        }
        for (reply, frame) in std::mem::take(&mut self.single) {
            send_one(bus, &reply.subject, reply.format, &frame).await;
        }
    }
}

async fn send_one<T: serde::Serialize>(bus: &Bus, subject: &str, format: Format, message: &T) {
    let mut message_headers = Headers::new();
    if format == Format::Json {
        message_headers.insert(headers::CONTENT_TYPE, Format::JSON);
    }
    match wire::encode_as(format, message) {
        Ok(payload) => {
            if let Err(error) = bus.publish(subject, message_headers, payload.into()).await {
                tracing::debug!(%error, subject, "reply not sent");
            }
        }
        Err(error) => tracing::error!(%error, "reply cannot be encoded"),
    }
}

/// Splits frames into messages of bounded size, in order.
fn bounded(frames: Vec<ReplyFrame>) -> Vec<Vec<ReplyFrame>> {
    let mut messages: Vec<Vec<ReplyFrame>> = vec![Vec::with_capacity(frames.len())];
    let mut bytes = 0;
    for frame in frames {
        let size = frame_bytes(&frame);
        if bytes > 0 && bytes + size > MAX_BATCH_BYTES {
            messages.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(last) = messages.last_mut() {
            last.push(frame);
        }
    }
    messages
}

fn frame_bytes(frame: &ReplyFrame) -> usize {
    let (vectors, text) = match &frame.frame {
        Frame::Part(part) => (part.vectors.as_slice(), &[][..]),
        Frame::Text(parts) => (&[][..], parts.as_slice()),
        Frame::Done(done) => (done.embed.vectors.as_slice(), done.text.as_slice()),
        Frame::Accepted(_) | Frame::Failed(_) => return 256,
    };
    let vectors: usize = vectors.iter().map(|vector| vector.0.len() * size_of::<f32>() + 8).sum();
    let text: usize = text.iter().map(TextPart::weight_bytes).sum();
    let scores = match &frame.frame {
        Frame::Done(done) => done.scores.len() * (size_of::<f32>() + 1),
        _ => 0,
    };
    vectors + text + scores + 256
}

/// How a message leaves the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Done.
    Ack,
    /// Never again, with the reason.
    Term(String),
    /// Later, by somebody.
    GiveBack(Duration),
}

/// Messages whose requests are over, and the facts to be booked before they are settled.
#[derive(Debug, Default)]
pub struct Settlement {
    /// The facts.
    pub events: Vec<CostEvent>,
    /// The messages.
    pub jobs: Vec<(Job, Verdict)>,
}

impl Settlement {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.jobs.is_empty()
    }
}

/// Publishes the facts until the broker has them, then settles the messages. A worker that dies in between leaves the work
/// to be done again: the ledger books a request once, and the second time as waste.
pub async fn settle(bus: Bus, settlement: Settlement, metrics: Metrics, give_up: CancellationToken) {
    let Settlement { events, jobs } = settlement;
    for (subject, batch) in by_payer(events) {
        let count = batch.events.len() as u64;
        if !publish_cost(&bus, &subject, &batch, &jobs, (&metrics, &give_up)).await {
            tracing::warn!(
                events = count,
                "cost events not stored, their work goes back to the queue"
            );
            return; // Dropping the jobs gives them back.
        }
        metrics.cost_events.inc_by(count);
    }
    for (job, verdict) in jobs {
        let settled = match verdict {
            Verdict::Ack => job.ack().await,
            Verdict::Term(reason) => job.term(&reason).await,
            Verdict::GiveBack(delay) => job.nak(Some(delay)).await,
        };
        if let Err(error) = settled {
            tracing::debug!(%error, "message not settled; the queue will deliver it again");
        }
    }
}

/// One message per tenant and model; the events of a batch share it.
fn by_payer(events: Vec<CostEvent>) -> BTreeMap<String, CostBatch> {
    let mut batches: BTreeMap<String, CostBatch> = BTreeMap::new();
    for event in events {
        let subject = subjects::cost(&event.tenant, &model_slug(&event.model));
        batches
            .entry(subject)
            .or_insert_with(|| CostBatch { events: Vec::new() })
            .events
            .push(event);
    }
    batches
}

async fn publish_cost(
    bus: &Bus,
    subject: &str,
    batch: &CostBatch,
    jobs: &[(Job, Verdict)],
    (metrics, give_up): (&Metrics, &CancellationToken),
) -> bool {
    let payload: Arc<[u8]> = match wire::encode(batch) {
        Ok(payload) => payload.into(),
        Err(error) => {
            tracing::error!(%error, "cost events cannot be encoded");
            return false;
        }
    };
    // The same batch told again is one message; the same request computed by somebody else is another one: the ledger
    // must hear of it to book it as waste.
    let attempts: Vec<[u8; 4]> = batch.events.iter().map(|event| event.attempt.to_le_bytes()).collect();
    let told = batch.events.iter().zip(&attempts);
    let ids: Vec<&[u8]> = told
        .flat_map(|(event, attempt)| [event.event_id.as_bytes(), event.reporter.as_bytes(), attempt.as_slice()])
        .collect();
    let message_id = event_id(&ids);
    let mut pause = RETRY_PAUSES.0;
    loop {
        let message_headers = Headers::new().with(headers::MESSAGE_ID, &message_id);
        let body = bytes::Bytes::copy_from_slice(&payload);
        match bus.publish_acked(subject, message_headers, body, COST_TIMEOUT).await {
            Ok(_) => return true,
            Err(error @ (PublishError::TooLarge { .. } | PublishError::WrongSequence { .. })) => {
                tracing::error!(%error, "cost events refused");
                return false;
            }
            Err(error) => tracing::debug!(%error, "cost events not stored yet"),
        }
        metrics.cost_retries.inc();
        tokio::select! {
            () = give_up.cancelled() => return false,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(RETRY_PAUSES.1);
        for (job, _) in jobs {
            // Nobody else shall begin what is finished but for its bill.
            let _ = job.in_progress().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::ids::RequestId;
    use schemas::reply::EmbedPart;
    use schemas::vector::Vector;

    use super::*;

    fn part(sequence: u32, values: usize) -> ReplyFrame {
        let part = EmbedPart {
            first: 0,
            vectors: vec![Vector(vec![0.0; values])],
        };
        ReplyFrame {
            request_id: RequestId::from_bytes([0; 16]),
            attempt: 1,
            sequence,
            frame: Frame::Part(part),
        }
    }

    #[test]
    fn messages_are_bounded_and_keep_the_order() {
        let frames: Vec<ReplyFrame> = (0..10).map(|sequence| part(sequence, 30_000)).collect();
        let messages = bounded(frames);
        assert!(messages.len() > 1);
        let sequences: Vec<u32> = messages.iter().flatten().map(|frame| frame.sequence).collect();
        assert_eq!(sequences, (0..10).collect::<Vec<u32>>());
        for message in &messages {
            assert!(message.iter().map(frame_bytes).sum::<usize>() <= MAX_BATCH_BYTES);
        }
        assert_eq!(bounded(vec![part(0, 1_000_000)]).len(), 1, "one frame is never split");
    }
}
