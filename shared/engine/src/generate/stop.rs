//! Finds stop strings in a text that comes in pieces; input: pieces, output: the text that may be shown, and which stop string ended it.
//!
//! - A text ends where the first stop string is complete, however it was cut into pieces; the longest wins when several end there.
//! - Nothing of the stop string that ended the text is ever given out.
//! - Only what may be the start of a stop string is held back, and no longer than until it is known not to be one.

/// What may be shown after a piece.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Emit {
    /// Text that no stop string can take back.
    pub text: String,
    /// The stop string that ended the text, by its place in the list; nothing follows it.
    pub stopped: Option<usize>,
}

/// The stop strings of one text, and what is held back of it.
#[derive(Debug, Clone, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    stopped: Option<usize>,
}

impl StopMatcher {
    /// Looks for these strings; an empty one never matches.
    pub fn new(stops: &[String]) -> Self {
        Self {
            stops: stops.to_vec(),
            held: String::new(),
            stopped: None,
        }
    }

    /// Takes the next piece; after a stop string it gives nothing more.
    pub fn push(&mut self, piece: &str) -> Emit {
        if self.stopped.is_some() {
            return Emit {
                text: String::new(),
                stopped: self.stopped,
            };
        }
        // Held text holds no whole stop string, so a match ends behind it.
        let seen = self.held.len();
        self.held.push_str(piece);
        if let Some((index, start)) = self.first_match(seen) {
            self.stopped = Some(index);
            self.held.truncate(start);
            return Emit {
                text: std::mem::take(&mut self.held),
                stopped: self.stopped,
            };
        }
        let keep = self.longest_start();
        let shown = self.held.len() - keep;
        Emit {
            text: self.held.drain(..shown).collect(),
            stopped: None,
        }
    }

    /// The text is over: what was held back turned out not to be a stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop string that is complete first, and where it starts; matches end behind byte `seen`.
    fn first_match(&self, seen: usize) -> Option<(usize, usize)> {
        let text = self.held.as_bytes();
        (seen + 1..=text.len()).find_map(|end| {
            let ending = self.stops.iter().enumerate();
            let ending = ending.filter(|(_, stop)| !stop.is_empty() && text[..end].ends_with(stop.as_bytes()));
            // Of equal length only equal strings can end here; the first of them is named.
            let (index, stop) = ending.min_by_key(|(_, stop)| std::cmp::Reverse(stop.len()))?;
            Some((index, end - stop.len()))
        })
    }

    /// Bytes at the end of the held text that a stop string may start with.
    fn longest_start(&self) -> usize {
        let text = self.held.as_bytes();
        let longest = |stop: &String| {
            let most = stop.len().saturating_sub(1).min(text.len());
            (1..=most)
                .rev()
                .find(|&bytes| text.ends_with(&stop.as_bytes()[..bytes]))
        };
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        StopMatcher::new(&stops)
    }

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<usize>) {
        let mut matcher = matcher(stops);
        let mut texts = Vec::new();
        for piece in pieces {
            let emit = matcher.push(piece);
            texts.push(emit.text);
            if emit.stopped.is_some() {
                return (texts, emit.stopped);
            }
        }
        texts.push(matcher.finish());
        (texts, None)
    }

    #[test]
    fn a_stop_string_across_pieces_is_never_shown() {
        let (texts, stopped) = run(&["\n\nUser:"], &["fine", "\n", "\nUs", "er", ": hello"]);
        assert_eq!(texts, ["fine", "", "", "", ""]);
        assert_eq!(stopped, Some(0));
    }

    #[test]
    fn what_only_looked_like_one_is_shown_at_once_when_that_is_known() {
        let (texts, stopped) = run(&["END"], &["a E", "N", "x", " EN"]);
        assert_eq!(texts, ["a ", "", "ENx", " ", "EN"]);
        assert_eq!(stopped, None);
        // The shorter start that remains is held, no more.
        assert_eq!(run(&["aab"], &["aa", "a", "b"]).0, ["", "a", ""]);
    }

    #[test]
    fn the_first_complete_one_wins_and_of_those_the_longest() {
        assert_eq!(run(&["abcd", "bc"], &["xabcd"]), (vec!["xa".into()], Some(1)));
        assert_eq!(
            run(&["abcd", "bc"], &["xa", "b", "c"]),
            (vec!["x".into(), "".into(), "a".into()], Some(1))
        );
        assert_eq!(run(&["d", "bcd"], &["abcd"]), (vec!["a".into()], Some(1)));
    }

    #[test]
    fn empty_ones_never_match_and_nothing_follows_a_stop() {
        assert_eq!(run(&["", "x"], &["ab"]).1, None);
        let mut stopping = matcher(&["x"]);
        assert_eq!(stopping.push("axb").text, "a");
        let after = stopping.push("more");
        assert_eq!((after.text.as_str(), after.stopped), ("", Some(0)));
        assert_eq!(stopping.finish(), "");
    }

    /// The specification, on the whole text.
    fn reference(stops: &[String], text: &str) -> (String, Option<usize>) {
        for end in 1..=text.len() {
            let ending = |stop: &&String| !stop.is_empty() && text.as_bytes()[..end].ends_with(stop.as_bytes());
            if let Some(longest) = stops.iter().filter(ending).max_by_key(|stop| stop.len()) {
                let index = stops.iter().position(|stop| stop == longest);
                return (text[..end - longest.len()].to_owned(), index);
            }
        }
        (text.to_owned(), None)
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            stops in prop::collection::vec("[abä]{0,4}", 0..4),
            pieces in prop::collection::vec("[abäc]{0,4}", 0..12),
        ) {
            let whole = pieces.concat();
            let (expected, index) = reference(&stops, &whole);
            let mut matcher = StopMatcher::new(&stops);
            let (mut shown, mut given, mut stopped) = (String::new(), String::new(), None);
            for piece in &pieces {
                let emit = matcher.push(piece);
                given.push_str(piece);
                shown.push_str(&emit.text);
                prop_assert!(expected.starts_with(&shown), "part of a stop string was shown");
                stopped = emit.stopped;
                if stopped.is_some() {
                    break;
                }
                // What is held back is a start of a stop string.
                let held = &given[shown.len()..];
                prop_assert!(held.is_empty() || stops.iter().any(|stop| stop.len() > held.len() && stop.starts_with(held)));
            }
            shown.push_str(&matcher.finish());
            prop_assert_eq!(stopped, index);
            prop_assert_eq!(shown, expected);
        }
    }
}
