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
    /// By choice: how many characters its tokens have had.
    offsets: Vec<u64>,
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
        let best = best(&text.choices, self.shape.written, self.shape.given);
        let choices = (0_u32..).zip(best).map(|(index, part)| {
            let finish = Some(part.finish.unwrap_or(FinishReason::Stop));
            TextChoice {
                index,
                ..self.choice(part, finish, &mut 0)
            }
        });
        self.body(choices.collect(), Some(Some(text.usage)))
    }

    fn choice(&self, part: &TextPart, finish: Option<FinishReason>, offset: &mut u64) -> TextChoice {
        let echo = part.echo.as_ref();
        let tokens = echo.map_or(&[][..], |echo| &echo.tokens);
        TextChoice {
            text: format!("{}{}", echo.map_or("", |echo| &echo.text), part.text),
            index: part.choice,
            logprobs: (self.shape.logprobs).then(|| logprobs::plain(tokens, &part.logprobs, offset)),
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
            self.offsets.resize(index + 1, 0);
        }
        let said = !part.text.is_empty() || part.echo.is_some() || (self.shape.logprobs && !part.logprobs.is_empty());
        if !said && part.finish.is_none() {
            return;
        }
        let mut offset = self.offsets[index];
        let choice = self.choice(part, part.finish, &mut offset);
        self.offsets[index] = offset;
        sse::event(out, &self.body(vec![choice], self.shape.include_usage.then_some(None)));
    }

    /// The event that says what it took, if the client wants it.
    pub(super) fn usage(&self, usage: CompletionUsage, out: &mut Vec<u8>) {
        if self.shape.include_usage {
            sse::event(out, &self.body(Vec::new(), Some(Some(usage))));
        }
    }
}

/// Of each `written` parts, the answers to one prompt, the `given` likeliest per token; of equal ones the earlier.
fn best(parts: &[TextPart], written: u32, given: u32) -> impl Iterator<Item = &TextPart> {
    let mean = |part: &TextPart| {
        let sum: f64 = part.logprobs.iter().map(|token| f64::from(token.logprob)).sum();
        sum / part.logprobs.len().max(1) as f64
    };
    let groups = parts.chunks(usize::try_from(written.max(1)).unwrap_or(usize::MAX));
    groups.flat_map(move |group| {
        let mut group: Vec<&TextPart> = group.iter().collect();
        if given < written {
            group.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
            group.truncate(given as usize);
        }
        group
    })
}

#[cfg(test)]
mod tests {
    use schemas::generate::{Echo, TokenLogprob};
    use serde_bytes::ByteBuf;
    use serde_json::{Value, json};
    use testkit::SseReader;

    use super::*;

    fn form(logprobs: bool) -> TextForm {
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
            written: 1,
            given: 1,
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
        let mut form = form(false);
        let mut out = Vec::new();
        let echo = Echo {
            text: "p".to_owned(),
            tokens: Vec::new(),
        };
        let echoed = TextPart {
            echo: Some(echo),
            ..TextPart::default()
        };
        form.part(&TextPart::default(), &mut out);
        form.part(&echoed, &mut out);
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
        let mut form = form(true);
        let mut out = Vec::new();
        form.part(&part("\u{e4}b", None), &mut out);
        form.part(&part("c", None), &mut out);
        let events = SseReader::new().push(&out);
        let last: Value = serde_json::from_str(&events[1].data).unwrap();
        let expected = json!({"tokens": ["c"], "token_logprobs": [-0.5], "top_logprobs": [{}], "text_offset": [2]});
        assert_eq!(last["choices"][0]["logprobs"], expected);
    }

    #[test]
    fn the_likeliest_of_each_prompt_are_given_in_order() {
        let scored = |choice: u32, logprobs: &[f32]| TextPart {
            choice,
            logprobs: logprobs
                .iter()
                .map(|logprob| TokenLogprob {
                    logprob: *logprob,
                    ..TokenLogprob::default()
                })
                .collect(),
            ..TextPart::default()
        };
        let parts = [
            scored(0, &[-1.0, -1.0]),
            scored(1, &[-0.5]),
            scored(2, &[-0.7, -0.7]),
            scored(3, &[-0.2]),
            scored(4, &[-0.1]),
            scored(5, &[-0.3]),
        ];
        let chosen = |given| best(&parts, 3, given).map(|part| part.choice).collect::<Vec<_>>();
        assert_eq!(chosen(1), [1, 4]);
        assert_eq!(chosen(2), [1, 2, 4, 3]);
        assert_eq!(chosen(3), [0, 1, 2, 3, 4, 5]);
    }
}
