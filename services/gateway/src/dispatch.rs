//! Publishing work. Input: a flight. Output: the message on the model's queue, with all headers of the contract; when a
//! flight is given up, its work taken back from queue and worker.

use std::sync::Arc;

use bus::{Bus, BusError, Headers};
use bytes::Bytes;
use schemas::error::{ErrorCode, Failure};
use schemas::work::{Cancel, Task, Work};
use schemas::{headers, streams, subjects, wire};

use crate::Gateway;
use crate::flight::{Flight, Order};
use crate::progress::{Continuation, Edition};

impl Gateway {
    /// Publishes a flight's work, without waiting for the broker's acknowledgement: that comes to [`crate::replies`].
    ///
    /// # Errors
    /// `unavailable` when there is no connection, `body_too_large` when the message is larger than the queue takes.
    pub(crate) async fn publish(&self, flight: &Arc<Flight>, edition: Edition) -> Result<(), Failure> {
        let order = &flight.order;
        let (number, continuation) = {
            let mut state = flight.state();
            state.on_published(edition, self.clock.monotonic_us());
            (state.edition, state.continuation())
        };
        let payload = match continuation {
            None => order.payload.clone(),
            Some(continuation) => continued(order, continuation)?,
        };
        let publication = self.flights.publication(order.request_id);
        let reply = subjects::reply_publish_ack(&self.instance, publication);
        let mut message_headers = Headers::new();
        message_headers.insert(headers::MESSAGE_ID, format!("{}:{number}", order.request_id));
        message_headers.insert(headers::DEADLINE, order.deadline_ms.to_string());
        message_headers.insert(headers::IDENTITY, order.identity.as_str());
        message_headers.insert(headers::REPLY, self.reply_subject.as_str());
        message_headers.insert(headers::TRACEPARENT, order.trace.child().to_string());
        let sent = self
            .departures
            .publish_with_reply(&order.subject, &reply, message_headers, payload)
            .await;
        sent.map_err(|error| unsent(&error))
    }

    /// Takes the work of an abandoned flight back: from the queue if it is still there, from its worker if it has begun.
    pub(crate) async fn take_back(&self, flight: &Flight) -> Result<(), BusError> {
        let (accepted, sequence) = {
            let state = flight.state();
            (state.accepted.clone(), state.stream_sequence)
        };
        let order = &flight.order;
        let subject = match &accepted {
            Some(accepted) => subjects::cancel_worker(&accepted.worker),
            None => subjects::cancel_model(&order.slug),
        };
        let cancel = Cancel {
            request_ids: vec![order.request_id],
        };
        if let Ok(payload) = wire::encode(&cancel) {
            self.bus.publish(&subject, Headers::new(), payload.into()).await?;
        }
        if let (None, Some(sequence)) = (accepted, sequence) {
            delete_queued(&self.bus, order, sequence).await;
        }
        Ok(())
    }

    /// Stops copies of answered work that was published more than once, wherever they are. Only for flights that are over:
    /// workers remember the request as cancelled and drop whatever still comes of it.
    pub(crate) async fn stop_copies(&self, flight: &Flight) -> Result<(), BusError> {
        let cancel = Cancel {
            request_ids: vec![flight.order.request_id],
        };
        match wire::encode(&cancel) {
            Ok(payload) => {
                let subject = subjects::cancel_model(&flight.order.slug);
                self.bus.publish(&subject, Headers::new(), payload.into()).await
            }
            Err(_) => Ok(()),
        }
    }
}

/// The work of an order, going on where an earlier worker stopped. Read back and written anew, because it is rare.
fn continued(order: &Order, continuation: Continuation) -> Result<Bytes, Failure> {
    let mut work: Work = wire::decode(&order.payload).map_err(|error| unencoded(&error))?;
    if let Task::Generate(task) = &mut work.task {
        task.resume = continuation.resume;
        task.attempts_before = continuation.attempts_before;
    }
    encoded(&work)
}

/// Work as it is published.
pub(crate) fn encoded(work: &Work) -> Result<Bytes, Failure> {
    wire::encode(work).map(Bytes::from).map_err(|error| unencoded(&error))
}

fn unencoded(error: &wire::WireError) -> Failure {
    tracing::error!(%error, "work cannot be encoded");
    Failure::new(ErrorCode::Internal, "the request could not be passed on")
}

/// Removes work that no worker has taken; one that has just been taken is stopped by the cancellation instead.
pub(crate) async fn delete_queued(bus: &Bus, order: &Order, sequence: u64) {
    let stream = streams::work_stream_name(&order.slug);
    let queued = match bus.get_message(&stream, sequence).await {
        Ok(queued) => queued,
        Err(error) => {
            tracing::debug!(%error, stream, sequence, "queued work was not there any more");
            return;
        }
    };
    // A broker that was restarted counts from 1 again: the number may be somebody else's by now.
    let message_id = queued.headers.get(headers::MESSAGE_ID).unwrap_or_default();
    if !message_id.starts_with(&order.request_id.to_string()) {
        return;
    }
    if let Err(error) = bus.delete_message(&stream, sequence).await {
        tracing::debug!(%error, stream, sequence, "queued work was not there any more");
    }
}

fn unsent(error: &BusError) -> Failure {
    tracing::debug!(%error, "work not published");
    match error {
        BusError::TooLarge { .. } => Failure::new(
            ErrorCode::BodyTooLarge,
            "the request is larger than a work message may be",
        ),
        _ => unavailable("the message bus is not reachable"),
    }
}

/// The failure of a part that is away.
#[must_use]
pub(crate) fn unavailable(what: &str) -> Failure {
    Failure::new(ErrorCode::Unavailable, format!("{what}; try again")).retry_after_ms(1_000)
}
