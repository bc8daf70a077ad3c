//! `POST /v1/responses`. Input: a body in OpenAI's shape. Output: a plan, and its text as a response or as the events of one; the
//! steps between are in `generate.rs`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use schemas::error::Failure;
use schemas::generate::{FinishReason, TextPart};
use schemas::http::{
    CompletionUsage, ResponsesBody, ResponsesEvent, ResponsesIncomplete, ResponsesInputDetails, ResponsesMessage,
    ResponsesOutputDetails, ResponsesOutputText, ResponsesRequest, ResponsesTextFormat, ResponsesUsage,
};
use schemas::policy::Grant;

use super::form::{Form, Heading};
use super::generate::{self, Prepared};
use super::{body, error, model, sse};
use crate::Gateway;
use crate::answer::Text;
use crate::call::Call;
use crate::plan::{self, ResponsesShape};

const ROUTE: &str = "responses";
const IN_PROGRESS: &str = "in_progress";
const COMPLETED: &str = "completed";
const INCOMPLETE: &str = "incomplete";

/// Answers a text or a conversation.
pub(super) async fn create(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    generate::serve(gateway, request, ROUTE, prepare).await
}

fn prepare(gateway: &Gateway, call: &Call, grant: &Grant, bytes: &[u8]) -> Result<Prepared, Failure> {
    let request: ResponsesRequest = body::parse(bytes)?;
    let card = model::find_plain(gateway, &request.model, grant)?;
    let (plan, shape) = plan::responses(request, &card, &grant.tenant)?;
    Ok(Prepared {
        plan,
        stream: shape.stream,
        form: Form::Responses(Box::new(ResponsesForm::new(Heading::new("resp", call, &card), shape))),
        card,
    })
}

/// How one response is written.
pub(super) struct ResponsesForm {
    heading: Heading,
    shape: ResponsesShape,
    /// Events written so far.
    written: u64,
    /// Text of the stream so far, and why it ended.
    text: String,
    finish: Option<FinishReason>,
}

impl ResponsesForm {
    /// A form that has written nothing.
    pub(super) fn new(heading: Heading, shape: ResponsesShape) -> Self {
        Self {
            heading,
            shape,
            written: 0,
            text: String::new(),
            finish: None,
        }
    }

    /// A whole answer.
    pub(super) fn whole(&self, text: &Text) -> ResponsesBody {
        let said = text.choices.first();
        let finish = said.and_then(|part| part.finish).unwrap_or(FinishReason::Stop);
        let message = self.message(said.map_or("", |part| &part.text), status(finish));
        self.body(vec![message], Some((finish, text.usage)))
    }

    /// The events of what is new.
    pub(super) fn part(&mut self, part: TextPart, out: &mut Vec<u8>) {
        self.open(out);
        self.finish = part.finish.or(self.finish);
        if part.text.is_empty() {
            return;
        }
        self.text.push_str(&part.text);
        let delta = ResponsesEvent {
            delta: Some(part.text),
            logprobs: Some(Vec::new()),
            ..self.of_text()
        };
        self.event("response.output_text.delta", delta, out);
    }

    /// The events before the first text, once.
    fn open(&mut self, out: &mut Vec<u8>) {
        if self.written > 0 {
            return;
        }
        let begun = || ResponsesEvent {
            response: Some(self.body(Vec::new(), None)),
            ..ResponsesEvent::default()
        };
        let (created, in_progress) = (begun(), begun());
        self.event("response.created", created, out);
        self.event("response.in_progress", in_progress, out);
        let mut item = self.message("", IN_PROGRESS);
        let part = item.content.pop();
        let added = self.of_item(item);
        self.event("response.output_item.added", added, out);
        let added = ResponsesEvent { part, ..self.of_text() };
        self.event("response.content_part.added", added, out);
    }

    /// The events of the end.
    pub(super) fn end(&mut self, usage: CompletionUsage, out: &mut Vec<u8>) {
        self.open(out);
        let text = std::mem::take(&mut self.text);
        let finish = self.finish.unwrap_or(FinishReason::Stop);
        let message = self.message(&text, status(finish));
        let done = ResponsesEvent {
            text: Some(text),
            logprobs: Some(Vec::new()),
            ..self.of_text()
        };
        self.event("response.output_text.done", done, out);
        let done = ResponsesEvent {
            part: message.content.first().cloned(),
            ..self.of_text()
        };
        self.event("response.content_part.done", done, out);
        let done = self.of_item(message.clone());
        self.event("response.output_item.done", done, out);
        let whole = ResponsesEvent {
            response: Some(self.body(vec![message], Some((finish, usage)))),
            ..ResponsesEvent::default()
        };
        let name = if status(finish) == COMPLETED {
            "response.completed"
        } else {
            "response.incomplete"
        };
        self.event(name, whole, out);
    }

    /// The event of an answer that cannot go on.
    pub(super) fn fail(&mut self, failure: Failure, out: &mut Vec<u8>) {
        let error = error::in_stream(failure).error;
        let event = ResponsesEvent {
            code: error.code.clone(),
            message: Some(error.message.clone()),
            param: error.param.clone(),
            error: Some(error),
            ..ResponsesEvent::default()
        };
        self.event("error", event, out);
    }

    fn event(&mut self, name: &str, event: ResponsesEvent, out: &mut Vec<u8>) {
        let event = ResponsesEvent {
            kind: name.to_owned(),
            sequence_number: self.written,
            ..event
        };
        self.written += 1;
        sse::named_event(out, name, &event);
    }

    /// An event about the one message.
    fn of_item(&self, item: ResponsesMessage) -> ResponsesEvent {
        ResponsesEvent {
            output_index: Some(0),
            item: Some(item),
            ..ResponsesEvent::default()
        }
    }

    /// An event about the one text of the one message.
    fn of_text(&self) -> ResponsesEvent {
        ResponsesEvent {
            output_index: Some(0),
            content_index: Some(0),
            item_id: Some(self.message_id()),
            ..ResponsesEvent::default()
        }
    }

    fn message_id(&self) -> String {
        format!("msg_{}", self.heading.id.trim_start_matches("resp-"))
    }

    fn message(&self, text: &str, status: &str) -> ResponsesMessage {
        ResponsesMessage {
            id: self.message_id(),
            kind: "message".to_owned(),
            status: status.to_owned(),
            role: "assistant".to_owned(),
            content: vec![ResponsesOutputText {
                kind: "output_text".to_owned(),
                text: text.to_owned(),
                annotations: Vec::new(),
                logprobs: Vec::new(),
            }],
        }
    }

    /// The response as it is now; with an end it is over.
    fn body(&self, output: Vec<ResponsesMessage>, end: Option<(FinishReason, CompletionUsage)>) -> ResponsesBody {
        let shape = &self.shape;
        let incomplete = end.and_then(|(finish, _)| incomplete(finish));
        ResponsesBody {
            id: self.heading.id.replacen('-', "_", 1),
            object: "response".to_owned(),
            created_at: self.heading.created,
            status: end.map_or(IN_PROGRESS, |(finish, _)| status(finish)).to_owned(),
            background: false,
            error: None,
            incomplete_details: incomplete.map(|reason| ResponsesIncomplete {
                reason: reason.to_owned(),
            }),
            instructions: shape.instructions.clone(),
            max_output_tokens: shape.max_output_tokens,
            metadata: shape.metadata.clone(),
            model: self.heading.model.clone(),
            output,
            parallel_tool_calls: true,
            previous_response_id: None,
            reasoning: shape.reasoning.clone(),
            service_tier: "default".to_owned(),
            store: false,
            temperature: shape.temperature,
            text: ResponsesTextFormat {
                format: shape.format.clone(),
            },
            tool_choice: "auto".to_owned(),
            tools: Vec::new(),
            top_logprobs: 0,
            top_p: shape.top_p,
            truncation: "disabled".to_owned(),
            usage: end.map(|(_, usage)| took(usage)),
            user: shape.user.clone(),
        }
    }
}

fn incomplete(finish: FinishReason) -> Option<&'static str> {
    match finish {
        FinishReason::Length => Some("max_output_tokens"),
        FinishReason::ContentFilter => Some("content_filter"),
        FinishReason::Stop | FinishReason::ToolCalls | FinishReason::Unknown => None,
    }
}

fn status(finish: FinishReason) -> &'static str {
    incomplete(finish).map_or(COMPLETED, |_| INCOMPLETE)
}

fn took(usage: CompletionUsage) -> ResponsesUsage {
    ResponsesUsage {
        input_tokens: usage.prompt_tokens,
        input_tokens_details: ResponsesInputDetails {
            cached_tokens: usage.prompt_tokens_details.cached_tokens,
            cache_write_tokens: 0,
        },
        output_tokens: usage.completion_tokens,
        output_tokens_details: ResponsesOutputDetails { reasoning_tokens: 0 },
        total_tokens: usage.total_tokens,
    }
}

#[cfg(test)]
mod tests {
    use schemas::error::ErrorCode;
    use serde_json::{Value, json};
    use testkit::SseReader;

    use super::*;

    fn form() -> ResponsesForm {
        let heading = Heading {
            id: "resp-1".to_owned(),
            created: 7,
            model: "m".to_owned(),
            fingerprint: "fp_1".to_owned(),
        };
        ResponsesForm::new(heading, ResponsesShape::default())
    }

    fn part(text: &str, finish: Option<FinishReason>) -> TextPart {
        TextPart {
            text: text.to_owned(),
            finish,
            ..TextPart::default()
        }
    }

    fn events(out: &[u8]) -> Vec<Value> {
        let events = SseReader::new().push(out).into_iter().map(|event| {
            let data: Value = serde_json::from_str(&event.data).unwrap();
            assert_eq!(
                event.event,
                data["type"].as_str().unwrap(),
                "the event has its type's name"
            );
            data
        });
        events.collect()
    }

    #[test]
    fn events_are_openais_in_their_order() {
        let (mut form, mut out) = (form(), Vec::new());
        form.part(part("a", None), &mut out);
        form.part(part("", None), &mut out);
        form.part(part("b", Some(FinishReason::Length)), &mut out);
        form.end(CompletionUsage::new(3, 2, 1), &mut out);
        let events = events(&out);
        let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
        assert_eq!(
            kinds,
            [
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                "response.content_part.added",
                "response.output_text.delta",
                "response.output_text.delta",
                "response.output_text.done",
                "response.content_part.done",
                "response.output_item.done",
                "response.incomplete",
            ]
        );
        let numbers: Vec<u64> = events
            .iter()
            .map(|event| event["sequence_number"].as_u64().unwrap())
            .collect();
        assert_eq!(numbers, (0..10).collect::<Vec<u64>>());
        assert_eq!(events[0]["response"]["status"], "in_progress");
        assert_eq!(events[0]["response"]["id"], "resp_1");
        let delta = json!({
            "type": "response.output_text.delta", "sequence_number": 4, "output_index": 0, "content_index": 0,
            "item_id": "msg_1", "delta": "a", "logprobs": []
        });
        assert_eq!(events[4], delta);
        assert_eq!(
            (&events[6]["text"], &events[7]["part"]["text"]),
            (&json!("ab"), &json!("ab"))
        );
        let last = &events[9]["response"];
        assert_eq!(last["incomplete_details"]["reason"], "max_output_tokens");
        assert_eq!(last["output"][0]["content"][0]["text"], "ab");
        assert_eq!(
            (&last["usage"]["total_tokens"], &last["error"]),
            (&json!(5), &Value::Null)
        );
    }

    #[test]
    fn an_answer_that_cannot_go_on_ends_in_one_error() {
        let (mut form, mut out) = (form(), Vec::new());
        form.fail(Failure::new(ErrorCode::Internal, "no"), &mut out);
        let events = events(&out);
        assert_eq!(events.len(), 1);
        assert_eq!(
            (&events[0]["type"], &events[0]["message"]),
            (&json!("error"), &json!("no"))
        );
        assert_eq!(events[0]["error"]["object"], "error");
    }
}
