//! Subscriptions. Input: a subject, perhaps a queue group. Output: messages, one by one.

use futures_util::StreamExt;

use crate::connection::at_once;
use crate::{Bus, BusError, Message};

/// A subscription. It survives reconnects; what is published meanwhile is not delivered.
/// When its owner is slower than the messages come, the newest are dropped and counted in [`crate::BusStats::dropped`].
#[derive(Debug)]
pub struct Subscription {
    inner: async_nats::Subscriber,
}

impl Subscription {
    /// The next message; `None` when the bus is closed. Cancel-safe.
    pub async fn next(&mut self) -> Option<Message> {
        self.inner.next().await.map(Message::from)
    }

    /// A message that has arrived already.
    pub fn try_next(&mut self) -> Option<Message> {
        at_once(self.inner.next()).flatten().map(Message::from)
    }
}

impl Bus {
    /// Subscribes, in a queue group if one is named. When this returns, the server knows the subscription.
    ///
    /// # Errors
    /// [`BusError::Disconnected`], [`BusError::Timeout`], [`BusError::InvalidSubject`].
    pub async fn subscribe(&self, subject: &str, queue: Option<&str>) -> Result<Subscription, BusError> {
        let subscription = self.subscribe_unproved(subject, queue).await?;
        // Subscribing only queues a command; only an answer shows that the server has it.
        self.round_trip(self.inner.request_timeout).await?;
        Ok(subscription)
    }

    /// Subscribes to everything under a prefix: a service's own replies, told apart by the rest of the subject.
    ///
    /// # Errors
    /// As [`Bus::subscribe`].
    pub async fn inbox(&self, prefix: &str) -> Result<Subscription, BusError> {
        self.subscribe(&format!("{prefix}.>"), None).await
    }

    /// Subscribes without waiting for the server; works while disconnected.
    pub(crate) async fn subscribe_unproved(
        &self,
        subject: &str,
        queue: Option<&str>,
    ) -> Result<Subscription, BusError> {
        let failed = |error: async_nats::SubscribeError| match error.kind() {
            async_nats::SubscribeErrorKind::InvalidSubject => BusError::InvalidSubject {
                subject: subject.to_owned(),
            },
            _ => BusError::Closed,
        };
        let subscribe = async {
            match queue {
                Some(queue) => {
                    self.inner
                        .client
                        .queue_subscribe(subject.to_owned(), queue.to_owned())
                        .await
                }
                None => self.inner.client.subscribe(subject.to_owned()).await,
            }
        };
        match tokio::time::timeout(self.inner.request_timeout, subscribe).await {
            Ok(subscribed) => subscribed.map(|inner| Subscription { inner }).map_err(failed),
            Err(_) => Err(BusError::Disconnected),
        }
    }

    /// A fresh prefix under which nobody else listens.
    pub(crate) fn new_inbox(&self) -> String {
        self.inner.client.new_inbox()
    }
}
