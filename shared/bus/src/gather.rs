//! Publishing for many tasks at once. Input: messages of tasks that run in the same moment. Output: few writes to the
//! socket: each task alone would cause one of its own, and each write wakes the broker.

use std::time::Duration;

use async_nats::client::traits::Publisher;
use async_nats::message::OutboundMessage;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::request::timed_out;
use crate::{Bus, BusError, Headers};

/// Messages that may wait for the next write; whoever comes then waits for room.
const QUEUE: usize = 4_096;

/// Where tasks leave their messages. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Gather {
    bus: Bus,
    queue: mpsc::Sender<OutboundMessage>,
}

/// The other end of a [`Gather`]: to be run by a task of the service.
#[derive(Debug)]
pub struct Gathering {
    bus: Bus,
    queue: mpsc::Receiver<OutboundMessage>,
}

impl Bus {
    /// Two ends of a queue of messages that leave together.
    #[must_use]
    pub fn gather(&self) -> (Gather, Gathering) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let gather = Gather {
            bus: self.clone(),
            queue: sender,
        };
        let gathering = Gathering {
            bus: self.clone(),
            queue: receiver,
        };
        (gather, gathering)
    }
}

impl Gather {
    /// Publishes with a reply subject of the caller's own. What is taken is lost when the connection is lost before it
    /// is written, as anywhere on the bus: only an answer proves that it arrived.
    ///
    /// # Errors
    /// [`BusError::Disconnected`] at once without a connection; [`BusError::Timeout`] when there is no room for the
    /// request timeout; [`BusError::TooLarge`]; [`BusError::Closed`] when nobody runs the other end.
    pub async fn publish_with_reply(
        &self,
        subject: &str,
        reply: &str,
        headers: Headers,
        payload: Bytes,
    ) -> Result<(), BusError> {
        if !self.bus.is_connected() {
            return Err(BusError::Disconnected);
        }
        self.bus.check_size(subject, payload.len())?;
        let message = OutboundMessage {
            subject: subject.into(),
            reply: Some(reply.into()),
            payload,
            headers: headers.into_client(),
        };
        let timeout: Duration = self.bus.request_timeout();
        match tokio::time::timeout(timeout, self.queue.send(message)).await {
            Ok(sent) => sent.map_err(|_| BusError::Closed),
            Err(_) => Err(timed_out(subject, timeout)),
        }
    }
}

impl Gathering {
    /// Hands messages to the connection until `stop`, then those that are left.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut messages = Vec::with_capacity(QUEUE);
        loop {
            let stopping = tokio::select! {
                biased;
                count = self.queue.recv_many(&mut messages, QUEUE) => count == 0,
                () = stop.cancelled() => true,
            };
            if !stopping {
                // Every task that is ready now runs before this one goes on, and may add its message.
                tokio::task::yield_now().await;
            }
            while messages.len() < QUEUE
                && let Ok(message) = self.queue.try_recv()
            {
                messages.push(message);
            }
            for message in messages.drain(..) {
                if !self.bus.is_connected() {
                    tracing::debug!(subject = %message.subject, "not published, the connection is lost");
                } else if let Err(error) = self.bus.inner.client.publish_message(message).await {
                    tracing::debug!(%error, "not published");
                }
            }
            if stopping {
                return;
            }
        }
    }
}
