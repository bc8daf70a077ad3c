//! A request/reply loop. Input: a subscription and a handler. Output: answers, with bounded concurrency, until stopped.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{Bus, Headers, Message, Subscription};

/// How a loop runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServeOptions {
    /// Requests handled at once; more wait in the subscription.
    pub concurrency: usize,
    /// After the stop, requests are still answered this long: others are told to go elsewhere meanwhile.
    pub grace: Duration,
}

impl Default for ServeOptions {
    fn default() -> Self {
        // 64 handlers keep a core busy when each waits; the grace covers a request that is on its way.
        Self {
            concurrency: 64,
            grace: Duration::from_millis(250),
        }
    }
}

/// What a loop did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ServeSummary {
    /// Requests handled.
    pub handled: u64,
    /// Answers that could not be sent.
    pub unanswered: u64,
}

impl Bus {
    /// Answers the requests of `subscription` until `stop`, then for the grace, then finishes what is in hand.
    /// Runs in the caller's task. The subscription is never drained: that loses messages that are on their way.
    ///
    /// The handler returns what to answer, or `None` for no answer.
    pub async fn serve<H, F>(
        &self,
        mut subscription: Subscription,
        options: ServeOptions,
        stop: CancellationToken,
        handler: H,
    ) -> ServeSummary
    where
        H: Fn(Message) -> F,
        F: Future<Output = Option<(Headers, Bytes)>>,
    {
        let concurrency = options.concurrency.max(1);
        let mut in_hand = FuturesUnordered::new();
        let mut summary = ServeSummary::default();
        let mut ends_at: Option<Instant> = None;
        loop {
            tokio::select! {
                biased;
                Some(answered) = in_hand.next(), if !in_hand.is_empty() => summary.add(answered),
                () = stop.cancelled(), if ends_at.is_none() => ends_at = Some(Instant::now() + options.grace),
                () = until(ends_at), if ends_at.is_some() => break,
                request = subscription.next(), if in_hand.len() < concurrency => {
                    let Some(request) = request else { break };
                    let reply = request.reply.clone();
                    let answer = handler(request);
                    in_hand.push(async move {
                        match (answer.await, reply) {
                            (Some((headers, payload)), Some(reply)) => {
                                self.send_in_time(reply, None, headers, payload).await
                            }
                            _ => Ok(()),
                        }
                    });
                }
            }
        }
        drop(subscription);
        while let Some(answered) = in_hand.next().await {
            summary.add(answered);
        }
        summary
    }
}

impl ServeSummary {
    fn add(&mut self, answered: Result<(), crate::BusError>) {
        self.handled += 1;
        if let Err(error) = answered {
            self.unanswered += 1;
            tracing::debug!(%error, "answer not sent");
        }
    }
}

/// Pends for ever without an instant.
async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
