//! Output that conforms to a grammar; input: a [`Grammar`] and a model's tokens, output: a [`Constraint`] that says before each token which ones may
//! come, and when nothing more may.
//!
//! The llguidance crate does the work: it walks the vocabulary as a tree of bytes through a lexer and an Earley parser. What a grammar costs is
//! bounded by the crate's fuel, at compilation and at every token: a grammar that is too complex ends its own answer and holds nobody else up.
//! Compiled grammars are kept, and each answer gets a copy of its own with its own caches, so an answer depends on its request alone.

use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{
    ApproximateTokEnv, INVALID_TOKEN, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie,
};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use super::detokenize::TokenBytes;

/// Compiled grammars kept: clients have a few schemas each, and one takes up to some megabytes.
const MAX_KEPT: usize = 64;
/// Most bytes of a grammar: compilation time grows with it, and real schemas have some kilobytes.
const MAX_GRAMMAR_BYTES: usize = 512 * 1024;
/// Most characters of a message about a grammar: the crate shows parts of the grammar in it.
const MAX_REASON_CHARS: usize = 400;
/// Whitespace between two tokens of JSON as writers of JSON put it: a space, or a new line with up to ten levels of four. A model that knows
/// nothing of JSON would write nothing else otherwise.
const JSON_WHITESPACE: &str = r"\x20|\x0D?\x0A[\x20\x09]{0,40}";
/// The key under which a schema carries options of the compiler.
const JSON_OPTIONS: &str = "x-guidance";

/// What an answer has to conform to, from its first character to its last.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON of this JSON Schema, given as text.
    JsonSchema(String),
    /// A regular expression.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in the crate's Lark notation.
    Lark(String),
}

/// A grammar cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct GrammarError {
    /// Why not, in words for the author of the grammar.
    pub reason: String,
}

impl GrammarError {
    fn new(reason: impl std::fmt::Display) -> Self {
        let whole = format!("{reason:#}");
        Self {
            reason: whole
                .chars()
                .take(MAX_REASON_CHARS)
                .collect::<String>()
                .trim_end()
                .to_owned(),
        }
    }
}

/// An answer cannot go on under its constraint: the grammar is too complex, or a token came that it does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the constraint cannot be followed: {reason}")]
pub struct ConstraintError {
    /// What the parser said.
    pub reason: String,
}

/// Compiles grammars for one vocabulary.
pub(crate) struct Grammars {
    factory: ParserFactory,
    /// The latest used last.
    kept: Mutex<Vec<(Grammar, Constraint)>>,
}

impl Grammars {
    /// For the tokens of a model with `vocab` logits, of which `eos` end an answer.
    pub(crate) fn new(tokens: &TokenBytes, vocab: usize, eos: &[u32]) -> Result<Self, GrammarError> {
        let words: Vec<Vec<u8>> = (0..vocab).map(|id| word(tokens, id as u32)).collect();
        let inside: Vec<u32> = eos.iter().copied().filter(|id| (*id as usize) < vocab).collect();
        let info = TokRxInfo::new(vocab as u32, inside.first().copied().unwrap_or(INVALID_TOKEN));
        let mut trie = TokTrie::from(&info, &words);
        if !inside.is_empty() {
            trie = trie.with_eos_tokens(&inside);
        }
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::general_slices();
        let mut factory =
            ParserFactory::new(&environment, InferenceCapabilities::default(), &slices).map_err(GrammarError::new)?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            // The parser's state says nothing to who wrote the grammar.
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(Self {
            factory,
            kept: Mutex::default(),
        })
    }

    /// A fresh constraint of a grammar; blocks for up to some tens of milliseconds when it is new.
    pub(crate) fn constraint(&self, grammar: &Grammar) -> Result<Constraint, GrammarError> {
        if let Some(kept) = self.find(grammar) {
            return Ok(kept);
        }
        let parser = self.factory.create_parser(top_level(grammar)?);
        let mut matcher = Matcher::new(parser);
        // Shows what a first look at the vocabulary shows, so that it is told before anything is generated.
        let first = matcher.compute_mask();
        if let Some(reason) = matcher.get_error() {
            return Err(GrammarError::new(reason));
        }
        first.map_err(GrammarError::new)?;
        let constraint = Constraint(matcher);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(known, _)| known != grammar);
        if kept.len() >= MAX_KEPT {
            kept.remove(0);
        }
        kept.push((grammar.clone(), constraint.clone()));
        Ok(constraint)
    }

    fn find(&self, grammar: &Grammar) -> Option<Constraint> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(known, _)| known == grammar)?;
        let found = kept.remove(at);
        let constraint = found.1.clone();
        kept.push(found);
        Some(constraint)
    }
}

/// A token as the crate spells it: special ones behind a byte that no text has; none for what can never be a part of a text.
fn word(tokens: &TokenBytes, id: u32) -> Vec<u8> {
    let bytes = tokens.get(id).unwrap_or_default();
    if tokens.is_special(id) {
        return [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat();
    }
    if bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER) {
        return Vec::new();
    }
    bytes.to_vec()
}

fn top_level(grammar: &Grammar) -> Result<TopLevelGrammar, GrammarError> {
    let bytes = match grammar {
        Grammar::JsonObject => 0,
        Grammar::JsonSchema(text) | Grammar::Regex(text) | Grammar::Lark(text) => text.len(),
        Grammar::Choice(texts) => texts.iter().map(String::len).sum(),
    };
    if bytes > MAX_GRAMMAR_BYTES {
        let message = format!("it has {bytes} bytes, at most {MAX_GRAMMAR_BYTES} are taken");
        return Err(GrammarError::new(message));
    }
    match grammar {
        Grammar::JsonObject => Ok(TopLevelGrammar::from_json_schema(with_options(
            json!({ "type": "object" }),
        ))),
        Grammar::JsonSchema(text) => {
            let schema: Value =
                serde_json::from_str(text).map_err(|error| GrammarError::new(format!("it is not JSON: {error}")))?;
            Ok(TopLevelGrammar::from_json_schema(with_options(schema)))
        }
        Grammar::Regex(expression) => Ok(TopLevelGrammar::from_regex(expression)),
        Grammar::Choice(texts) => {
            let quoted: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
            // One terminal, so that a text that begins another one is no other lexeme.
            Ok(TopLevelGrammar::from_lark(format!(
                "start: CHOICE\nCHOICE: {}",
                quoted.join(" | ")
            )))
        }
        Grammar::Lark(text) => Ok(TopLevelGrammar::from_lark(text.clone())),
    }
}

/// A text as a literal of the Lark notation.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A schema with our options, unless it brings its own.
fn with_options(schema: Value) -> Value {
    with_whitespace(schema, JSON_WHITESPACE)
}

/// A schema with this expression for whitespace, unless it brings its own.
pub(super) fn with_whitespace(mut schema: Value, pattern: &str) -> Value {
    if let Value::Object(fields) = &mut schema {
        fields
            .entry(JSON_OPTIONS)
            .or_insert_with(|| json!({ "whitespace_pattern": pattern }));
    }
    schema
}

/// How far one answer is in its grammar; a copy goes on for itself.
pub struct Constraint(Matcher);

impl Clone for Constraint {
    fn clone(&self) -> Self {
        Self(self.0.deep_clone())
    }
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Constraint")
            .field("stopped", &self.0.stop_reason())
            .finish()
    }
}

impl Constraint {
    /// The tokens that may come next, end tokens among them when the text may end here.
    pub(super) fn mask(&mut self) -> Result<SimpleVob, ConstraintError> {
        self.0.compute_mask_or_eos().map_err(|error| broken(&error.to_string()))
    }

    /// Notes the token that came.
    pub(super) fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        self.0.consume_token(token).map_err(|error| broken(&error.to_string()))
    }

    /// Whether the text is complete: nothing may follow it.
    pub(super) fn is_complete(&self) -> bool {
        self.0.is_stopped() && !self.0.is_error()
    }
}

fn broken(reason: &str) -> ConstraintError {
    ConstraintError {
        reason: GrammarError::new(reason).reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::generator::toy;

    fn constraint(grammar: &Grammar) -> Result<Constraint, GrammarError> {
        toy::grammars().constraint(grammar)
    }

    /// Whether a text, piece by piece, is allowed, and whether it is complete then.
    fn follow(grammar: &Grammar, pieces: &[&str]) -> Option<bool> {
        let mut constraint = constraint(grammar).unwrap();
        for piece in pieces {
            let id = toy::id(piece);
            if constraint.is_complete() || !constraint.mask().unwrap().is_allowed(id) {
                return None;
            }
            constraint.accept(id).unwrap();
        }
        Some(constraint.is_complete())
    }

    #[test]
    fn only_what_conforms_may_come_and_the_end_is_known() {
        let choice = Grammar::Choice(vec!["ab".to_owned(), "abE".to_owned(), "€".to_owned()]);
        assert_eq!(follow(&choice, &["ab", "E"]), Some(true));
        assert_eq!(follow(&choice, &["a", "bE"]), Some(true));
        assert_eq!(follow(&choice, &["ab"]), Some(false), "it may go on");
        assert_eq!(follow(&choice, &["ab", "</s>"]), Some(true), "or end");
        assert_eq!(follow(&choice, &["a", "</s>"]), None);
        assert_eq!(
            follow(&choice, &["<0xE2>", "<0x82>", "<0xAC>"]),
            Some(true),
            "bytes of a character"
        );
        let regex = Grammar::Regex("(ab){2} ?E".to_owned());
        assert_eq!(follow(&regex, &["a", "b", "ab", "E"]), Some(true));
        assert_eq!(follow(&regex, &["ab", "E"]), None);
        let lark = Grammar::Lark("start: \"a\"+ \"END\"".to_owned());
        assert_eq!(follow(&lark, &["a", "aE", "ND"]), Some(true));
        let quotes = Grammar::Choice(vec!["a\nb".to_owned()]);
        assert_eq!(follow(&quotes, &["a", "\n", "b"]), Some(true));
    }

    #[test]
    fn copies_go_on_for_themselves() {
        let mut first = constraint(&Grammar::Regex("a(b|E)".to_owned())).unwrap();
        first.accept(toy::id("a")).unwrap();
        let mut second = first.clone();
        first.accept(toy::id("b")).unwrap();
        assert!(first.is_complete() && !second.is_complete());
        second.accept(toy::id("E")).unwrap();
        assert!(second.is_complete());
    }

    #[test]
    fn what_cannot_be_compiled_says_why() {
        for (grammar, expected) in [
            (Grammar::JsonSchema("{".to_owned()), "not JSON"),
            (Grammar::JsonSchema(r#"{"type":"nonsense"}"#.to_owned()), "nonsense"),
            (Grammar::JsonSchema(r##"{"$ref":"#/$defs/a"}"##.to_owned()), "$defs"),
            (Grammar::Regex("(a".to_owned()), "regex"),
            (Grammar::Regex("(?=a)b".to_owned()), "look"),
            (Grammar::Lark("start: other".to_owned()), "other"),
            (Grammar::Regex("a".repeat(MAX_GRAMMAR_BYTES + 1)), "bytes"),
        ] {
            let error = constraint(&grammar).unwrap_err();
            assert!(error.reason.contains(expected), "{error}");
            assert!(error.reason.chars().count() <= MAX_REASON_CHARS);
        }
    }

    #[test]
    fn the_latest_grammars_are_kept_and_no_more() {
        let grammars = toy::grammars();
        let grammar = |number: usize| Grammar::Regex(format!("a{{{}}}", number + 1));
        for number in 0..MAX_KEPT + 3 {
            grammars.constraint(&grammar(number)).unwrap();
            grammars.constraint(&grammar(0)).unwrap();
        }
        let kept = grammars.kept.lock().unwrap();
        assert_eq!(kept.len(), MAX_KEPT);
        let has = |number: usize| kept.iter().any(|(known, _)| *known == grammar(number));
        assert!(has(0) && !has(1) && has(MAX_KEPT + 2));
    }

    #[test]
    fn a_token_that_does_not_conform_is_told() {
        let mut constraint = constraint(&Grammar::Regex("ab".to_owned())).unwrap();
        assert!(constraint.accept(toy::id("E")).is_err());
        assert!(!constraint.is_complete());
    }
}
