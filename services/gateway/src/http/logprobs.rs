//! Log probabilities as OpenAI writes them. Input: tokens as bytes with their logarithms. Output: the lists of chat and of
//! plain completions.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use schemas::generate::{PromptToken, TokenLogprob, TopToken};
use schemas::http::{ChatLogprobs, ChatTokenLogprob, ChatTopLogprob, TextLogprobs};

/// JSON has no infinity: what is impossible is written as this, as OpenAI does.
const IMPOSSIBLE: f32 = -9999.0;

/// The list of a chat completion.
pub(super) fn chat(tokens: &[TokenLogprob]) -> ChatLogprobs {
    let one = |token: &TokenLogprob| ChatTokenLogprob {
        token: text(&token.bytes),
        logprob: finite(token.logprob),
        bytes: Some(token.bytes.to_vec()),
        top_logprobs: token
            .top
            .iter()
            .map(|top| ChatTopLogprob {
                token: text(&top.bytes),
                logprob: finite(top.logprob),
                bytes: Some(top.bytes.to_vec()),
            })
            .collect(),
    };
    ChatLogprobs {
        content: Some(tokens.iter().map(one).collect()),
        refusal: None,
    }
}

/// The lists of a plain completion, an echoed prompt before it; `offset` counts the characters of the tokens before and goes on.
pub(super) fn plain(echo: &[PromptToken], tokens: &[TokenLogprob], offset: &mut u64) -> TextLogprobs {
    let mut lists = TextLogprobs::default();
    for token in echo {
        lists_token(&mut lists, (&token.bytes, token.logprob, &token.top), offset);
    }
    for token in tokens {
        lists_token(&mut lists, (&token.bytes, Some(token.logprob), &token.top), offset);
    }
    lists
}

fn lists_token(lists: &mut TextLogprobs, token: (&[u8], Option<f32>, &[TopToken]), offset: &mut u64) {
    let (bytes, logprob, top) = token;
    let text_of_token = text(bytes);
    lists.text_offset.push(*offset);
    *offset += text_of_token.chars().count() as u64;
    let top: BTreeMap<String, f32> = top.iter().map(|top| (text(&top.bytes), finite(top.logprob))).collect();
    lists.top_logprobs.push(logprob.map(|_| top));
    lists.token_logprobs.push(logprob.map(finite));
    lists.tokens.push(text_of_token);
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { IMPOSSIBLE }
}

/// A token's text; bytes that are no whole character are spelled.
fn text(bytes: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return text.to_owned();
    }
    bytes.iter().fold("bytes:".to_owned(), |mut spelled, byte| {
        // Writing to a string cannot fail.
        let _ = write!(spelled, "\\x{byte:02x}");
        spelled
    })
}

#[cfg(test)]
mod tests {
    use schemas::generate::TopToken;
    use serde_bytes::ByteBuf;

    use super::*;

    fn token(bytes: &[u8], logprob: f32) -> TokenLogprob {
        TokenLogprob {
            bytes: ByteBuf::from(bytes.to_vec()),
            logprob,
            top: vec![TopToken {
                bytes: ByteBuf::from(bytes.to_vec()),
                logprob,
            }],
        }
    }

    #[test]
    fn tokens_that_are_no_text_are_spelled_and_infinity_is_a_number() {
        let tokens = [
            token("\u{e4}".as_bytes(), -0.5),
            token(&[0xe2, 0x82], f32::NEG_INFINITY),
        ];
        let chat = chat(&tokens).content.unwrap();
        assert_eq!((chat[1].token.as_str(), chat[1].logprob), ("bytes:\\xe2\\x82", -9999.0));
        assert_eq!(chat[1].bytes.as_deref(), Some(&[0xe2, 0x82][..]));
        let mut offset = 3;
        let first = PromptToken {
            bytes: ByteBuf::from(b"p".to_vec()),
            ..PromptToken::default()
        };
        let plain = plain(&[first], &tokens, &mut offset);
        assert_eq!(plain.text_offset, [3, 4, 5]);
        assert_eq!(plain.tokens[..2], ["p", "\u{e4}"]);
        assert_eq!(plain.token_logprobs, [None, Some(-0.5), Some(-9999.0)]);
        assert_eq!(plain.top_logprobs[0], None);
        assert_eq!(plain.top_logprobs[1].as_ref().unwrap()["\u{e4}"], -0.5);
    }
}
