//! The loop. Input: the COST stream, read by sequence without acks from the last booked message on. Output: every fact
//! booked once; how far the ledger reaches (`Progress`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bus::{Bus, JetStreamError, Reader, StreamInfo};
use process::{CancellationToken, Clock, Component};
use schemas::streams;
use tokio::time::Instant;

use crate::book::Booker;
use crate::collect::{Collected, unix_ms};
use crate::config::BookingConfig;
use crate::ledger::{Batch, Ledger, LedgerError, Position};
use crate::metrics::Metrics;

/// Messages taken from the reader at once; as many as it asks the broker for.
const MESSAGES_PER_READ: usize = 256;
/// Pause before a stream that could not be read is opened again.
const REOPEN_PAUSE: Duration = Duration::from_millis(500);
/// First pause after a failed transaction; it doubles up to [`MAX_BOOK_PAUSE`].
const BOOK_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between two attempts to write: a disk that has room again is noticed within it.
const MAX_BOOK_PAUSE: Duration = Duration::from_secs(5);

/// How far the ledger reaches; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    as_of_ms: Arc<AtomicU64>,
}

impl Progress {
    /// The ledger holds everything published before this, Unix milliseconds.
    #[must_use]
    pub fn as_of_ms(&self) -> u64 {
        self.as_of_ms.load(Ordering::Acquire)
    }

    fn advance(&self, to_ms: u64) {
        self.as_of_ms.fetch_max(to_ms, Ordering::AcqRel);
    }
}

/// Why reading was interrupted; it begins again by itself.
#[derive(Debug, thiserror::Error)]
enum Interrupted {
    #[error("stream cannot be read")]
    Stream(#[from] JetStreamError),
    #[error("ledger cannot be used")]
    Ledger(#[from] LedgerError),
}

/// What the loop works with.
pub struct Consumer {
    /// The broker.
    pub bus: Bus,
    /// The file; the loop owns it.
    pub ledger: Ledger,
    /// The prices.
    pub booker: Booker,
    /// What is counted.
    pub metrics: Metrics,
    /// How often is booked.
    pub options: BookingConfig,
    /// The time.
    pub clock: Clock,
    /// Ready while facts are read and booked.
    pub component: Component,
    /// How far the ledger reaches.
    pub progress: Progress,
}

impl Consumer {
    /// Reads and books until the stop; then books what it has and closes the file.
    ///
    /// # Errors
    /// When the file cannot be closed.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), LedgerError> {
        while !stop.is_cancelled() {
            let Err(error) = self.read(&stop).await else {
                continue;
            };
            tracing::warn!(
                error = format!("{:#}", anyhow::Error::from(error)),
                "reading costs interrupted"
            );
            self.component.set_unready("reading costs is interrupted");
            let mut connected = self.bus.connected();
            tokio::select! {
                () = stop.cancelled() => {}
                () = async {
                    tokio::time::sleep(REOPEN_PAUSE).await;
                    // An error means that the bus is closed; then the stop is near.
                    let _ = connected.wait_for(|up| *up).await;
                } => {}
            }
        }
        self.ledger.close().await
    }

    /// Reads until the stop, or until the stream has to be looked at anew.
    async fn read(&mut self, stop: &CancellationToken) -> Result<(), Interrupted> {
        // Noted before the stream is looked at, so that no loss of the connection goes unseen.
        let reconnects = self.bus.stats().reconnects;
        let mut position = self.open(stop).await?;
        let mut reader = self.bus.reader(&streams::cost().name, position.sequence);
        self.component.set_ready();
        let check_every = Duration::from_millis(self.options.check_ms);
        let mut check_at = Instant::now();
        if !self.check(&position).await? {
            return Ok(());
        }
        while !stop.is_cancelled() {
            let collected = self.collect(&mut reader, position.clone(), stop).await?;
            if self.bus.stats().reconnects != reconnects {
                // The broker may have come back with another stream: nothing of it counts before that is known.
                return Ok(());
            }
            let idle = collected.is_empty();
            if !idle {
                let Some(booked) = self.book(collected, stop).await else {
                    return Ok(());
                };
                position = booked;
            }
            if idle || Instant::now() >= check_at {
                check_at = Instant::now() + check_every;
                if !stop.is_cancelled() && !self.check(&position).await? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Makes sure that the stream is there and finds where to go on.
    async fn open(&mut self, stop: &CancellationToken) -> Result<Position, Interrupted> {
        let spec = streams::cost();
        self.bus.ensure_stream(&spec).await?;
        let info = self.bus.stream_info(&spec.name).await?;
        let booked = self.ledger.position().await?;
        let at_cursor_ms = match &booked {
            Some(position) if position.sequence > 0 => self.stored_at(position.sequence).await?,
            _ => None,
        };
        if let Some(position) = &booked {
            self.progress.advance(position.message_at_ms);
        }
        match resume(booked.as_ref(), &Seen::of(&info, at_cursor_ms)) {
            Resume::After(position) => Ok(position),
            Resume::StartOver(position) => {
                tracing::warn!(stream = spec.name, "the stream was replaced, reading it from its start");
                self.metrics.start_overs.inc();
                Ok(position)
            }
            Resume::Lost { position, messages } => {
                self.count_lost(messages);
                // Booked at once, so that the same loss is not counted again after a restart.
                let after_loss = Collected::after(position.clone());
                self.book(after_loss, stop).await;
                Ok(position)
            }
        }
    }

    async fn stored_at(&self, sequence: u64) -> Result<Option<u64>, JetStreamError> {
        match self.bus.get_message(&streams::cost().name, sequence).await {
            Ok(message) => Ok(message.time.map(unix_ms)),
            Err(JetStreamError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits for facts, then gathers until there are enough or the first has waited long enough.
    async fn collect(
        &mut self,
        reader: &mut Reader,
        position: Position,
        stop: &CancellationToken,
    ) -> Result<Collected, JetStreamError> {
        let mut collected = Collected::after(position);
        let mut wait = Duration::from_millis(self.options.check_ms);
        let mut ends_at = None;
        while collected.events() < self.options.max_events {
            let read = tokio::select! {
                biased;
                // What the reader had in hand is lost with it and stays in the stream; it is not used again.
                () = stop.cancelled() => break,
                read = reader.next_batch(MESSAGES_PER_READ, wait) => read,
            };
            match read {
                Ok(messages) => messages
                    .iter()
                    .for_each(|message| collected.take(&mut self.booker, message)),
                Err(error) if collected.is_empty() => return Err(error),
                // What was read is good; the error shows again.
                Err(_) => break,
            }
            if collected.is_empty() {
                break;
            }
            let max_delay = Duration::from_millis(self.options.max_delay_ms);
            let ends_at = *ends_at.get_or_insert_with(|| Instant::now() + max_delay);
            wait = ends_at.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                break;
            }
        }
        Ok(collected)
    }

    /// Books, trying again until it is done; `None` when the stop came first.
    async fn book(&mut self, collected: Collected, stop: &CancellationToken) -> Option<Position> {
        if collected.lost_messages() > 0 {
            self.count_lost(collected.lost_messages());
        }
        let batch = collected.into_batch(self.clock.now_unix_ms());
        let mut pause = BOOK_PAUSE;
        loop {
            let timer = self.metrics.booking_seconds.start_timer();
            match self.ledger.book(&batch).await {
                Ok(booked) => {
                    timer.observe_duration();
                    self.metrics.booked(&booked);
                    self.remember(&batch);
                    return Some(batch.position);
                }
                Err(error) => {
                    timer.stop_and_discard();
                    self.metrics.failures.inc();
                    let error = format!("{:#}", anyhow::Error::from(error));
                    tracing::error!(error, events = batch.entries.len(), "booking failed, trying again");
                    self.component.set_unready("the ledger cannot be written");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(MAX_BOOK_PAUSE),
            }
        }
    }

    fn remember(&self, batch: &Batch) {
        self.component.set_ready();
        self.metrics.batch_events.observe(batch.entries.len() as f64);
        for rejected in &batch.rejected {
            let reason = [rejected.reason];
            self.metrics.rejected.with_label_values(&reason).inc();
        }
        // One line per transaction and matter: a broken publisher must not fill the log too.
        if let Some(first) = batch.rejected.first() {
            let (subject, sequence, reason) = (&first.subject, first.sequence, first.reason);
            let (count, detail) = (batch.rejected.len(), &first.detail);
            tracing::warn!(subject, sequence, reason, detail, count, "costs rejected");
        }
        let mut unpriced = batch.entries.iter().filter(|(_, entry)| entry.unpriced);
        if let Some((_, first)) = unpriced.next() {
            let (model, device) = (&first.event.model, &first.event.device);
            tracing::warn!(
                model,
                device,
                count = unpriced.count() + 1,
                "no price, booked as unpriced"
            );
        }
        self.progress.advance(batch.position.message_at_ms);
    }

    /// Compares with the broker's figures; `false` when the stream has to be looked at anew.
    async fn check(&self, position: &Position) -> Result<bool, JetStreamError> {
        let asked_at_ms = self.clock.now_unix_ms();
        let info = self.bus.stream_info(&streams::cost().name).await?;
        let seen = Seen::of(&info, None);
        if seen.identity != position.identity || seen.last_sequence < position.sequence {
            return Ok(false);
        }
        let behind = seen.last_sequence - position.sequence;
        self.metrics.lag_messages.set(i64::try_from(behind).unwrap_or(i64::MAX));
        if behind == 0 {
            // Nothing more was stored before the question was asked.
            self.progress.advance(asked_at_ms);
        }
        Ok(seen.first_sequence <= position.sequence + 1)
    }

    fn count_lost(&self, messages: u64) {
        tracing::error!(
            messages,
            "cost messages left the stream before they were booked, their facts are lost"
        );
        self.metrics.lost_messages.inc_by(messages);
    }
}

/// What matters of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    identity: String,
    first_sequence: u64,
    last_sequence: u64,
    /// When the message was stored that stands where reading stopped.
    at_cursor_ms: Option<u64>,
}

impl Seen {
    fn of(info: &StreamInfo, at_cursor_ms: Option<u64>) -> Self {
        let created_ns = info
            .created_at
            .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        Self {
            identity: created_ns.map_or_else(String::new, |since| since.as_nanos().to_string()),
            first_sequence: info.first_sequence,
            last_sequence: info.last_sequence,
            at_cursor_ms,
        }
    }
}

/// Where to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Resume {
    /// After the last booked message.
    After(Position),
    /// From the start: the sequences mean something else now. What was booked is known by its ids.
    StartOver(Position),
    /// After messages that are gone.
    Lost { position: Position, messages: u64 },
}

fn resume(booked: Option<&Position>, seen: &Seen) -> Resume {
    let before_first = Position {
        identity: seen.identity.clone(),
        sequence: seen.first_sequence.saturating_sub(1),
        message_at_ms: 0,
    };
    let Some(booked) = booked else {
        return Resume::After(before_first);
    };
    // A broker that lost its last writes gives their sequences to other messages.
    let rewritten = seen.at_cursor_ms.is_some_and(|at_ms| at_ms != booked.message_at_ms);
    if booked.identity != seen.identity || seen.last_sequence < booked.sequence || rewritten {
        return Resume::StartOver(before_first);
    }
    let messages = before_first.sequence.saturating_sub(booked.sequence);
    if messages == 0 {
        return Resume::After(booked.clone());
    }
    let position = Position {
        message_at_ms: booked.message_at_ms,
        ..before_first
    };
    Resume::Lost { position, messages }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(identity: &str, sequence: u64, message_at_ms: u64) -> Position {
        Position {
            identity: identity.to_owned(),
            sequence,
            message_at_ms,
        }
    }

    fn seen(first_sequence: u64, last_sequence: u64, at_cursor_ms: Option<u64>) -> Seen {
        Seen {
            identity: "a".to_owned(),
            first_sequence,
            last_sequence,
            at_cursor_ms,
        }
    }

    #[test]
    fn reading_goes_on_where_it_stopped_or_says_why_not() {
        let booked = position("a", 7, 70);
        let cases = [
            (None, seen(0, 0, None), Resume::After(position("a", 0, 0))),
            (None, seen(5, 9, None), Resume::After(position("a", 4, 0))),
            (Some(&booked), seen(1, 9, Some(70)), Resume::After(booked.clone())),
            (Some(&booked), seen(8, 9, None), Resume::After(booked.clone())),
            (Some(&booked), seen(8, 7, None), Resume::After(booked.clone())),
            (Some(&booked), seen(1, 6, None), Resume::StartOver(position("a", 0, 0))),
            (
                Some(&booked),
                seen(1, 9, Some(71)),
                Resume::StartOver(position("a", 0, 0)),
            ),
            (
                Some(&booked),
                seen(10, 12, None),
                Resume::Lost {
                    position: position("a", 9, 70),
                    messages: 2,
                },
            ),
            (
                Some(&booked),
                seen(10, 9, None),
                Resume::Lost {
                    position: position("a", 9, 70),
                    messages: 2,
                },
            ),
        ];
        for (booked, seen, expected) in cases {
            assert_eq!(resume(booked, &seen), expected, "{booked:?} {seen:?}");
        }
        let replaced = position("b", 7, 70);
        assert_eq!(
            resume(Some(&replaced), &seen(1, 9, None)),
            Resume::StartOver(position("a", 0, 0))
        );
    }

    #[test]
    fn progress_never_goes_back() {
        let progress = Progress::default();
        progress.advance(5);
        progress.clone().advance(3);
        assert_eq!(progress.as_of_ms(), 5);
    }
}
