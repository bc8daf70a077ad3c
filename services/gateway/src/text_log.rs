//! The text of one request as it comes in. Input: parts of workers, in order, perhaps said again by another worker. Output:
//! what is new, each token and each character once; what a worker needs to go on after the last of them. Pure.
//!
//! A worker that has the work again, or has it with a [`Resume`], begins at the resume's tokens and says what follows. Where
//! that is known already it is compared and left out; where it differs, the answer is taken up from the known tokens anew,
//! because a reader cannot be told to forget.

use schemas::generate::{Echo, FinishReason, Resume, TextPart};

/// Most bytes of one answer, a bound on a worker that never ends: 128 choices of 8,192 tokens at 16 bytes each.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// All text of a request so far.
#[derive(Debug)]
pub struct TextLog {
    /// One part per choice, of everything received. Log probabilities are kept only when nobody reads along: a reader has
    /// them already, and no worker needs them to go on.
    choices: Vec<TextPart>,
    /// How far the choices were when the present message was published: whoever has it begins there.
    resumed: Vec<Mark>,
    /// How far the present worker is.
    at: Vec<Mark>,
    /// What nobody was given yet; stays empty when nobody reads along.
    fresh: Vec<TextPart>,
    streamed: bool,
    bytes: usize,
}

/// A place in a choice.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    tokens: usize,
    text_bytes: usize,
    calls: usize,
    finish: Option<FinishReason>,
}

/// Why a part cannot be taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It says something else than what is known.
    Differs,
    /// No worker in its right mind says so.
    Senseless(&'static str),
}

impl TextLog {
    /// Nothing yet, of so many choices.
    #[must_use]
    pub fn new(choices: u32, streamed: bool) -> Self {
        let empty = (0..choices).map(|choice| TextPart {
            choice,
            ..TextPart::default()
        });
        Self {
            choices: empty.collect(),
            resumed: vec![Mark::default(); choices as usize],
            at: vec![Mark::default(); choices as usize],
            fresh: Vec::new(),
            streamed,
            bytes: 0,
        }
    }

    /// Takes what a worker says next.
    ///
    /// # Errors
    /// [`Unfit`]; parts before the one at fault are taken.
    pub fn take(&mut self, parts: Vec<TextPart>) -> Result<(), Unfit> {
        for part in parts {
            if let Some(new) = self.take_one(part)?
                && self.streamed
            {
                self.fresh.push(new);
            }
        }
        Ok(())
    }

    /// Takes one part; gives what is new in it.
    fn take_one(&mut self, mut part: TextPart) -> Result<Option<TextPart>, Unfit> {
        let index = part.choice as usize;
        let (Some(known), Some(at)) = (self.choices.get_mut(index), self.at.get_mut(index)) else {
            return Err(Unfit::Senseless("a choice that nobody asked for"));
        };
        let tokens = shared(&known.tokens[at.tokens..], &part.tokens)?;
        let text_bytes = shared(&known.text.as_bytes()[at.text_bytes..], part.text.as_bytes())?;
        // Calls are counted, not compared: their ids are made up.
        let calls = part.tool_calls.len().min(known.tool_calls.len() - at.calls);
        let reached = Mark {
            tokens: at.tokens + part.tokens.len(),
            text_bytes: at.text_bytes + part.text.len(),
            calls: at.calls + part.tool_calls.len(),
            finish: None,
        };
        part.tokens.drain(..tokens);
        part.text.drain(..text_bytes);
        part.tool_calls.drain(..calls);
        part.logprobs.drain(..tokens.min(part.logprobs.len()));
        if known.echo.is_some() {
            part.echo = None;
        }
        let empty = part.text.is_empty() && part.tokens.is_empty() && part.tool_calls.is_empty() && part.echo.is_none();
        if known.finish.is_some() && !empty {
            return Err(Unfit::Differs);
        }
        self.bytes += part.weight_bytes();
        if self.bytes > MAX_ANSWER_BYTES {
            return Err(Unfit::Senseless("an answer without an end"));
        }
        *at = reached;
        if known.finish.is_some() {
            return Ok(None);
        }
        known.tokens.extend_from_slice(&part.tokens);
        known.text.push_str(&part.text);
        known.tool_calls.extend_from_slice(&part.tool_calls);
        known.finish = part.finish;
        if self.streamed {
            // Enough to know that the reader has it.
            known.echo = known.echo.take().or_else(|| part.echo.is_some().then(Echo::default));
        } else {
            known.echo = known.echo.take().or(part.echo.take());
            known.logprobs.append(&mut part.logprobs);
        }
        Ok((!empty || part.finish.is_some()).then_some(part))
    }

    /// What came since the last question, for whoever reads along.
    pub fn take_fresh(&mut self) -> Vec<TextPart> {
        std::mem::take(&mut self.fresh)
    }

    /// Whether anything was received that must not be said again.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.choices
            .iter()
            .any(|choice| !choice.tokens.is_empty() || choice.finish.is_some())
    }

    /// Whether every choice has ended.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.choices.iter().all(|choice| choice.finish.is_some())
    }

    /// All of it.
    pub fn finish(&mut self) -> Vec<TextPart> {
        std::mem::take(&mut self.choices)
    }

    /// A message is being published that goes on from here.
    pub fn resume_here(&mut self) {
        let mark = |choice: &TextPart| Mark {
            tokens: choice.tokens.len(),
            text_bytes: choice.text.len(),
            calls: choice.tool_calls.len(),
            finish: choice.finish,
        };
        self.resumed = self.choices.iter().map(mark).collect();
    }

    /// Somebody begins the present message.
    pub fn begin(&mut self) {
        self.at.clone_from(&self.resumed);
    }

    /// What a worker needs that has the present message.
    #[must_use]
    pub fn resume(&self) -> Vec<Resume> {
        let marked = self.choices.iter().zip(&self.resumed);
        marked
            .filter(|(_, mark)| mark.tokens > 0 || mark.finish.is_some())
            .map(|(choice, mark)| Resume {
                choice: choice.choice,
                tokens: choice.tokens[..mark.tokens].to_vec(),
                finish: mark.finish,
            })
            .collect()
    }
}

/// How much of `said` is known already; what is must be the same.
fn shared<T: PartialEq>(known: &[T], said: &[T]) -> Result<usize, Unfit> {
    let count = known.len().min(said.len());
    if known[..count] == said[..count] {
        Ok(count)
    } else {
        Err(Unfit::Differs)
    }
}

#[cfg(test)]
mod tests {
    use schemas::generate::ToolCall;

    use super::*;

    fn part(choice: u32, text: &str, tokens: &[u32]) -> TextPart {
        TextPart {
            choice,
            text: text.to_owned(),
            tokens: tokens.to_vec(),
            ..TextPart::default()
        }
    }

    fn last(choice: u32, text: &str, tokens: &[u32]) -> TextPart {
        TextPart {
            finish: Some(FinishReason::Stop),
            ..part(choice, text, tokens)
        }
    }

    fn read(log: &mut TextLog) -> String {
        log.take_fresh().into_iter().map(|part| part.text).collect()
    }

    #[test]
    fn what_is_said_again_is_heard_once_wherever_it_is_cut() {
        let whole = "ab\u{e4}\u{1f600}cd";
        let tokens: Vec<u32> = (0..6).collect();
        let chars: Vec<String> = whole.chars().map(String::from).collect();
        for heard in 0..=6 {
            for step in 1..=6 {
                let mut log = TextLog::new(1, true);
                for index in 0..heard {
                    log.take(vec![part(0, &chars[index], &tokens[index..=index])]).unwrap();
                }
                let mut text = read(&mut log);
                log.begin();
                for from in (0..6).step_by(step) {
                    let to = (from + step).min(6);
                    let said = part(0, &chars[from..to].concat(), &tokens[from..to]);
                    log.take(vec![said]).unwrap();
                }
                log.take(vec![last(0, "", &[])]).unwrap();
                text += &read(&mut log);
                assert_eq!(text, whole, "heard {heard}, then {step} at a time");
                assert!(log.is_whole());
            }
        }
    }

    #[test]
    fn a_resume_goes_on_after_what_is_known() {
        let mut log = TextLog::new(2, true);
        log.take(vec![part(0, "a", &[1]), last(1, "x", &[7, 2])]).unwrap();
        assert!(log.resume().is_empty(), "the message that was published had none");
        log.resume_here();
        log.begin();
        let resume = log.resume();
        assert_eq!((resume[0].tokens.as_slice(), resume[0].finish), (&[1][..], None));
        assert_eq!((resume[1].choice, resume[1].finish), (1, Some(FinishReason::Stop)));
        read(&mut log);
        log.take(vec![part(0, "b", &[3])]).unwrap();
        log.begin();
        log.take(vec![part(0, "b", &[3]), part(0, "c", &[4])]).unwrap();
        assert_eq!(read(&mut log), "bc", "the same message begun again");
        assert_eq!(log.resume(), resume, "one message, one resume");
    }

    #[test]
    fn another_text_is_not_taken() {
        let mut log = TextLog::new(1, false);
        log.take(vec![part(0, "ab", &[1, 2])]).unwrap();
        log.begin();
        assert_eq!(log.take(vec![part(0, "a", &[9])]), Err(Unfit::Differs));
        log.begin();
        assert_eq!(log.take(vec![part(0, "x", &[1])]), Err(Unfit::Differs));
        log.begin();
        log.take(vec![last(0, "abc", &[1, 2, 3])]).unwrap();
        assert_eq!(log.take(vec![part(0, "d", &[4])]), Err(Unfit::Differs), "after its end");
        assert!(matches!(log.take(vec![part(1, "", &[])]), Err(Unfit::Senseless(_))));
        assert_eq!(log.finish()[0].text, "abc");
    }

    #[test]
    fn calls_are_kept_and_passed_on_once() {
        let call = ToolCall {
            id: "c".to_owned(),
            name: "f".to_owned(),
            arguments: "{}".to_owned(),
        };
        let said = TextPart {
            tool_calls: vec![call],
            ..last(0, "", &[5])
        };
        for streamed in [true, false] {
            let mut log = TextLog::new(1, streamed);
            log.take(vec![said.clone()]).unwrap();
            log.begin();
            let mut again = said.clone();
            again.tool_calls[0].id = "another".to_owned();
            log.take(vec![again]).unwrap();
            let told = log.take_fresh().iter().map(|part| part.tool_calls.len()).sum::<usize>();
            let kept = log.finish()[0].tool_calls.len();
            assert_eq!((told, kept), (usize::from(streamed), 1));
        }
    }

    #[test]
    fn an_echo_is_kept_and_passed_on_once() {
        let said = TextPart {
            echo: Some(Echo {
                text: "prompt".to_owned(),
                tokens: Vec::new(),
            }),
            ..part(0, "a", &[1])
        };
        for streamed in [true, false] {
            let mut log = TextLog::new(1, streamed);
            log.take(vec![said.clone()]).unwrap();
            log.begin();
            log.take(vec![said.clone(), last(0, "b", &[2])]).unwrap();
            let told: Vec<_> = log.take_fresh().into_iter().filter_map(|part| part.echo).collect();
            assert_eq!(told.len(), usize::from(streamed));
            let kept = log.finish().remove(0).echo.unwrap();
            assert_eq!(kept.text.is_empty(), streamed);
        }
    }

    #[test]
    fn an_answer_without_an_end_is_ended() {
        let mut log = TextLog::new(1, false);
        let mebibyte = "x".repeat(1024 * 1024);
        let taken = (0..100).take_while(|token| log.take(vec![part(0, &mebibyte, &[*token])]).is_ok());
        assert_eq!(taken.count(), 15);
    }
}
