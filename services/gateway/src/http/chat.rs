//! `POST /v1/chat/completions`. Input: a body in OpenAI's shape. Output: a plan, and its text as a chat completion or its
//! chunks; the steps between are in `generate.rs`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use schemas::error::Failure;
use schemas::generate::{FinishReason, TextPart, ToolCall};
use schemas::http::{
    AnswerMessage, ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatDelta, ChatFunctionCall,
    ChatFunctionDelta, ChatLogprobs, ChatRequest, ChatToolCall, ChatToolCallDelta, CompletionUsage,
};
use schemas::ids::RequestId;
use schemas::policy::Grant;

use super::form::{Form, Heading};
use super::generate::{self, Prepared};
use super::{body, logprobs, model, sse};
use crate::Gateway;
use crate::answer::Text;
use crate::call::Call;
use crate::plan::{self, ChatShape};

const ROUTE: &str = "chat";
const ASSISTANT: &str = "assistant";

/// Answers a conversation.
pub(super) async fn create(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    generate::serve(gateway, request, ROUTE, prepare).await
}

fn prepare(gateway: &Gateway, call: &Call, grant: &Grant, bytes: &[u8]) -> Result<Prepared, Failure> {
    let request: ChatRequest = body::parse(bytes)?;
    let (card, ()) = model::find(gateway, std::iter::once((request.model.as_str(), ())), grant)?;
    let (plan, shape) = plan::chat(request, &card, &grant.tenant)?;
    Ok(Prepared {
        plan,
        stream: shape.stream,
        form: Form::Chat(ChatForm::new(Heading::new("chatcmpl", call, &card), shape)),
        card,
    })
}

/// How one chat completion is written.
pub(super) struct ChatForm {
    heading: Heading,
    shape: ChatShape,
    /// Choices whose first chunk was written, and how many functions each has called.
    begun: Vec<Option<u32>>,
}

impl ChatForm {
    /// A form that has written nothing.
    pub(super) fn new(heading: Heading, shape: ChatShape) -> Self {
        Self {
            heading,
            shape,
            begun: Vec::new(),
        }
    }

    /// A whole answer.
    pub(super) fn whole(&self, text: &Text) -> ChatCompletion {
        ChatCompletion {
            id: self.heading.id.clone(),
            object: "chat.completion".to_owned(),
            created: self.heading.created,
            model: self.heading.model.clone(),
            choices: text.choices.iter().map(|part| self.choice(part)).collect(),
            usage: text.usage,
            system_fingerprint: self.heading.fingerprint.clone(),
        }
    }

    fn choice(&self, part: &TextPart) -> ChatChoice {
        // Only a model that called functions and said nothing has no content; one that said nothing said an empty text.
        let silent = part.text.is_empty() && !part.tool_calls.is_empty();
        ChatChoice {
            index: part.choice,
            message: AnswerMessage {
                role: ASSISTANT.to_owned(),
                content: (!silent).then(|| part.text.clone()),
                refusal: None,
                tool_calls: part.tool_calls.iter().map(tool_call).collect(),
            },
            logprobs: self.logprobs(part),
            finish_reason: part.finish.unwrap_or(FinishReason::Stop).as_str().to_owned(),
        }
    }

    fn logprobs(&self, part: &TextPart) -> Option<ChatLogprobs> {
        self.shape.logprobs.then(|| logprobs::chat(&part.logprobs))
    }

    /// The events of what is new: the role before all else of a choice, text, functions called, the end.
    pub(super) fn part(&mut self, part: TextPart, out: &mut Vec<u8>) {
        let index = part.choice as usize;
        if self.begun.len() <= index {
            self.begun.resize(index + 1, None);
        }
        if self.begun[index].is_none() {
            self.begun[index] = Some(0);
            let first = ChatDelta {
                role: Some(ASSISTANT.to_owned()),
                content: Some(String::new()),
                ..ChatDelta::default()
            };
            self.chunk(news(part.choice, first), out);
        }
        if !part.text.is_empty() || (self.shape.logprobs && !part.logprobs.is_empty()) {
            let logprobs = self.logprobs(&part);
            let said = ChatDelta {
                content: Some(part.text),
                ..ChatDelta::default()
            };
            let choice = ChatChunkChoice {
                logprobs,
                ..news(part.choice, said)
            };
            self.chunk(choice, out);
        }
        for call in &part.tool_calls {
            let place = self.begun[index].unwrap_or(0);
            self.begun[index] = Some(place + 1);
            for delta in tool_call_deltas(call, place) {
                let called = ChatDelta {
                    tool_calls: vec![delta],
                    ..ChatDelta::default()
                };
                self.chunk(news(part.choice, called), out);
            }
        }
        if let Some(finish) = part.finish {
            let choice = ChatChunkChoice {
                finish_reason: Some(finish.as_str().to_owned()),
                ..news(part.choice, ChatDelta::default())
            };
            self.chunk(choice, out);
        }
    }

    fn chunk(&self, choice: ChatChunkChoice, out: &mut Vec<u8>) {
        sse::event(out, &self.body(vec![choice], None));
    }

    fn body(&self, choices: Vec<ChatChunkChoice>, usage: Option<CompletionUsage>) -> ChatChunk {
        ChatChunk {
            id: self.heading.id.clone(),
            object: "chat.completion.chunk".to_owned(),
            created: self.heading.created,
            model: self.heading.model.clone(),
            system_fingerprint: self.heading.fingerprint.clone(),
            choices,
            usage: self.shape.include_usage.then_some(usage),
        }
    }

    /// The event that says what it took, if the client wants it.
    pub(super) fn usage(&self, usage: CompletionUsage, out: &mut Vec<u8>) {
        if self.shape.include_usage {
            sse::event(out, &self.body(Vec::new(), Some(usage)));
        }
    }
}

/// What is new in a choice, and nothing else said of it.
fn news(index: u32, delta: ChatDelta) -> ChatChunkChoice {
    ChatChunkChoice {
        index,
        delta,
        logprobs: None,
        finish_reason: None,
    }
}

/// A call as chunks have it: who is called, then with what.
fn tool_call_deltas(call: &ToolCall, index: u32) -> [ChatToolCallDelta; 2] {
    let ChatToolCall { id, kind, function, .. } = tool_call(call);
    let head = ChatToolCallDelta {
        index,
        id: Some(id),
        kind: Some(kind),
        function: ChatFunctionDelta {
            name: Some(function.name),
            arguments: String::new(),
        },
    };
    let arguments = ChatToolCallDelta {
        index,
        function: ChatFunctionDelta {
            name: None,
            arguments: function.arguments,
        },
        ..ChatToolCallDelta::default()
    };
    [head, arguments]
}

fn tool_call(call: &ToolCall) -> ChatToolCall {
    let id = if call.id.is_empty() {
        let made: String = RequestId::new().to_string().split('-').collect();
        format!("call_{made}")
    } else {
        call.id.clone()
    };
    ChatToolCall {
        index: None,
        id,
        kind: "function".to_owned(),
        function: ChatFunctionCall {
            name: call.name.clone(),
            arguments: call.arguments.clone(),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use testkit::SseReader;

    use super::*;

    fn form(include_usage: bool, logprobs: bool) -> ChatForm {
        let heading = Heading {
            id: "chatcmpl-1".to_owned(),
            created: 7,
            model: "m".to_owned(),
            fingerprint: "fp_1".to_owned(),
        };
        let shape = ChatShape {
            stream: true,
            include_usage,
            logprobs,
        };
        ChatForm::new(heading, shape)
    }

    fn part(choice: u32, text: &str, finish: Option<FinishReason>) -> TextPart {
        TextPart {
            choice,
            text: text.to_owned(),
            finish,
            ..TextPart::default()
        }
    }

    fn events(out: &[u8]) -> Vec<Value> {
        let events = SseReader::new().push(out);
        events
            .iter()
            .map(|event| serde_json::from_str(&event.data).unwrap())
            .collect()
    }

    #[test]
    fn chunks_are_openais() {
        let mut form = form(true, false);
        let mut out = Vec::new();
        form.part(part(0, "a", None), &mut out);
        form.part(part(0, "b", Some(FinishReason::Length)), &mut out);
        form.usage(CompletionUsage::new(3, 2, 0), &mut out);
        let chunk = |choices: Value, usage: Value| {
            json!({
                "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "m",
                "system_fingerprint": "fp_1", "choices": choices, "usage": usage
            })
        };
        let choice = |delta: Value, finish: Value| {
            let choices = json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]);
            chunk(choices, Value::Null)
        };
        let usage = json!({
            "prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 0}
        });
        let expected = [
            choice(json!({"role": "assistant", "content": ""}), Value::Null),
            choice(json!({"content": "a"}), Value::Null),
            choice(json!({"content": "b"}), Value::Null),
            choice(json!({}), json!("length")),
            chunk(json!([]), usage),
        ];
        assert_eq!(events(&out), expected);
        let mut without = Vec::new();
        let mut form = super::tests::form(false, false);
        form.part(part(1, "a", None), &mut without);
        form.usage(CompletionUsage::default(), &mut without);
        let events = events(&without);
        assert_eq!(events.len(), 2);
        assert!(events.iter().all(|event| event.get("usage").is_none()));
    }

    #[test]
    fn functions_are_called_by_position() {
        let call = |name: &str| ToolCall {
            id: String::new(),
            name: name.to_owned(),
            arguments: "{}".to_owned(),
        };
        let called = |name| TextPart {
            tool_calls: vec![call(name)],
            ..part(0, "", None)
        };
        let mut out = Vec::new();
        let mut form = form(false, false);
        form.part(called("f"), &mut out);
        form.part(called("g"), &mut out);
        form.part(part(0, "", Some(FinishReason::ToolCalls)), &mut out);
        let events = events(&out);
        for (pair, (index, name)) in events[1..5].chunks(2).zip([(0, "f"), (1, "g")]) {
            let call = |event: &Value| event["choices"][0]["delta"]["tool_calls"][0].clone();
            let (mut head, arguments) = (call(&pair[0]), call(&pair[1]));
            assert!(head["id"].take().as_str().unwrap().starts_with("call_"));
            let function = json!({"name": name, "arguments": ""});
            assert_eq!(
                head,
                json!({"index": index, "id": null, "type": "function", "function": function})
            );
            assert_eq!(arguments, json!({"index": index, "function": {"arguments": "{}"}}));
        }
        assert_eq!(events[5]["choices"][0]["finish_reason"], "tool_calls");
        let whole = form.choice(&TextPart {
            finish: Some(FinishReason::ToolCalls),
            ..called("f")
        });
        assert_eq!(whole.message.content, None);
        let json = serde_json::to_value(&whole).unwrap();
        assert!(json["message"]["tool_calls"][0].get("index").is_none());
        assert_eq!(json["message"]["refusal"], Value::Null);
        let quiet = serde_json::to_value(form.choice(&part(0, "", None))).unwrap();
        assert_eq!(
            quiet["message"],
            json!({"role": "assistant", "content": "", "refusal": null})
        );
    }
}
