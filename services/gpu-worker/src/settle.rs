//! When finished work is billed and settled. Input: a desk's settlement after each step. Output: settlements on their way,
//! several steps together: their cost events share a message, and the clients have their answers already.

use std::pin::Pin;
use std::time::Duration;

use bus::Bus;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use process::Shutdown;
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::publish::{self, Settlement};

/// Longest time a finished request waits to be billed with others.
const SETTLE_TOGETHER: Duration = Duration::from_millis(5);
/// Finished requests that are billed at once without waiting for more.
const SETTLE_AT_ONCE: usize = 256;

type Settling = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Settlements that wait and those on their way.
pub struct Settler {
    bus: Bus,
    metrics: Metrics,
    shutdown: Shutdown,
    settling: FuturesUnordered<Settling>,
    /// When what is finished is billed at the latest.
    due: Option<Instant>,
}

impl Settler {
    /// A settler with nothing to do.
    #[must_use]
    pub fn new(bus: Bus, metrics: Metrics, shutdown: Shutdown) -> Self {
        Self {
            bus,
            metrics,
            shutdown,
            settling: FuturesUnordered::new(),
            due: None,
        }
    }

    /// Whether nothing is on its way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.settling.is_empty()
    }

    /// Waits until a settlement has arrived; for ever when none is on its way. Cancel-safe.
    pub async fn arrived(&mut self) {
        if self.settling.next().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// Sends what waits when it is time; else gives the time at which it is due.
    pub fn settle(&mut self, waiting: &mut Settlement, is_urgent: bool) -> Option<Instant> {
        if waiting.is_empty() {
            return None;
        }
        let due = *self.due.get_or_insert_with(|| Instant::now() + SETTLE_TOGETHER);
        let is_urgent = is_urgent || self.shutdown.is_stopping();
        if !is_urgent && waiting.jobs.len() < SETTLE_AT_ONCE && Instant::now() < due {
            return Some(due);
        }
        self.due = None;
        let settlement = std::mem::take(waiting);
        let give_up = self.shutdown.hard().clone();
        let settled = publish::settle(self.bus.clone(), settlement, self.metrics.clone(), give_up);
        self.settling.push(Box::pin(settled));
        None
    }
}
