//! One computation in flight. Input: what was published, frames of workers, acknowledgements of the broker.
//! Output: what the frames mean, and the outcome for all who wait. Decides, does not talk.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use process::TraceContext;
use schemas::cache::CacheKey;
use schemas::error::Failure;
use schemas::ids::RequestId;
use schemas::reply::{Accepted, EmbedPart, Frame, ReplyFrame};
use schemas::vector::Vector;
use tokio::sync::Notify;

use crate::answer::Answer;

/// What all who wait are told.
pub type Outcome = Result<Arc<Answer>, Failure>;

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
    /// Identifies the answer.
    pub key: CacheKey,
    /// Whether identical requests may wait for this one.
    pub join: bool,
    /// Whether the answer may be kept.
    pub keep: bool,
    /// Inputs of the request; so many vectors make the answer whole.
    pub inputs: usize,
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
}

/// What has happened to a flight so far.
#[derive(Debug, Default)]
pub struct State {
    /// Latest delivery attempt seen; frames of older ones are fenced off.
    pub attempt: u32,
    next_sequence: u32,
    vectors: Vec<Vector>,
    /// Who works on it.
    pub accepted: Option<Accepted>,
    /// Where it lies in the queue, once the broker has said so.
    pub stream_sequence: Option<u64>,
    /// How often its work was published as a new message; part of the message id.
    pub edition: u32,
    /// When it was published last, monotonic microseconds.
    pub published_at_us: u64,
    /// The broker had no queue for it; it is published again until somebody makes one.
    pub homeless: bool,
    /// It was replaced in the queue because a worker fell silent that may have had it; done once, because the broker's
    /// count of deliveries begins anew with it.
    pub requeued: bool,
    /// Workers died of it or beside it in all attempts but the last, which it gets while no other suspect has one.
    pub suspect: bool,
}

/// Whether a publication may be a message that the queue has already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edition {
    /// The same message again: the queue drops it if it has it.
    Same,
    /// A new message, because the old one or its answer may be lost.
    New,
}

/// What a frame means for a flight.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Nothing to do.
    None,
    /// The answer is whole.
    Answered {
        /// One vector per input.
        vectors: Vec<Vector>,
        /// Tokens in.
        input_tokens: u64,
    },
    /// It failed for good.
    Failed(Failure),
    /// A frame was lost; it must be computed again.
    Lost,
}

impl Flight {
    /// A flight with its first waiter.
    #[must_use]
    pub fn new(order: Order) -> Arc<Self> {
        Arc::new(Self {
            order,
            outcome: OnceLock::new(),
            told: Notify::new(),
            waiters: AtomicUsize::new(0),
            state: Mutex::default(),
        })
    }

    /// What has happened so far.
    pub fn state(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is whole before the next statement can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all who wait; only the first call counts.
    pub fn complete(&self, outcome: Outcome) -> bool {
        let first = self.outcome.set(outcome).is_ok();
        if first {
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

impl State {
    /// Takes a frame in.
    pub fn on_frame(&mut self, frame: ReplyFrame, inputs: usize) -> Effect {
        if frame.attempt < self.attempt {
            return Effect::None; // A worker that was given up is still talking.
        }
        // A first frame begins an answer anew: of a later attempt, or of the same work published again after the
        // broker lost its memory, when attempts count from 1 again and the first worker may still be talking.
        if frame.attempt > self.attempt || frame.sequence == 0 {
            self.begin(frame.attempt);
        }
        if frame.sequence != self.next_sequence {
            return Effect::Lost;
        }
        self.next_sequence += 1;
        self.homeless = false;
        match frame.frame {
            Frame::Accepted(accepted) => {
                self.accepted = Some(accepted);
                Effect::None
            }
            Frame::Part(part) => self.take(part),
            Frame::Failed(failure) => Effect::Failed(failure),
            Frame::Done(done) => match self.take(done.embed) {
                Effect::None if self.vectors.len() == inputs => Effect::Answered {
                    vectors: std::mem::take(&mut self.vectors),
                    input_tokens: done.usage.input_tokens,
                },
                _ => Effect::Lost,
            },
        }
    }

    fn take(&mut self, part: EmbedPart) -> Effect {
        if part.first as usize != self.vectors.len() {
            return Effect::Lost;
        }
        self.vectors.extend(part.vectors);
        Effect::None
    }

    fn begin(&mut self, attempt: u32) {
        self.attempt = attempt;
        self.next_sequence = 0;
        self.vectors.clear();
        self.accepted = None;
    }

    /// Notes a publication: a new message, or the same again, which the queue takes only if it does not have it.
    /// Frames of the message before still count: its worker may finish first.
    pub fn on_published(&mut self, edition: Edition, now_us: u64) {
        if edition == Edition::New || self.edition == 0 {
            self.edition += 1;
            self.stream_sequence = None;
            // Whoever had the message before may never answer: only what is heard of the new one counts.
            self.accepted = None;
            // The broker counts deliveries of the new message from 1.
            self.attempt = self.attempt.min(1);
        }
        self.published_at_us = now_us;
        self.homeless = false;
    }
}

#[cfg(test)]
mod tests {
    use schemas::error::ErrorCode;
    use schemas::reply::{Done, Usage};

    use super::*;

    fn frame(attempt: u32, sequence: u32, frame: Frame) -> ReplyFrame {
        ReplyFrame {
            request_id: RequestId::from_bytes([1; 16]),
            attempt,
            sequence,
            frame,
        }
    }

    fn accepted() -> Frame {
        Frame::Accepted(Accepted {
            worker: "w".to_owned(),
            ack_subject: "a".to_owned(),
        })
    }

    fn part(first: u32, values: &[f32]) -> EmbedPart {
        EmbedPart {
            first,
            vectors: values.iter().map(|value| Vector(vec![*value])).collect(),
        }
    }

    fn done(first: u32, values: &[f32]) -> Frame {
        Frame::Done(Done {
            embed: part(first, values),
            usage: Usage {
                input_tokens: 9,
                ..Usage::default()
            },
        })
    }

    fn answered(values: &[f32]) -> Effect {
        Effect::Answered {
            vectors: part(0, values).vectors,
            input_tokens: 9,
        }
    }

    #[test]
    fn parts_make_a_whole_answer() {
        let mut state = State::default();
        assert_eq!(state.on_frame(frame(1, 0, accepted()), 3), Effect::None);
        assert_eq!(
            state.on_frame(frame(1, 1, Frame::Part(part(0, &[1.0]))), 3),
            Effect::None
        );
        assert_eq!(
            state.on_frame(frame(1, 2, done(1, &[2.0, 3.0])), 3),
            answered(&[1.0, 2.0, 3.0])
        );
    }

    #[test]
    fn a_gap_or_a_short_answer_is_lost() {
        let mut state = State::default();
        assert_eq!(state.on_frame(frame(1, 0, accepted()), 1), Effect::None);
        assert_eq!(state.on_frame(frame(1, 2, done(0, &[1.0])), 1), Effect::Lost);
        let mut state = State::default();
        assert_eq!(state.on_frame(frame(1, 0, done(0, &[1.0])), 2), Effect::Lost);
        let mut state = State::default();
        assert_eq!(
            state.on_frame(frame(1, 0, Frame::Part(part(1, &[1.0]))), 2),
            Effect::Lost
        );
    }

    #[test]
    fn a_newer_attempt_starts_over_and_fences_the_older_off() {
        let mut state = State::default();
        state.on_frame(frame(1, 0, Frame::Part(part(0, &[1.0]))), 2);
        assert_eq!(
            state.on_frame(frame(2, 0, Frame::Part(part(0, &[7.0]))), 2),
            Effect::None
        );
        assert_eq!(
            state.on_frame(frame(1, 1, done(1, &[2.0])), 2),
            Effect::None,
            "late result of the first worker"
        );
        assert_eq!(state.on_frame(frame(2, 1, done(1, &[8.0])), 2), answered(&[7.0, 8.0]));
    }

    #[test]
    fn work_published_again_is_answered_by_whoever_finishes() {
        let mut state = State::default();
        state.on_published(Edition::Same, 1);
        state.on_frame(frame(1, 0, accepted()), 1);
        state.on_published(Edition::New, 2);
        assert_eq!(
            state.accepted, None,
            "a worker that has lost the message is not waited for"
        );
        assert_eq!(
            state.on_frame(frame(1, 1, done(0, &[1.0])), 1),
            answered(&[1.0]),
            "the first worker lives"
        );
        let mut state = State::default();
        state.on_frame(frame(3, 0, Frame::Part(part(0, &[1.0]))), 2);
        state.on_published(Edition::New, 2);
        state.on_frame(frame(1, 0, accepted()), 2);
        assert_eq!(
            state.on_frame(frame(1, 1, done(0, &[5.0, 6.0])), 2),
            answered(&[5.0, 6.0]),
            "it died"
        );
    }

    #[tokio::test]
    async fn the_first_outcome_counts_and_the_last_waiter_is_known() {
        let order = Order {
            request_id: RequestId::new(),
            model: String::new(),
            slug: String::new(),
            subject: String::new(),
            payload: Bytes::new(),
            identity: String::new(),
            trace: TraceContext::new_root(),
            deadline_ms: 0,
            key: CacheKey {
                tenant: String::new(),
                digest: serde_bytes::ByteBuf::new(),
            },
            join: true,
            keep: false,
            inputs: 1,
        };
        let flight = Flight::new(order);
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
}
