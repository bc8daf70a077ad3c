//! What comes back. Input: the gateway's one reply subscription: frames of workers, acknowledgements of the broker.
//! Output: flights that are answered, failed, or marked for another try.

use std::sync::Arc;

use bus::{FullLimit, Message, PublishAck, PublishError, Subscription, parse_publish_ack};
use process::CancellationToken;
use schemas::error::{ErrorCode, Failure};
use schemas::reply::{ReplyBatch, ReplyFrame};
use schemas::{subjects, wire};

use crate::Gateway;
use crate::answer::Answer;
use crate::flight::{Flight, Outcome};
use crate::progress::{Edition, Effect};

/// Wait that a client is told when the queue is full, in milliseconds: about the time of a few batches.
const FULL_RETRY_AFTER_MS: u64 = 1_000;

/// Reads replies until the gateway stops.
///
/// # Errors
/// When the subscription ends although nobody asked for it.
pub(crate) async fn run(
    gateway: Arc<Gateway>,
    mut replies: Subscription,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            biased;
            message = replies.next() => match message {
                Some(message) => gateway.on_reply(&message).await,
                None if stop.is_cancelled() => return Ok(()),
                None => anyhow::bail!("the reply subscription ended"),
            },
            () = stop.cancelled() => return Ok(()),
        }
    }
}

impl Gateway {
    async fn on_reply(&self, message: &Message) {
        if let Some(publication) = subjects::parse_publish_ack_slot(message.subject()) {
            if let Some(flight) = self.flights.acknowledged(publication) {
                self.on_publish_ack(&flight, parse_publish_ack(message));
            }
            return;
        }
        match wire::decode::<ReplyBatch>(&message.payload) {
            Ok(batch) => {
                for frame in batch.frames {
                    self.on_frame(frame).await;
                }
            }
            Err(error) => {
                self.metrics.malformed.with_label_values(&["reply"]).inc();
                tracing::warn!(%error, subject = message.subject(), "reply cannot be read");
            }
        }
    }

    async fn on_frame(&self, frame: ReplyFrame) {
        let Some(flight) = self.flights.find(&frame.request_id) else {
            return; // Answered already, or nobody waits any more.
        };
        let (effect, fresh) = {
            let mut state = flight.state();
            let effect = state.on_frame(frame);
            (effect, state.take_fresh())
        };
        if !flight.pass_on(fresh) {
            self.end_unread(&flight).await;
            return;
        }
        match effect {
            Effect::None => {}
            Effect::Answered { content, usage } => {
                let answer = Arc::new(Answer::new(flight.order.model.clone(), content, usage));
                self.keep(&flight, &answer);
                self.finish(&flight, Ok(answer));
                if flight.state().edition > 1 {
                    // An older or newer copy of the same work may still be queued or running for nobody.
                    let _ = self.stop_copies(&flight).await;
                }
            }
            Effect::Failed(failure) => self.finish(&flight, Err(failure)),
            Effect::Lost => {
                tracing::warn!(request_id = %flight.order.request_id, "a frame of the answer was lost, computing it again");
                self.republish(&flight, Edition::New, "lost_frame").await;
            }
        }
    }

    /// Ends a flight whose reader is too slow: what is unread is bounded, and nobody else waits for it.
    async fn end_unread(&self, flight: &Arc<Flight>) {
        self.metrics.slow_readers.inc();
        tracing::info!(request_id = %flight.order.request_id, "the client reads too slowly, its answer is ended");
        let message = "the answer was read too slowly and has been ended";
        self.finish(flight, Err(Failure::new(ErrorCode::Cancelled, message)));
        if let Err(error) = self.take_back(flight).await {
            tracing::debug!(%error, request_id = %flight.order.request_id, "unread work not taken back");
        }
    }

    /// Takes in what the broker says about a publication.
    fn on_publish_ack(&self, flight: &Arc<Flight>, ack: Result<PublishAck, PublishError>) {
        match ack {
            Ok(ack) => flight.state().stream_sequence = Some(ack.sequence),
            // The queue is made by the model's workers; after a restart of the broker it comes back with them.
            Err(PublishError::NoStream { .. }) => flight.state().homeless = true,
            Err(error) => {
                tracing::debug!(%error, request_id = %flight.order.request_id, "work was not queued");
                self.finish(flight, Err(refused(&error)));
            }
        }
    }

    /// Ends a flight: forgets it, then tells all who wait.
    pub(crate) fn finish(&self, flight: &Arc<Flight>, outcome: Outcome) {
        self.flights.land(flight);
        flight.complete(outcome);
    }
}

fn refused(error: &PublishError) -> Failure {
    match error {
        PublishError::Full {
            limit: FullLimit::SubjectMessages,
            ..
        } => Failure::new(
            ErrorCode::TenantQueueFull,
            "as much of your work is queued for this model as one tenant may have; send less at once",
        )
        .retry_after_ms(FULL_RETRY_AFTER_MS),
        PublishError::Full { .. } => {
            Failure::new(ErrorCode::QueueFull, "the queue of this model is full").retry_after_ms(FULL_RETRY_AFTER_MS)
        }
        PublishError::TooLarge { .. } => Failure::new(
            ErrorCode::BodyTooLarge,
            "the request is larger than a work message may be",
        ),
        _ => crate::dispatch::unavailable("the queue refused the request"),
    }
}
