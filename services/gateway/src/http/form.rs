//! The shapes of generated text. Input: parts or a whole text. Output: bytes of a body, events of a stream.

use schemas::error::Failure;
use schemas::fleet::ModelCard;
use schemas::generate::TextPart;
use schemas::http::CompletionUsage;

use super::chat::ChatForm;
use super::completions::TextForm;
use super::responses::ResponsesForm;
use super::{error, sse};
use crate::answer::Text;
use crate::call::Call;

/// How an answer is written.
pub(super) enum Form {
    /// As a chat completion.
    Chat(ChatForm),
    /// As a plain completion.
    Text(TextForm),
    /// As a response.
    Responses(Box<ResponsesForm>),
}

impl Form {
    /// The body of a whole answer.
    pub(super) fn whole(&self, text: &Text) -> Result<Vec<u8>, serde_json::Error> {
        match self {
            Self::Chat(form) => serde_json::to_vec(&form.whole(text)),
            Self::Text(form) => serde_json::to_vec(&form.whole(text)),
            Self::Responses(form) => serde_json::to_vec(&form.whole(text)),
        }
    }

    /// Events of new parts.
    pub(super) fn parts(&mut self, parts: Vec<TextPart>, out: &mut Vec<u8>) {
        for part in parts {
            match self {
                Self::Chat(form) => form.part(part, out),
                Self::Text(form) => form.part(&part, out),
                Self::Responses(form) => form.part(part, out),
            }
        }
    }

    /// The last events of a stream.
    pub(super) fn end(&mut self, usage: CompletionUsage, out: &mut Vec<u8>) {
        match self {
            Self::Chat(form) => form.usage(usage, out),
            Self::Text(form) => form.usage(usage, out),
            // Its last event is the end of the stream.
            Self::Responses(form) => return form.end(usage, out),
        }
        out.extend_from_slice(sse::DONE);
    }

    /// The last event of a stream that cannot go on.
    pub(super) fn fail(&mut self, failure: Failure, out: &mut Vec<u8>) {
        match self {
            Self::Chat(_) | Self::Text(_) => sse::event(out, &error::in_stream(failure)),
            Self::Responses(form) => form.fail(blamed(failure), out),
        }
    }

    /// A failure that names the field as this shape has it: workers know conversations by their name in a chat.
    pub(super) fn blame(&self, failure: Failure) -> Failure {
        match self {
            Self::Chat(_) | Self::Text(_) => failure,
            Self::Responses(_) => blamed(failure),
        }
    }
}

fn blamed(mut failure: Failure) -> Failure {
    failure.param = failure.param.map(|param| match param.as_str() {
        "messages" => "input".to_owned(),
        "response_format" => "text.format".to_owned(),
        _ => param,
    });
    failure
}

/// What stands in every body and every chunk of one answer.
#[derive(Debug, Clone)]
pub(super) struct Heading {
    /// The answer's id.
    pub(super) id: String,
    /// When the request came, Unix seconds.
    pub(super) created: u64,
    /// The model's true name.
    pub(super) model: String,
    /// Stands for weights and number format.
    pub(super) fingerprint: String,
}

impl Heading {
    /// The heading of an answer, its id from the request's, so that logs can be searched for either.
    pub(super) fn new(prefix: &str, call: &Call, card: &ModelCard) -> Self {
        let mut hasher = blake3::Hasher::new();
        for text in [&card.name, &card.revision, &card.precision] {
            hasher.update(text.as_bytes());
            hasher.update(&[0]);
        }
        let id: String = call.request_id.to_string().split('-').collect();
        Self {
            id: format!("{prefix}-{id}"),
            created: call.received_at_ms / 1_000,
            model: card.name.clone(),
            fingerprint: format!("fp_{}", &hasher.finalize().to_hex()[..10]),
        }
    }
}
