//! Texts to tokens and back. Input: questions on the model's own subject. Output: answers, made beside the batches: no device
//! time is used, so nothing is queued and nothing is charged. The identity of the asker counts as for work.

use std::sync::Arc;

use bus::{Bus, Headers, Message, ServeOptions, Subscription};
use bytes::Bytes;
use engine::generate::{AddSpecial, SpecialTokens, TextModel};
use engine::{InputError, Vocabulary};
use process::{CancellationToken, Clock};
use prometheus::IntCounter;
use schemas::error::{ErrorCode, Failure};
use schemas::headers;
use schemas::policy::Scope;
use schemas::tokens::{Tokenize, TokenizeText, Tokenized, TokensAsk, TokensQuestion, TokensReply};
use schemas::wire::{self, Format, MAX_MESSAGE_BYTES};

use crate::generation;
use crate::identity::Verifier;

/// Questions answered at once: tokenizing a long text takes a core for milliseconds, and the batches need the cores too.
const AT_ONCE: usize = 4;

/// What knows the model's tokens.
#[derive(Clone)]
pub(crate) enum Texts {
    /// The tokenizer of a model that embeds or ranks.
    Encoder(Vocabulary),
    /// The text side of a model that writes.
    Writer(Arc<TextModel>),
    /// Nothing: the echo engine forgets its words.
    Nothing,
}

/// Answers questions about tokens.
pub(crate) struct TokenDesk {
    pub(crate) bus: Bus,
    pub(crate) clock: Clock,
    pub(crate) verifier: Arc<Verifier>,
    /// The model's true name.
    pub(crate) model: String,
    pub(crate) texts: Texts,
    /// Questions that could not be read.
    pub(crate) malformed: IntCounter,
}

impl TokenDesk {
    /// Answers until `stop`.
    ///
    /// # Errors
    /// Never; the signature is that of a task.
    pub(crate) async fn run(self, subscription: Subscription, stop: CancellationToken) -> anyhow::Result<()> {
        let options = ServeOptions {
            concurrency: AT_ONCE,
            ..ServeOptions::default()
        };
        let answer = |message: Message| self.answer(message);
        self.bus.serve(subscription, options, stop, answer).await;
        Ok(())
    }

    async fn answer(&self, message: Message) -> Option<(Headers, Bytes)> {
        let format = Format::from_content_type(message.headers.get(headers::CONTENT_TYPE));
        let reply = match self.reply(&message, format.as_ref().copied().unwrap_or_default()).await {
            Ok(reply) => reply,
            Err(failure) => TokensReply::Failed(failure),
        };
        let format = format.unwrap_or_default();
        let mut payload = wire::encode_as(format, &reply);
        if payload.as_ref().is_ok_and(|payload| payload.len() > MAX_MESSAGE_BYTES) {
            let message = "the tokens are more than a message may hold; send less text at once";
            let failure = Failure::new(ErrorCode::BodyTooLarge, message);
            payload = wire::encode_as(format, &TokensReply::Failed(failure));
        }
        let payload = payload
            .inspect_err(|error| tracing::error!(%error, "answer about tokens cannot be encoded"))
            .ok()?;
        let message_headers = match format {
            Format::Json => Headers::new().with(headers::CONTENT_TYPE, Format::JSON),
            Format::MessagePack => Headers::new(),
        };
        Some((message_headers, payload.into()))
    }

    async fn reply(&self, message: &Message, format: Format) -> Result<TokensReply, Failure> {
        let ask: TokensAsk = wire::decode_as(format, &message.payload).map_err(|error| {
            self.malformed.inc();
            tracing::warn!(%error, "question about tokens cannot be read");
            Failure::new(ErrorCode::UnsupportedWork, error.to_string())
        })?;
        self.check_asker(message.headers.get(headers::IDENTITY), &ask.model)
            .await?;
        let (texts, now_unix_s) = (self.texts.clone(), self.clock.now_unix_ms() / 1_000);
        let made = tokio::task::spawn_blocking(move || texts.reply(&ask.question, now_unix_s)).await;
        made.unwrap_or_else(|error| {
            tracing::error!(%error, "the tokenizer panicked");
            Err(Failure::new(ErrorCode::Internal, "the input could not be tokenized"))
        })
    }

    async fn check_asker(&self, token: Option<&str>, model: &str) -> Result<(), Failure> {
        let now_s = self.clock.now_unix_ms() / 1_000;
        let claims = self
            .verifier
            .verify(token, now_s)
            .await
            .map_err(|error| Failure::new(ErrorCode::Unauthorized, error.to_string()).param(headers::IDENTITY))?;
        if model != self.model {
            let message = format!("this subject is for model '{}'", self.model);
            return Err(Failure::new(ErrorCode::ModelNotFound, message).param("model"));
        }
        if !claims.allows_model(model) || !claims.scp.contains(&Scope::Inference) {
            let message = format!("this key may not use model '{model}'");
            return Err(Failure::new(ErrorCode::Forbidden, message).param("model"));
        }
        Ok(())
    }
}

impl Texts {
    fn reply(&self, question: &TokensQuestion, now_unix_s: u64) -> Result<TokensReply, Failure> {
        match question {
            TokensQuestion::Tokenize(tokenize) => self.tokenize(tokenize, now_unix_s).map(TokensReply::Tokenized),
            TokensQuestion::Detokenize(ids) => self.detokenize(ids).map(TokensReply::Detokenized),
        }
    }

    fn tokenize(&self, tokenize: &Tokenize, now_unix_s: u64) -> Result<Tokenized, Failure> {
        let (text, field) = match &tokenize.text {
            TokenizeText::Text(text) => (text.clone(), "prompt"),
            TokenizeText::Chat(chat) => match self {
                Self::Writer(model) => (generation::rendered(model, chat, now_unix_s)?, "messages"),
                Self::Encoder(_) | Self::Nothing => {
                    let message = "this model has no conversations; send a 'prompt'";
                    return Err(Failure::new(ErrorCode::UnsupportedWork, message).param("messages"));
                }
            },
        };
        let special = tokenize.add_special_tokens;
        let tokens = match self {
            Self::Encoder(vocabulary) => vocabulary.encode(&text, special),
            Self::Writer(model) => model.encode(&text, if special { AddSpecial::Yes } else { AddSpecial::No }),
            Self::Nothing => return Err(no_tokens()),
        };
        let tokens = tokens.map_err(|error| refused(field, &error))?;
        let spelling = |id: &u32| match self {
            Self::Encoder(vocabulary) => vocabulary.spelling(*id),
            Self::Writer(model) => model.spelling(*id),
            Self::Nothing => String::new(),
        };
        let spellings = if tokenize.spellings {
            tokens.iter().map(spelling).collect()
        } else {
            Vec::new()
        };
        Ok(Tokenized { tokens, spellings })
    }

    fn detokenize(&self, ids: &[u32]) -> Result<String, Failure> {
        match self {
            Self::Encoder(vocabulary) => vocabulary.decode(ids).map_err(|error| refused("tokens", &error)),
            Self::Writer(model) => {
                let vocab = model.vocab_size();
                match ids.iter().find(|id| **id as usize >= vocab) {
                    Some(&id) => Err(refused("tokens", &InputError::TokenOutOfRange { id, vocab })),
                    None => Ok(model.decode(ids, SpecialTokens::Keep)),
                }
            }
            Self::Nothing => Err(no_tokens()),
        }
    }
}

fn refused(field: &str, error: &InputError) -> Failure {
    Failure::new(ErrorCode::InvalidField, format!("'{field}': {error}")).param(field)
}

fn no_tokens() -> Failure {
    let message = "the echo engine has no tokens of its own";
    Failure::new(ErrorCode::UnsupportedWork, message).param("model")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    fn writer() -> Texts {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano-translator");
        Texts::Writer(Arc::new(TextModel::load(&folder).unwrap()))
    }

    fn ask(texts: &Texts, question: Value) -> Result<TokensReply, Failure> {
        texts.reply(&serde_json::from_value(question).unwrap(), 0)
    }

    #[test]
    fn a_text_comes_back_from_its_tokens() {
        let texts = writer();
        let text = "def add(a: int) -> int:\n    return a";
        let question = json!({"tokenize": {"text": {"text": text}, "spellings": true}});
        let TokensReply::Tokenized(tokenized) = ask(&texts, question).unwrap() else {
            panic!("not tokens")
        };
        assert!(tokenized.tokens.len() > 3 && tokenized.spellings.len() == tokenized.tokens.len());
        let back = ask(&texts, json!({"detokenize": tokenized.tokens})).unwrap();
        assert_eq!(back, TokensReply::Detokenized(text.to_owned()));
        let chat = json!({"messages": [{"role": "user", "content": "hello"}]});
        let TokensReply::Tokenized(chat) = ask(&texts, json!({"tokenize": {"text": {"chat": chat}}})).unwrap() else {
            panic!("not tokens")
        };
        assert!(chat.spellings.is_empty());
        let shown = ask(&texts, json!({"detokenize": chat.tokens})).unwrap();
        let template = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(shown, TokensReply::Detokenized(template.to_owned()));
    }

    #[test]
    fn what_cannot_be_said_names_the_field() {
        let failure = ask(&writer(), json!({"detokenize": [4_000_000]})).unwrap_err();
        assert_eq!(
            (failure.code, failure.param.as_deref()),
            (ErrorCode::InvalidField, Some("tokens"))
        );
        let failure = ask(&Texts::Nothing, json!({"tokenize": {"text": {"text": "a"}}})).unwrap_err();
        assert_eq!(failure.code, ErrorCode::UnsupportedWork);
    }
}
