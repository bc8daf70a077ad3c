//! What has happened to a computation in flight. Input: publications, frames of workers. Output: what each frame means.
//! Pure.
//!
//! Attempts fence workers off. The vectors or scores of a request may come from whoever finishes first, so a message published again
//! is counted from 1 like the one before. Text may already be with a reader, so its attempts count on over messages: what is
//! heard of a worker that was given up is dropped, and its successor goes on where it stopped.

use schemas::error::{ErrorCode, Failure};
use schemas::generate::{Resume, TextPart};
use schemas::reply::{Accepted, Frame, ReplyFrame, Usage};

use crate::received::{Content, Received, Refused, Wanted};

/// Texts that were interrupted more often are given up: something is broken that will not mend.
const MAX_INTERRUPTIONS: u32 = 8;

/// What has happened to a flight so far.
#[derive(Debug)]
pub struct State {
    /// Latest delivery attempt seen; frames of older ones are fenced off.
    pub attempt: u32,
    /// Of text: attempts up to this one belong to messages that were replaced.
    attempts_before: u32,
    next_sequence: u32,
    received: Received,
    interruptions: u32,
    /// Workers that went silent with it in their hands.
    pub lost_workers: u32,
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
        /// The answer.
        content: Content,
        /// What it took.
        usage: Usage,
    },
    /// It failed for good.
    Failed(Failure),
    /// A frame was lost; it must be computed again.
    Lost,
}

/// What is different in a message that goes on from an earlier one.
#[derive(Debug, PartialEq, Eq)]
pub struct Continuation {
    /// Attempts under earlier messages.
    pub attempts_before: u32,
    /// Where each choice goes on.
    pub resume: Vec<Resume>,
}

impl State {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(wanted: Wanted, streamed: bool) -> Self {
        Self {
            attempt: 0,
            attempts_before: 0,
            next_sequence: 0,
            received: Received::new(wanted, streamed),
            interruptions: 0,
            lost_workers: 0,
            accepted: None,
            stream_sequence: None,
            edition: 0,
            published_at_us: 0,
            homeless: false,
            requeued: false,
            suspect: false,
        }
    }

    /// Takes a frame in.
    pub fn on_frame(&mut self, frame: ReplyFrame) -> Effect {
        if frame.attempt < self.attempt || frame.attempt <= self.attempts_before {
            return Effect::None; // A worker that was given up is still talking.
        }
        // A first frame begins an answer anew: of a later attempt, or of the same work published again after the
        // broker lost its memory, when attempts count from 1 again and the first worker may still be talking.
        if frame.attempt > self.attempt || frame.sequence == 0 {
            self.begin(frame.attempt);
        }
        if frame.sequence != self.next_sequence {
            return self.interrupted();
        }
        self.next_sequence += 1;
        self.homeless = false;
        let taken = match frame.frame {
            Frame::Accepted(accepted) => {
                self.accepted = Some(accepted);
                Ok(())
            }
            Frame::Part(part) => self.received.take_vectors(part),
            Frame::Text(parts) => self.received.take_text(parts),
            Frame::Failed(failure) => return Effect::Failed(failure),
            Frame::Done(done) => {
                let usage = done.usage;
                match self.received.take_end(done) {
                    Ok(content) => return Effect::Answered { content, usage },
                    Err(refused) => Err(refused),
                }
            }
        };
        match taken {
            Ok(()) => Effect::None,
            Err(Refused::Gap) => self.interrupted(),
            Err(Refused::Broken(failure)) => Effect::Failed(failure),
        }
    }

    fn interrupted(&mut self) -> Effect {
        self.interruptions += 1;
        let text = matches!(self.received, Received::Text(_));
        if text && self.interruptions > MAX_INTERRUPTIONS {
            let message = "the answer was interrupted again and again; try again";
            return Effect::Failed(Failure::new(ErrorCode::Internal, message));
        }
        Effect::Lost
    }

    fn begin(&mut self, attempt: u32) {
        self.attempt = attempt;
        self.next_sequence = 0;
        self.received.begin();
        self.accepted = None;
    }

    /// Text that whoever reads along has not been given yet.
    pub fn take_fresh(&mut self) -> Vec<TextPart> {
        match &mut self.received {
            Received::Vectors { .. } | Received::Scores { .. } => Vec::new(),
            Received::Text(log) => log.take_fresh(),
        }
    }

    /// Whether text is there that another worker shall go on from.
    #[must_use]
    pub fn has_text(&self) -> bool {
        matches!(&self.received, Received::Text(log) if log.has_begun())
    }

    /// Whether nothing was heard of the present message.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        self.attempt <= self.attempts_before
    }

    /// How many workers have had it, the present one included; for text over all messages.
    #[must_use]
    pub fn trials(&self) -> u32 {
        match self.received {
            Received::Vectors { .. } | Received::Scores { .. } => self.attempt,
            Received::Text(_) => self.lost_workers + 1,
        }
    }

    /// Notes a publication: a new message, or the same again, which the queue takes only if it does not have it.
    /// Frames with vectors of the message before still count: its worker may finish first.
    pub fn on_published(&mut self, edition: Edition, now_us: u64) {
        if edition == Edition::New || self.edition == 0 {
            self.edition += 1;
            self.stream_sequence = None;
            // Whoever had the message before may never answer: only what is heard of the new one counts.
            self.accepted = None;
            match &mut self.received {
                // The broker counts deliveries of the new message from 1.
                Received::Vectors { .. } | Received::Scores { .. } => self.attempt = self.attempt.min(1),
                Received::Text(log) if self.edition > 1 => {
                    // Above all that the copies before may still say, heard of or not.
                    self.attempts_before = self.attempt.max(self.attempts_before + 1);
                    log.resume_here();
                }
                Received::Text(_) => {}
            }
        }
        self.published_at_us = now_us;
        self.homeless = false;
    }

    /// What the present message says besides the order's, if it is not the first.
    #[must_use]
    pub fn continuation(&self) -> Option<Continuation> {
        match &self.received {
            Received::Text(log) if self.edition > 1 => Some(Continuation {
                attempts_before: self.attempts_before,
                resume: log.resume(),
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::generate::FinishReason;
    use schemas::ids::RequestId;
    use schemas::reply::{Done, EmbedPart};
    use schemas::vector::Vector;

    use super::*;

    fn vectors(wanted: usize) -> State {
        State::new(Wanted::Vectors(wanted), false)
    }

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

    fn usage() -> Usage {
        Usage {
            input_tokens: 9,
            ..Usage::default()
        }
    }

    fn done(first: u32, values: &[f32]) -> Frame {
        Frame::Done(Done {
            embed: part(first, values),
            usage: usage(),
            ..Done::default()
        })
    }

    fn answered(values: &[f32]) -> Effect {
        Effect::Answered {
            content: Content::Vectors(part(0, values).vectors),
            usage: usage(),
        }
    }

    fn words(text: &str, tokens: &[u32]) -> TextPart {
        TextPart {
            text: text.to_owned(),
            tokens: tokens.to_vec(),
            ..TextPart::default()
        }
    }

    fn text_done(text: &str, tokens: &[u32]) -> Frame {
        let last = TextPart {
            finish: Some(FinishReason::Stop),
            ..words(text, tokens)
        };
        Frame::Done(Done {
            text: vec![last],
            usage: usage(),
            ..Done::default()
        })
    }

    fn heard(state: &mut State) -> String {
        state.take_fresh().into_iter().map(|part| part.text).collect()
    }

    #[test]
    fn parts_make_a_whole_answer() {
        let mut state = vectors(3);
        assert_eq!(state.on_frame(frame(1, 0, accepted())), Effect::None);
        assert_eq!(state.on_frame(frame(1, 1, Frame::Part(part(0, &[1.0])))), Effect::None);
        assert_eq!(
            state.on_frame(frame(1, 2, done(1, &[2.0, 3.0]))),
            answered(&[1.0, 2.0, 3.0])
        );
    }

    #[test]
    fn a_gap_or_a_short_answer_is_lost_and_another_kind_of_answer_is_a_fault() {
        let mut state = vectors(1);
        assert_eq!(state.on_frame(frame(1, 0, accepted())), Effect::None);
        assert_eq!(state.on_frame(frame(1, 2, done(0, &[1.0]))), Effect::Lost);
        assert_eq!(vectors(2).on_frame(frame(1, 0, done(0, &[1.0]))), Effect::Lost);
        let late = Frame::Part(part(1, &[1.0]));
        assert_eq!(vectors(2).on_frame(frame(1, 0, late)), Effect::Lost);
        let text = Frame::Text(vec![words("a", &[1])]);
        assert!(matches!(vectors(1).on_frame(frame(1, 0, text)), Effect::Failed(_)));
        let mut state = State::new(Wanted::Text(1), false);
        assert!(matches!(
            state.on_frame(frame(1, 0, done(0, &[1.0]))),
            Effect::Failed(_)
        ));
    }

    #[test]
    fn scores_come_whole_or_not_at_all() {
        let scored = |scores: &[f32]| {
            Frame::Done(Done {
                scores: scores.to_vec(),
                usage: usage(),
                ..Done::default()
            })
        };
        let state = || State::new(Wanted::Scores(2), false);
        let answered = Effect::Answered {
            content: Content::Scores(vec![0.5, -2.0]),
            usage: usage(),
        };
        assert_eq!(state().on_frame(frame(1, 0, scored(&[0.5, -2.0]))), answered);
        assert_eq!(state().on_frame(frame(1, 0, scored(&[0.5]))), Effect::Lost);
        assert!(matches!(
            state().on_frame(frame(1, 0, done(0, &[1.0]))),
            Effect::Failed(_)
        ));
        assert!(matches!(
            vectors(1).on_frame(frame(1, 0, scored(&[0.5]))),
            Effect::Failed(_)
        ));
    }

    #[test]
    fn a_newer_attempt_starts_over_and_fences_the_older_off() {
        let mut state = vectors(2);
        state.on_frame(frame(1, 0, Frame::Part(part(0, &[1.0]))));
        assert_eq!(state.on_frame(frame(2, 0, Frame::Part(part(0, &[7.0])))), Effect::None);
        assert_eq!(
            state.on_frame(frame(1, 1, done(1, &[2.0]))),
            Effect::None,
            "late result of the first worker"
        );
        assert_eq!(state.on_frame(frame(2, 1, done(1, &[8.0]))), answered(&[7.0, 8.0]));
    }

    #[test]
    fn work_published_again_is_answered_by_whoever_finishes() {
        let mut state = vectors(1);
        state.on_published(Edition::Same, 1);
        state.on_frame(frame(1, 0, accepted()));
        state.on_published(Edition::New, 2);
        assert_eq!(
            state.accepted, None,
            "a worker that has lost the message is not waited for"
        );
        assert_eq!(
            state.on_frame(frame(1, 1, done(0, &[1.0]))),
            answered(&[1.0]),
            "the first worker lives"
        );
        let mut state = vectors(2);
        state.on_frame(frame(3, 0, Frame::Part(part(0, &[1.0]))));
        state.on_published(Edition::New, 2);
        state.on_frame(frame(1, 0, accepted()));
        assert_eq!(
            state.on_frame(frame(1, 1, done(0, &[5.0, 6.0]))),
            answered(&[5.0, 6.0]),
            "it died"
        );
    }

    #[test]
    fn text_goes_on_at_another_worker_and_the_first_is_not_heard_any_more() {
        let mut state = State::new(Wanted::Text(1), true);
        state.on_published(Edition::New, 1);
        assert_eq!(state.continuation(), None);
        state.on_frame(frame(1, 0, accepted()));
        state.on_frame(frame(1, 1, Frame::Text(vec![words("a", &[1])])));
        assert!(state.has_text() && !state.is_untouched());
        state.on_published(Edition::New, 2);
        assert!(state.is_untouched());
        let resume = Resume {
            choice: 0,
            tokens: vec![1],
            finish: None,
        };
        let expected = Continuation {
            attempts_before: 1,
            resume: vec![resume],
        };
        assert_eq!(state.continuation(), Some(expected));
        let late = Frame::Text(vec![words("x", &[9])]);
        assert_eq!(state.on_frame(frame(1, 2, late)), Effect::None);
        state.on_frame(frame(2, 0, accepted()));
        state.on_frame(frame(2, 1, Frame::Text(vec![words("b", &[2])])));
        assert_eq!(heard(&mut state), "ab");
        assert!(matches!(
            state.on_frame(frame(2, 2, text_done("c", &[3]))),
            Effect::Answered { .. }
        ));
        assert_eq!(heard(&mut state), "c");
    }

    #[test]
    fn the_same_message_delivered_again_is_heard_once_and_another_text_interrupts() {
        let mut state = State::new(Wanted::Text(1), true);
        state.on_published(Edition::New, 1);
        state.on_frame(frame(1, 0, Frame::Text(vec![words("ab", &[1, 2])])));
        state.on_frame(frame(2, 0, Frame::Text(vec![words("a", &[1])])));
        state.on_frame(frame(2, 1, Frame::Text(vec![words("bc", &[2, 3])])));
        assert_eq!(heard(&mut state), "abc");
        let other = Frame::Text(vec![words("x", &[9])]);
        assert_eq!(state.on_frame(frame(3, 0, other)), Effect::Lost);
        assert_eq!(heard(&mut state), "");
    }

    #[test]
    fn text_that_is_interrupted_for_ever_is_given_up() {
        let mut state = State::new(Wanted::Text(1), true);
        state.on_published(Edition::New, 1);
        for _ in 0..MAX_INTERRUPTIONS {
            let attempt = state.attempts_before + 1;
            assert_eq!(state.on_frame(frame(attempt, 5, accepted())), Effect::Lost);
            assert_eq!(state.on_frame(frame(attempt - 1, 6, accepted())), Effect::None);
            state.on_published(Edition::New, 2);
        }
        let attempt = state.attempts_before + 1;
        assert!(matches!(
            state.on_frame(frame(attempt, 5, accepted())),
            Effect::Failed(_)
        ));
    }
}
