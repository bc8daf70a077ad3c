//! The two shapes of generated text. Input: parts or a whole text. Output: bytes of a body, events of a stream.

use schemas::fleet::ModelCard;
use schemas::generate::TextPart;
use schemas::http::CompletionUsage;

use super::chat::ChatForm;
use super::completions::TextForm;
use crate::answer::Text;
use crate::call::Call;

/// How an answer is written.
pub(super) enum Form {
    /// As a chat completion.
    Chat(ChatForm),
    /// As a plain completion.
    Text(TextForm),
}

impl Form {
    /// The body of a whole answer.
    pub(super) fn whole(&self, text: &Text) -> Result<Vec<u8>, serde_json::Error> {
        match self {
            Self::Chat(form) => serde_json::to_vec(&form.whole(text)),
            Self::Text(form) => serde_json::to_vec(&form.whole(text)),
        }
    }

    /// Events of new parts.
    pub(super) fn parts(&mut self, parts: Vec<TextPart>, out: &mut Vec<u8>) {
        for part in parts {
            match self {
                Self::Chat(form) => form.part(part, out),
                Self::Text(form) => form.part(&part, out),
            }
        }
    }

    /// The last event of a stream whose client wants to know what it took.
    pub(super) fn usage(&self, usage: CompletionUsage, out: &mut Vec<u8>) {
        match self {
            Self::Chat(form) => form.usage(usage, out),
            Self::Text(form) => form.usage(usage, out),
        }
    }
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
