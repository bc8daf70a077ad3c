//! How the connection is. Input: the client's events. Output: a state to follow, counters, and the end of everything
//! that was in flight when the connection was lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use crate::pending::Pending;

/// What happened to the connection, for a service's metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BusEvent {
    /// Connected, the first time or again.
    Connected,
    /// The connection was lost.
    Disconnected,
    /// A message was dropped because a subscription was full.
    SlowConsumer,
    /// The server is going to stop.
    LameDuck,
    /// The server or client reports an error.
    Error(String),
}

/// Called for each event on the connection's own task: count and return.
pub type EventHook = Arc<dyn Fn(&BusEvent) + Send + Sync>;

/// Counters since the connection was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BusStats {
    /// Times it was connected again.
    pub reconnects: u64,
    /// Messages dropped because a subscription was full (at least; the client may report fewer).
    pub dropped: u64,
    /// Errors that the server reported.
    pub errors: u64,
    /// Requests in flight now.
    pub in_flight: usize,
    /// Answers that came after their request was given up.
    pub late_answers: u64,
}

/// State shared with the connection's callbacks.
pub(crate) struct Link {
    pub(crate) connected: watch::Sender<bool>,
    /// Counts losses of the connection: whoever holds server-side state compares it.
    pub(crate) epoch: watch::Sender<u64>,
    pub(crate) pending: Pending,
    reconnects: AtomicU64,
    dropped: AtomicU64,
    errors: AtomicU64,
    late_answers: AtomicU64,
    hook: Option<EventHook>,
}

impl Link {
    pub(crate) fn new(hook: Option<EventHook>) -> Self {
        Self {
            connected: watch::Sender::new(false),
            epoch: watch::Sender::new(0),
            pending: Pending::default(),
            reconnects: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            late_answers: AtomicU64::new(0),
            hook,
        }
    }

    pub(crate) fn stats(&self) -> BusStats {
        BusStats {
            reconnects: self.reconnects.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            in_flight: self.pending.in_flight(),
            late_answers: self.late_answers.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn on_late_answer(&self) {
        self.late_answers.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn on_event(&self, event: &async_nats::Event) {
        let event = match event {
            async_nats::Event::Connected => {
                self.on_connected();
                BusEvent::Connected
            }
            async_nats::Event::Disconnected | async_nats::Event::Closed => {
                self.on_disconnected();
                BusEvent::Disconnected
            }
            async_nats::Event::SlowConsumer(_) => {
                // The first of a burst is worth a line, the others are counted.
                if self.dropped.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::warn!("a subscription is full, messages are dropped");
                }
                BusEvent::SlowConsumer
            }
            async_nats::Event::LameDuckMode => {
                tracing::info!("nats-server is going to stop");
                BusEvent::LameDuck
            }
            async_nats::Event::Draining => return,
            other => {
                self.errors.fetch_add(1, Ordering::Relaxed);
                let text = other.to_string();
                tracing::warn!(error = %text, "bus error");
                BusEvent::Error(text)
            }
        };
        if let Some(hook) = &self.hook {
            hook(&event);
        }
    }

    pub(crate) fn on_connected(&self) {
        if *self.connected.borrow() {
            // The event of the loss was dropped: whoever waits for an answer from before must not wait on.
            self.lose();
        }
        if *self.epoch.borrow() > 0 {
            self.reconnects.fetch_add(1, Ordering::Relaxed);
            tracing::info!("connected to nats-server again");
        }
        self.connected.send_replace(true);
    }

    pub(crate) fn on_disconnected(&self) {
        if self.connected.send_replace(false) {
            tracing::warn!("connection to nats-server lost");
            self.lose();
        }
    }

    fn lose(&self) {
        self.epoch.send_modify(|epoch| *epoch += 1);
        self.pending.fail_all();
    }
}
