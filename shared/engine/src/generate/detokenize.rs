//! From token ids to text, one token at a time; input: ids, output: whole characters only, the same text that decoding all ids at once gives.
//!
//! A token of a byte-level vocabulary may end inside a character. Its bytes wait until the character is whole; bytes that can never become one
//! are replaced by U+FFFD, as in any decoding of UTF-8.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

/// The mark for a space in vocabularies of the sentencepiece kind.
const SPACE_MARK: &str = "\u{2581}";

/// The bytes of every token, and which tokens are special.
#[derive(Debug)]
pub(crate) struct TokenBytes {
    bytes: Vec<u8>,
    /// Where each token starts in `bytes`, and at last their number.
    starts: Vec<u32>,
    special: Vec<bool>,
}

/// How a vocabulary writes bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// Each byte is one printable character (GPT-2, Llama 3, Qwen).
    ByteLevel,
    /// Text with a mark for spaces, and `<0x0A>` for bytes that have no piece (Llama 2, Mistral).
    Pieces,
}

impl Spelling {
    /// Read off the `decoder` of `tokenizer.json`; none when it is neither.
    pub(crate) fn of_decoder(decoder: &Value) -> Option<Self> {
        let parts = match decoder.get("decoders").and_then(Value::as_array) {
            Some(parts) => parts.as_slice(),
            None => std::slice::from_ref(decoder),
        };
        let has = |kind: &str| {
            parts
                .iter()
                .any(|part| part.get("type").and_then(Value::as_str) == Some(kind))
        };
        if has("ByteLevel") {
            Some(Self::ByteLevel)
        } else if has("ByteFallback") || has("Metaspace") {
            Some(Self::Pieces)
        } else {
            None
        }
    }

    fn bytes(self, token: &str, byte_of: &HashMap<char, u8>) -> Vec<u8> {
        match self {
            Self::ByteLevel => {
                let bytes: Option<Vec<u8>> = token.chars().map(|c| byte_of.get(&c).copied()).collect();
                // Added tokens are spelled as they are.
                bytes.unwrap_or_else(|| token.as_bytes().to_vec())
            }
            Self::Pieces => match byte_piece(token) {
                Some(byte) => vec![byte],
                None => token.replace(SPACE_MARK, " ").into_bytes(),
            },
        }
    }
}

/// The byte of a piece like `<0x0A>`.
fn byte_piece(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2)
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

/// GPT-2's printable stand-ins for bytes: those that print are themselves, the others follow from U+0100 on.
fn byte_level_alphabet() -> HashMap<char, u8> {
    let prints = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let plain = (0..=u8::MAX).filter(prints).map(|byte| (char::from(byte), byte));
    let others = (0..=u8::MAX).filter(|byte| !prints(byte));
    let shifted = ('\u{100}'..).zip(others);
    plain.chain(shifted).collect()
}

impl TokenBytes {
    /// From a vocabulary (token and id, with the added ones) and the ids of the special tokens.
    pub(crate) fn new(vocabulary: &HashMap<String, u32>, special_ids: &[u32], spelling: Spelling) -> Self {
        let ids = vocabulary.values().map(|id| *id as usize + 1).max().unwrap_or(0);
        let mut tokens = vec![""; ids];
        for (token, id) in vocabulary {
            tokens[*id as usize] = token;
        }
        let byte_of = byte_level_alphabet();
        let mut bytes = Vec::new();
        let mut starts = Vec::with_capacity(ids + 1);
        for token in tokens {
            starts.push(bytes.len() as u32);
            bytes.extend(spelling.bytes(token, &byte_of));
        }
        starts.push(bytes.len() as u32);
        let mut special = vec![false; ids];
        for id in special_ids {
            if let Some(special) = special.get_mut(*id as usize) {
                *special = true;
            }
        }
        Self { bytes, starts, special }
    }

    /// The bytes of a token; none when the tokenizer has no such id (models pad their vocabulary).
    pub(crate) fn get(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let (start, end) = (self.starts.get(id)?, self.starts.get(id + 1)?);
        self.bytes.get(*start as usize..*end as usize)
    }

    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }
}

/// What becomes of special tokens in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SpecialTokens {
    /// They are left out.
    #[default]
    Skip,
    /// They are written as they are spelled.
    Keep,
}

/// Text of one sequence as it grows.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokens: Arc<TokenBytes>,
    special: SpecialTokens,
    /// Special tokens that are written in any case.
    kept: Arc<[u32]>,
    /// Bytes of a character that is not whole yet; at most three between calls.
    pending: Vec<u8>,
    text: String,
}

impl Detokenizer {
    pub(crate) fn new(tokens: Arc<TokenBytes>, special: SpecialTokens) -> Self {
        Self {
            tokens,
            special,
            kept: Arc::default(),
            pending: Vec::new(),
            text: String::new(),
        }
    }

    /// Writes these special tokens as they are spelled, whatever becomes of the others.
    #[must_use]
    pub(crate) fn keeping(mut self, kept: &[u32]) -> Self {
        self.kept = kept.into();
        self
    }

    /// Takes the next token; returns the characters that it completed, perhaps none.
    pub fn push(&mut self, id: u32) -> &str {
        self.text.clear();
        if self.special == SpecialTokens::Keep || !self.tokens.is_special(id) || self.kept.contains(&id) {
            self.pending.extend_from_slice(self.tokens.get(id).unwrap_or_default());
            self.take_characters();
        }
        &self.text
    }

    /// What is left at the end: U+FFFD when the last character was cut, else nothing.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        self.text.push_str(&String::from_utf8_lossy(&self.pending));
        self.pending.clear();
        &self.text
    }

    /// Moves all but an unfinished character from `pending` to `text`.
    fn take_characters(&mut self) {
        let mut taken = 0;
        for chunk in self.pending.utf8_chunks() {
            self.text.push_str(chunk.valid());
            taken += chunk.valid().len();
            let rest = chunk.invalid();
            let may_go_on = taken + rest.len() == self.pending.len()
                && std::str::from_utf8(rest).is_err_and(|error| error.error_len().is_none());
            if may_go_on {
                break;
            }
            if !rest.is_empty() {
                self.text.push(char::REPLACEMENT_CHARACTER);
                taken += rest.len();
            }
        }
        self.pending.drain(..taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A vocabulary of all single bytes, spelled at byte level, with one special token behind them.
    fn bytes() -> Arc<TokenBytes> {
        let mut vocabulary: HashMap<String, u32> = byte_level_alphabet()
            .into_iter()
            .map(|(c, byte)| (c.to_string(), u32::from(byte)))
            .collect();
        vocabulary.insert("<|end|>".to_owned(), 256);
        Arc::new(TokenBytes::new(&vocabulary, &[256], Spelling::ByteLevel))
    }

    fn text(bytes_in: &[u8]) -> String {
        let mut detokenizer = Detokenizer::new(bytes(), SpecialTokens::Skip);
        let mut text = String::new();
        for byte in bytes_in {
            text.push_str(detokenizer.push(u32::from(*byte)));
        }
        text.push_str(detokenizer.finish());
        text
    }

    proptest::proptest! {
        #[test]
        fn any_text_comes_back_in_whole_characters(expected in "\\PC{0,40}") {
            let mut detokenizer = Detokenizer::new(bytes(), SpecialTokens::Skip);
            let mut given = String::new();
            for (at, byte) in expected.bytes().enumerate() {
                given.push_str(detokenizer.push(u32::from(byte)));
                // All that is whole is there at once.
                let mut whole = expected.char_indices().map(|(start, c)| start + c.len_utf8()).filter(|end| *end <= at + 1);
                proptest::prop_assert_eq!(given.len(), whole.next_back().unwrap_or(0));
            }
            proptest::prop_assert_eq!(detokenizer.finish(), "");
            proptest::prop_assert_eq!(given, expected);
        }

        #[test]
        fn any_bytes_give_what_lossy_decoding_gives(raw in proptest::collection::vec(proptest::num::u8::ANY, 0..40)) {
            proptest::prop_assert_eq!(text(&raw), String::from_utf8_lossy(&raw));
        }
    }

    #[test]
    fn special_tokens_are_left_out_or_kept() {
        let both = "a<|end|>b";
        for (special, kept, expected) in [
            (SpecialTokens::Skip, &[][..], "ab"),
            (SpecialTokens::Keep, &[], both),
            (SpecialTokens::Skip, &[256], both),
        ] {
            let mut detokenizer = Detokenizer::new(bytes(), special).keeping(kept);
            let text: String = [97, 256, 98, 9_999].map(|id| detokenizer.push(id).to_owned()).concat();
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn pieces_have_marks_and_bytes() {
        let vocabulary = HashMap::from([
            ("▁Hello".to_owned(), 0),
            ("<0xE2>".to_owned(), 1),
            ("<0x82>".to_owned(), 2),
            ("<0xAC>".to_owned(), 3),
            ("<s>".to_owned(), 4),
        ]);
        let tokens = Arc::new(TokenBytes::new(&vocabulary, &[4], Spelling::Pieces));
        let mut detokenizer = Detokenizer::new(tokens, SpecialTokens::Skip);
        let text = [4, 0, 1, 2, 3].map(|id| detokenizer.push(id).to_owned());
        assert_eq!(text, ["", " Hello", "", "", "€"]);
    }

    #[test]
    fn the_spelling_is_read_off_the_decoder() {
        let of = |decoder| Spelling::of_decoder(&decoder);
        assert_eq!(of(json!({ "type": "ByteLevel" })), Some(Spelling::ByteLevel));
        let sequence = json!({ "type": "Sequence", "decoders": [{ "type": "Replace" }, { "type": "ByteFallback" }] });
        assert_eq!(of(sequence), Some(Spelling::Pieces));
        assert_eq!(of(json!({ "type": "WordPiece" })), None);
        assert_eq!(of(Value::Null), None);
    }
}
