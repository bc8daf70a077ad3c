//! `POST /v1/completions`. Input: a body in OpenAI's older shape. Output: a plan, and its text as a completion or its
//! chunks; the steps between are in `generate.rs`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use schemas::error::Failure;
use schemas::generate::{FinishReason, TextPart};
use schemas::http::{CompletionUsage, CompletionsRequest, TextChoice, TextCompletion};
use schemas::policy::Grant;

use super::form::{Form, Heading};
use super::generate::{self, Prepared};
use super::{body, logprobs, model, sse};
use crate::Gateway;
use crate::answer::Text;
use crate::call::Call;
use crate::plan::{self, TextShape};

const ROUTE: &str = "completions";

/// Goes on from a prompt.
pub(super) async fn create(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    generate::serve(gateway, request, ROUTE, prepare).await
}

fn prepare(gateway: &Gateway, call: &Call, grant: &Grant, bytes: &[u8]) -> Result<Prepared, Failure> {
    let request: CompletionsRequest = body::parse(bytes)?;
    let (card, ()) = model::find(gateway, std::iter::once((request.model.as_str(), ())), grant)?;
    let (plan, shape) = plan::completions(request, &card, &grant.tenant)?;
    Ok(Prepared {
        plan,
        stream: shape.stream,
        form: Form::Text(TextForm::new(Heading::new("cmpl", call, &card), shape)),
        card,
    })
}

/// How one completion is written.
pub(super) struct TextForm {
    heading: Heading,
    shape: TextShape,
    /// By choice: how many characters its tokens have had; none before its first chunk.
    offsets: Vec<Option<u64>>,
}

impl TextForm {
    /// A form that has written nothing.
    pub(super) fn new(heading: Heading, shape: TextShape) -> Self {
        Self {
            heading,
            shape,
            offsets: Vec::new(),
        }
    }

    /// A whole answer.
    pub(super) fn whole(&self, text: &Text) -> TextCompletion {
        let choices = text.choices.iter().map(|part| {
            let finish = Some(part.finish.unwrap_or(FinishReason::Stop));
            let whole = format!("{}{}", self.echo(), part.text);
            self.choice(part, whole, finish, &mut 0)
        });
        self.body(choices.collect(), Some(Some(text.usage)))
    }

    fn echo(&self) -> &str {
        self.shape.echo.as_deref().unwrap_or_default()
    }

    fn choice(&self, part: &TextPart, text: String, finish: Option<FinishReason>, offset: &mut u64) -> TextChoice {
        TextChoice {
            text,
            index: part.choice,
            logprobs: self.shape.logprobs.then(|| logprobs::plain(&part.logprobs, offset)),
            finish_reason: finish.map(|finish| finish.as_str().to_owned()),
        }
    }

    fn body(&self, choices: Vec<TextChoice>, usage: Option<Option<CompletionUsage>>) -> TextCompletion {
        TextCompletion {
            id: self.heading.id.clone(),
            object: "text_completion".to_owned(),
            created: self.heading.created,
            model: self.heading.model.clone(),
            system_fingerprint: self.heading.fingerprint.clone(),
            choices,
            usage,
        }
    }

    /// The event of what is new; parts without text, tokens or an end have none.
    pub(super) fn part(&mut self, part: &TextPart, out: &mut Vec<u8>) {
        let index = part.choice as usize;
        if self.offsets.len() <= index {
            self.offsets.resize(index + 1, None);
        }
        let echo = match self.offsets[index] {
            None => self.echo().to_owned(),
            Some(_) => String::new(),
        };
        let text = echo + &part.text;
        let said = !text.is_empty() || (self.shape.logprobs && !part.logprobs.is_empty());
        if !said && part.finish.is_none() {
            return;
        }
        let mut offset = self.offsets[index].unwrap_or(0);
        let choice = self.choice(part, text, part.finish, &mut offset);
        self.offsets[index] = Some(offset);
        sse::event(out, &self.body(vec![choice], self.shape.include_usage.then_some(None)));
    }

    /// The event that says what it took, if the client wants it.
    pub(super) fn usage(&self, usage: CompletionUsage, out: &mut Vec<u8>) {
        if self.shape.include_usage {
            sse::event(out, &self.body(Vec::new(), Some(Some(usage))));
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::generate::TokenLogprob;
    use serde_bytes::ByteBuf;
    use serde_json::{Value, json};
    use testkit::SseReader;

    use super::*;

    fn form(echo: Option<&str>, logprobs: bool) -> TextForm {
        let heading = Heading {
            id: "cmpl-1".to_owned(),
            created: 7,
            model: "m".to_owned(),
            fingerprint: "fp_1".to_owned(),
        };
        let shape = TextShape {
            stream: true,
            include_usage: true,
            logprobs,
            echo: echo.map(str::to_owned),
        };
        TextForm::new(heading, shape)
    }

    fn part(text: &str, finish: Option<FinishReason>) -> TextPart {
        TextPart {
            text: text.to_owned(),
            logprobs: vec![TokenLogprob {
                bytes: ByteBuf::from(text.as_bytes().to_vec()),
                logprob: -0.5,
                top: Vec::new(),
            }],
            finish,
            ..TextPart::default()
        }
    }

    #[test]
    fn chunks_are_openais() {
        let mut form = form(Some("p"), false);
        let mut out = Vec::new();
        form.part(&TextPart::default(), &mut out);
        form.part(&part("b", Some(FinishReason::Stop)), &mut out);
        form.usage(CompletionUsage::new(1, 1, 0), &mut out);
        let events = SseReader::new().push(&out);
        let events: Vec<Value> = events
            .iter()
            .map(|event| serde_json::from_str(&event.data).unwrap())
            .collect();
        let chunk = |text: &str, finish: Value| {
            json!({
                "id": "cmpl-1", "object": "text_completion", "created": 7, "model": "m", "system_fingerprint": "fp_1",
                "choices": [{"text": text, "index": 0, "logprobs": null, "finish_reason": finish}], "usage": null
            })
        };
        assert_eq!(events[..2], [chunk("p", Value::Null), chunk("b", json!("stop"))]);
        assert_eq!(
            (&events[2]["choices"], &events[2]["usage"]["total_tokens"]),
            (&json!([]), &json!(2))
        );
    }

    #[test]
    fn offsets_count_on_over_chunks() {
        let mut form = form(None, true);
        let mut out = Vec::new();
        form.part(&part("\u{e4}b", None), &mut out);
        form.part(&part("c", None), &mut out);
        let events = SseReader::new().push(&out);
        let last: Value = serde_json::from_str(&events[1].data).unwrap();
        let expected = json!({"tokens": ["c"], "token_logprobs": [-0.5], "top_logprobs": [{}], "text_offset": [2]});
        assert_eq!(last["choices"][0]["logprobs"], expected);
    }
}
