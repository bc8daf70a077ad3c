//! One answer as it grows: input: its tokens one by one, output: the text that may be given out, and when and why it is over.
//!
//! What it gives is a function of the tokens alone, so that going through the same tokens again leads to the same state.

use crate::generate::detokenize::Detokenizer;
use crate::generate::stop::StopMatcher;
use crate::generate::tool_calls::{ToolCall, ToolReader};

/// Why an answer is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// An end token, a stop string, or the end of the grammar.
    Stop,
    /// The same after functions were called.
    ToolCalls,
    /// The most tokens that were asked for, or the end of the context.
    Length,
    /// No allowed token has a finite logit: the model's numbers are broken, or the request forbids every token.
    NoToken,
    /// The grammar is too complex to be followed further.
    ConstraintFailed,
}

/// What ends an answer.
#[derive(Debug)]
pub(super) struct Ending<'a> {
    /// Stop strings.
    pub(super) stop: &'a [String],
    /// Tokens that end it; their text is not given out.
    pub(super) tokens: Vec<u32>,
    /// Stop strings count only behind so many tokens.
    pub(super) min_tokens: u32,
    /// At least 1.
    pub(super) max_tokens: u32,
}

/// What a token brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) text: String,
    pub(super) calls: Vec<ToolCall>,
    pub(super) finish: Option<FinishReason>,
}

#[derive(Debug)]
pub(super) struct Answer {
    detokenizer: Detokenizer,
    stops: StopMatcher,
    reader: Option<ToolReader>,
    ends: Vec<u32>,
    min_tokens: u32,
    max_tokens: u32,
    tokens: u32,
}

impl Answer {
    pub(super) fn new(detokenizer: Detokenizer, ending: Ending<'_>, reader: Option<ToolReader>) -> Self {
        Self {
            detokenizer,
            stops: StopMatcher::new(ending.stop),
            reader,
            ends: ending.tokens,
            min_tokens: ending.min_tokens,
            max_tokens: ending.max_tokens,
            tokens: 0,
        }
    }

    /// Tokens taken.
    pub(super) fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Whether the next token may be an end token.
    pub(super) fn may_end(&self) -> bool {
        self.tokens >= self.min_tokens
    }

    /// Takes the next token; `is_complete`: by the grammar nothing follows it.
    pub(super) fn take(&mut self, token: u32, is_complete: bool) -> Taken {
        self.tokens += 1;
        if self.ends.contains(&token) {
            return self.end(String::new(), FinishReason::Stop);
        }
        let piece = self.detokenizer.push(token);
        let text = if self.tokens <= self.min_tokens {
            // Nothing is held back yet, so the order is kept.
            piece.to_owned()
        } else {
            let emit = self.stops.push(piece);
            if emit.stopped.is_some() {
                return self.read(&emit.text, Some(FinishReason::Stop));
            }
            emit.text
        };
        if is_complete {
            return self.end(text, FinishReason::Stop);
        }
        if self.tokens >= self.max_tokens {
            return self.end(text, FinishReason::Length);
        }
        self.read(&text, None)
    }

    /// Ends without a further token; gives what was held back.
    pub(super) fn give_up(&mut self) -> String {
        self.end(String::new(), FinishReason::NoToken).text
    }

    /// Adds what was held back: a cut character, and what was no stop string after all.
    fn end(&mut self, mut text: String, reason: FinishReason) -> Taken {
        let last = self.stops.push(self.detokenizer.finish());
        text.push_str(&last.text);
        text.push_str(&self.stops.finish());
        let finish = match last.stopped {
            Some(_) => FinishReason::Stop,
            None => reason,
        };
        self.read(&text, Some(finish))
    }

    /// Reads calls out of the text.
    fn read(&mut self, text: &str, finish: Option<FinishReason>) -> Taken {
        let Some(reader) = &mut self.reader else {
            return Taken {
                text: text.to_owned(),
                calls: Vec::new(),
                finish,
            };
        };
        let mut read = reader.push(text);
        if finish.is_some() {
            let last = reader.finish();
            read.text.push_str(&last.text);
            read.calls.extend(last.calls);
        }
        let finish = match finish {
            None => read.is_over.then_some(FinishReason::ToolCalls),
            Some(FinishReason::Stop) if reader.has_called() => Some(FinishReason::ToolCalls),
            other => other,
        };
        Taken {
            text: read.text,
            calls: read.calls,
            finish,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::generator::toy;

    fn answer(stop: &[&str], min_tokens: u32, max_tokens: u32) -> Answer {
        let stop: Vec<String> = stop.iter().map(|stop| (*stop).to_owned()).collect();
        let ending = Ending {
            stop: &stop,
            tokens: vec![toy::EOS],
            min_tokens,
            max_tokens,
        };
        Answer::new(toy::detokenizer(), ending, None)
    }

    fn run(mut answer: Answer, pieces: &[&str]) -> (Vec<String>, Option<FinishReason>) {
        let mut texts = Vec::new();
        for piece in pieces {
            let taken = answer.take(toy::id(piece), false);
            texts.push(taken.text);
            if taken.finish.is_some() {
                return (texts, taken.finish);
            }
        }
        (texts, None)
    }

    #[test]
    fn held_back_text_comes_with_the_end() {
        let by_end = run(answer(&["END"], 0, 9), &["a", "E", "N", "</s>"]);
        assert_eq!(
            by_end,
            (
                vec!["a".into(), "".into(), "".into(), "EN".into()],
                Some(FinishReason::Stop)
            )
        );
        let by_length = run(answer(&["END"], 0, 3), &["a", "E", "N"]);
        assert_eq!(
            by_length,
            (vec!["a".into(), "".into(), "EN".into()], Some(FinishReason::Length))
        );
        let by_stop = run(answer(&["END"], 0, 3), &["aE", "N", "D"]);
        assert_eq!(
            by_stop,
            (vec!["a".into(), "".into(), "".into()], Some(FinishReason::Stop))
        );
    }

    #[test]
    fn a_cut_character_is_replaced_at_the_end() {
        let cut = run(answer(&[], 0, 3), &["a", "<0xE2>", "<0x82>"]);
        assert_eq!(
            cut,
            (
                vec!["a".into(), "".into(), "\u{fffd}".into()],
                Some(FinishReason::Length)
            )
        );
        let whole = run(answer(&[], 0, 3), &["<0xE2>", "<0x82>", "<0xAC>"]);
        assert_eq!(
            whole,
            (vec!["".into(), "".into(), "€".into()], Some(FinishReason::Length))
        );
        let stopped = run(answer(&["\u{fffd}"], 0, 2), &["a", "<0xE2>"]);
        assert_eq!(stopped, (vec!["a".into(), "".into()], Some(FinishReason::Stop)));
    }

    #[test]
    fn stop_strings_count_behind_the_least_tokens() {
        let (texts, finish) = run(answer(&["b"], 2, 9), &["a", "b", "a", "b"]);
        assert_eq!((texts.concat().as_str(), finish), ("aba", Some(FinishReason::Stop)));
    }
}
