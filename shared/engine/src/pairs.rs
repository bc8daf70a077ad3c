//! Two texts as one sequence; input: a query and a passage, output: ids with the model's special tokens before, between and after.
//!
//! What stands around the texts is read off the tokenizer's own encoding of a probe, so every family brings its own form.

use crate::error::{InputError, LoadError};
use crate::tokenizer::{TextTokenizer, TokenIds, Truncate};
use crate::vocabulary::Vocabulary;

/// A text that is compared with many; tokenized once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query(Vec<u32>);

/// Makes sequences of pairs.
#[derive(Debug)]
pub(crate) struct PairTokenizer {
    vocabulary: Vocabulary,
    form: Form,
    max_tokens: usize,
}

/// What stands around the two texts of a pair.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Form {
    before: Vec<u32>,
    between: Vec<u32>,
    after: Vec<u32>,
    /// How many of the last tokens between the texts belong to the second; `None` when the model does not tell texts apart.
    second_begins: Option<usize>,
}

impl PairTokenizer {
    /// Reads the form of pairs; `typed` models are told which text a token belongs to.
    pub(crate) fn new(tokenizer: &TextTokenizer, typed: bool) -> Result<Self, LoadError> {
        let form = tokenizer.probe_pair(|encoding| Form::read(encoding, typed))?;
        Ok(Self {
            vocabulary: tokenizer.vocabulary(),
            form,
            max_tokens: tokenizer.max_tokens(),
        })
    }

    /// Tokens of a query.
    pub(crate) fn query(&self, text: &str) -> Result<Query, InputError> {
        self.text(text).map(Query)
    }

    /// The sequence of a pair. What is too long is refused, or cut as the transformers library does: always from the longer text.
    pub(crate) fn pair(&self, query: &Query, passage: &str, truncate: Truncate) -> Result<TokenIds, InputError> {
        let passage = self.text(passage)?;
        let special = self.form.special();
        let room = self.max_tokens - special;
        let (mut first, mut second) = (&query.0[..], &passage[..]);
        let total = first.len() + second.len();
        if total > room {
            let (keep_first, keep_second) = shares(first.len(), second.len(), room);
            (first, second) = match truncate {
                Truncate::None => {
                    return Err(InputError::TooLong {
                        tokens: total + special,
                        max: self.max_tokens,
                    });
                }
                Truncate::End => (&first[..keep_first], &second[..keep_second]),
                Truncate::Start => (
                    &first[first.len() - keep_first..],
                    &second[second.len() - keep_second..],
                ),
            };
        }
        Ok(self.form.join(first, second))
    }

    fn text(&self, text: &str) -> Result<Vec<u32>, InputError> {
        if text.is_empty() {
            return Err(InputError::Empty);
        }
        self.vocabulary.encode(text, false)
    }
}

impl Form {
    fn read(probe: &tokenizers::Encoding, typed: bool) -> Result<Self, String> {
        let texts = probe.get_sequence_ids();
        let at = |text: usize| {
            let first = texts.iter().position(|found| *found == Some(text));
            let last = texts.iter().rposition(|found| *found == Some(text));
            first.zip(last).ok_or("the letter `a` has no token in a pair")
        };
        let ((a, a_last), (b, b_last)) = (at(0)?, at(1)?);
        if a_last >= b {
            return Err("the texts of a pair are not one behind the other".to_owned());
        }
        let ids = probe.get_ids();
        let types = probe.get_type_ids();
        let second = types.iter().position(|kind| *kind != 0).unwrap_or(types.len());
        let rises = types[second..].iter().all(|kind| *kind == 1);
        let told_apart = (a_last + 1..=b).contains(&second);
        if typed && !(rises && told_apart) {
            return Err("the token types of a pair do not tell its texts apart".to_owned());
        }
        Ok(Self {
            before: ids[..a].to_vec(),
            between: ids[a_last + 1..b].to_vec(),
            after: ids[b_last + 1..].to_vec(),
            second_begins: typed.then(|| b - second),
        })
    }

    fn special(&self) -> usize {
        self.before.len() + self.between.len() + self.after.len()
    }

    fn join(&self, first: &[u32], second: &[u32]) -> TokenIds {
        let ids = [&self.before[..], first, &self.between, second, &self.after].concat();
        let begins = self.before.len() + first.len() + self.between.len();
        let second_from = self.second_begins.map_or(ids.len(), |before| begins - before);
        TokenIds::pair(ids, second_from)
    }
}

/// How much of two texts is kept when both take more than `room`: the longer loses first (`longest_first` of the tokenizers library).
fn shares(first: usize, second: usize, room: usize) -> (usize, usize) {
    let (short, long) = (first.min(second), first.max(second));
    let mut keep_short = short;
    let mut keep_long = if short > room { short } else { short.max(room - short) };
    if keep_short + keep_long > room {
        keep_short = room / 2;
        keep_long = keep_short + room % 2;
    }
    keep_long = keep_long.min(long);
    if first <= second {
        (keep_short, keep_long)
    } else {
        (keep_long, keep_short)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_text_is_cut_first_and_the_room_is_used_up() {
        assert_eq!(shares(3, 20, 10), (3, 7));
        assert_eq!(shares(20, 3, 10), (7, 3));
        assert_eq!(shares(20, 20, 11), (5, 6));
        assert_eq!(shares(8, 6, 10), (5, 5));
        assert_eq!(shares(6, 7, 10), (5, 5));
        for (first, second, room) in [(1, 30, 4), (30, 1, 4), (9, 9, 1), (100, 4, 50)] {
            let (keep_first, keep_second) = shares(first, second, room);
            assert_eq!(keep_first + keep_second, room);
            assert!(keep_first <= first && keep_second <= second);
        }
    }

    #[test]
    fn the_second_text_begins_where_its_types_do() {
        let bert = Form {
            before: vec![1],
            between: vec![2],
            after: vec![2],
            second_begins: Some(0),
        };
        let pair = bert.join(&[7, 8], &[9]);
        assert_eq!((pair.as_slice(), pair.second_from()), (&[1, 7, 8, 2, 9, 2][..], 4));
        let roberta = Form {
            between: vec![2, 2],
            second_begins: None,
            ..bert
        };
        let pair = roberta.join(&[7], &[9]);
        assert_eq!((pair.as_slice(), pair.second_from()), (&[1, 7, 2, 2, 9, 2][..], 6));
    }
}
