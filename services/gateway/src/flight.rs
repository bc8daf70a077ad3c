//! One computation in flight. Input: what was published, frames of workers, acknowledgements of the broker.
//! Output: what the frames mean, and the outcome for all who wait. Decides, does not talk.
//!
//! A streamed flight has one reader. What it has not taken yet waits in a queue of bounded length, filled without waiting:
//! whoever reads too slowly for it ends their own flight and holds nobody else up.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use process::TraceContext;
use schemas::cache::CacheKey;
use schemas::error::Failure;
use schemas::generate::TextPart;
use schemas::ids::RequestId;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};

use crate::answer::Answer;
use crate::progress::State;
use crate::received::Wanted;

/// What all who wait are told.
pub type Outcome = Result<Arc<Answer>, Failure>;

/// New text of a flight, as its reader takes it; ends when the flight is over.
pub type Reader = mpsc::Receiver<Vec<TextPart>>;

/// What is published, kept until the answer so that it can be published again.
#[derive(Debug)]
pub struct Order {
    /// Who asked what.
    pub request_id: RequestId,
    /// The model's true name.
    pub model: String,
    /// Its token in subjects.
    pub slug: String,
    /// Where it is queued.
    pub subject: String,
    /// The encoded work.
    pub payload: Bytes,
    /// The caller's signed identity.
    pub identity: String,
    /// Its trace.
    pub trace: TraceContext,
    /// When nobody waits any more, Unix milliseconds.
    pub deadline_ms: u64,
    /// Identifies the answer, if it would be the same again.
    pub key: Option<CacheKey>,
    /// Whether identical requests may wait for this one.
    pub join: bool,
    /// Whether the answer may be kept.
    pub keep: bool,
    /// What makes the answer whole.
    pub wanted: Wanted,
}

/// A computation that some callers wait for.
#[derive(Debug)]
pub struct Flight {
    /// What is published.
    pub order: Order,
    outcome: OnceLock<Outcome>,
    told: Notify,
    waiters: AtomicUsize,
    state: Mutex<State>,
    reader: Mutex<Option<mpsc::Sender<Vec<TextPart>>>>,
}

impl Flight {
    /// A flight without waiters yet.
    #[must_use]
    pub fn new(order: Order) -> Arc<Self> {
        Self::with_reader(order, None)
    }

    /// A flight whose text is read along, with room for so many frames that were not read yet.
    #[must_use]
    pub fn streamed(order: Order, max_unread_frames: usize) -> (Arc<Self>, Reader) {
        let (sender, reader) = mpsc::channel(max_unread_frames.max(1));
        (Self::with_reader(order, Some(sender)), reader)
    }

    fn with_reader(order: Order, reader: Option<mpsc::Sender<Vec<TextPart>>>) -> Arc<Self> {
        let state = State::new(order.wanted, reader.is_some());
        Arc::new(Self {
            order,
            outcome: OnceLock::new(),
            told: Notify::new(),
            waiters: AtomicUsize::new(0),
            state: Mutex::new(state),
            reader: Mutex::new(reader),
        })
    }

    /// What has happened so far.
    pub fn state(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is whole before the next statement can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes new text on to whoever reads along, without waiting; `false` when too much is unread already.
    #[must_use]
    pub fn pass_on(&self, parts: Vec<TextPart>) -> bool {
        if parts.is_empty() {
            return true;
        }
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        // A reader that is gone has left its flight or is about to.
        !reader
            .as_ref()
            .is_some_and(|reader| matches!(reader.try_send(parts), Err(TrySendError::Full(_))))
    }

    /// Tells all who wait; only the first call counts. A reader finds the outcome when its queue ends.
    pub fn complete(&self, outcome: Outcome) -> bool {
        let first = self.outcome.set(outcome).is_ok();
        if first {
            drop(self.reader.lock().unwrap_or_else(PoisonError::into_inner).take());
            self.told.notify_waiters();
        }
        first
    }

    /// Whether all who wait were told.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.outcome.get().is_some()
    }

    /// One more waiter; `false` when the last has just left and the flight is being cancelled.
    pub fn join(&self) -> bool {
        let joined = self
            .waiters
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |waiters| {
                (waiters > 0).then_some(waiters + 1)
            });
        joined.is_ok()
    }

    /// The first waiter.
    pub fn board(&self) {
        self.waiters.store(1, Ordering::Release);
    }

    /// One waiter less; `true` when it was the last and nobody was told yet.
    pub fn leave(&self) -> bool {
        self.waiters.fetch_sub(1, Ordering::AcqRel) == 1 && !self.is_complete()
    }

    /// The outcome, if there is one.
    #[must_use]
    pub fn outcome_now(&self) -> Option<Outcome> {
        self.outcome.get().cloned()
    }

    /// The outcome, once there is one. Cancel-safe.
    pub async fn outcome(&self) -> Outcome {
        loop {
            // Made before the look, it hears of an outcome that comes between the two.
            let told = self.told.notified();
            if let Some(outcome) = self.outcome.get() {
                return outcome.clone();
            }
            told.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::error::ErrorCode;

    use super::*;

    fn order(wanted: Wanted) -> Order {
        Order {
            request_id: RequestId::new(),
            model: String::new(),
            slug: String::new(),
            subject: String::new(),
            payload: Bytes::new(),
            identity: String::new(),
            trace: TraceContext::new_root(),
            deadline_ms: 0,
            key: None,
            join: true,
            keep: false,
            wanted,
        }
    }

    #[tokio::test]
    async fn the_first_outcome_counts_and_the_last_waiter_is_known() {
        let flight = Flight::new(order(Wanted::Vectors(1)));
        assert!(!flight.join(), "nobody may join before the first");
        flight.board();
        assert!(flight.join());
        assert!(!flight.leave());
        assert!(flight.leave(), "the last to leave an unanswered flight cancels it");
        assert!(!flight.join());
        assert!(flight.complete(Err(Failure::new(ErrorCode::Internal, "a"))));
        assert!(!flight.complete(Err(Failure::new(ErrorCode::Internal, "b"))));
        assert_eq!(flight.outcome().await.unwrap_err().message, "a");
    }

    #[tokio::test]
    async fn a_reader_has_all_that_was_passed_on_before_the_end_and_too_much_is_told() {
        let (flight, mut reader) = Flight::streamed(order(Wanted::Text(1)), 2);
        let part = |text: &str| {
            vec![TextPart {
                text: text.to_owned(),
                ..TextPart::default()
            }]
        };
        assert!(flight.pass_on(part("a")) && flight.pass_on(part("b")));
        assert!(!flight.pass_on(part("c")), "two are unread");
        assert!(flight.pass_on(Vec::new()));
        flight.complete(Err(Failure::new(ErrorCode::Internal, "over")));
        assert_eq!(reader.recv().await.unwrap()[0].text, "a");
        assert_eq!(reader.recv().await.unwrap()[0].text, "b");
        assert!(reader.recv().await.is_none());
        assert_eq!(flight.outcome_now().unwrap().unwrap_err().message, "over");
    }
}
