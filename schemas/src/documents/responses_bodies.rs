//! Fixed values of the bodies of `/v1/responses`. Input: nothing. Output: entries with examples.

use serde_json::Map;

use super::generate_examples::WRITER;
use super::registry::{Entry, read, written};
use crate::http::{
    ChatContent, ChatRole, ContentPart, ResponseFormatKind, ResponsesBody, ResponsesEvent, ResponsesFormat,
    ResponsesInput, ResponsesInputDetails, ResponsesItem, ResponsesMessage, ResponsesOutputDetails,
    ResponsesOutputText, ResponsesReasoning, ResponsesRequest, ResponsesTextFormat, ResponsesUsage,
};
use crate::wire::WireError;

const PYTHON: &str = "def double(x):\n    return 2 * x";
const RUST: &str = "fn double(x: i64) -> i64 {\n    2 * x\n}";
const MESSAGE_ID: &str = "msg_019b76dae00070008000000000000001";

pub(super) fn entries() -> Vec<Result<Entry, WireError>> {
    let delta = ResponsesEvent {
        kind: "response.output_text.delta".to_owned(),
        sequence_number: 4,
        output_index: Some(0),
        item_id: Some(MESSAGE_ID.to_owned()),
        content_index: Some(0),
        delta: Some("fn".to_owned()),
        logprobs: Some(Vec::new()),
        ..ResponsesEvent::default()
    };
    vec![read(requests()), written(response()), written(delta)]
}

fn requests() -> Vec<(&'static str, ResponsesRequest)> {
    let plain = ResponsesRequest {
        model: WRITER.to_owned(),
        input: ResponsesInput::Text(PYTHON.to_owned()),
        ..ResponsesRequest::default()
    };
    let part = ContentPart {
        kind: "input_text".to_owned(),
        text: Some(PYTHON.to_owned()),
        refusal: None,
    };
    let said = ResponsesItem {
        role: ChatRole::User,
        content: ChatContent::Parts(vec![part]),
        kind: Some("message".to_owned()),
        id: None,
        status: None,
        phase: None,
    };
    let streamed = ResponsesRequest {
        input: ResponsesInput::Items(vec![said]),
        instructions: Some("Translate to Rust.".to_owned()),
        temperature: Some(0.0),
        max_output_tokens: Some(256),
        stream: Some(true),
        ..plain.clone()
    };
    vec![("", plain), ("streamed", streamed)]
}

fn response() -> ResponsesBody {
    ResponsesBody {
        id: "resp_019b76dae00070008000000000000001".to_owned(),
        object: "response".to_owned(),
        created_at: 1_767_225_600,
        status: "completed".to_owned(),
        background: false,
        error: None,
        incomplete_details: None,
        instructions: None,
        max_output_tokens: None,
        metadata: Map::new(),
        model: WRITER.to_owned(),
        output: vec![ResponsesMessage {
            id: MESSAGE_ID.to_owned(),
            kind: "message".to_owned(),
            status: "completed".to_owned(),
            role: "assistant".to_owned(),
            content: vec![ResponsesOutputText {
                kind: "output_text".to_owned(),
                text: RUST.to_owned(),
                annotations: Vec::new(),
                logprobs: Vec::new(),
            }],
        }],
        parallel_tool_calls: true,
        previous_response_id: None,
        reasoning: ResponsesReasoning::default(),
        service_tier: "default".to_owned(),
        store: false,
        temperature: 1.0,
        text: ResponsesTextFormat {
            format: ResponsesFormat {
                kind: ResponseFormatKind::Text,
                name: None,
                description: None,
                schema: None,
                strict: None,
            },
        },
        tool_choice: "auto".to_owned(),
        tools: Vec::new(),
        top_logprobs: 0,
        top_p: 1.0,
        truncation: "disabled".to_owned(),
        usage: Some(ResponsesUsage {
            input_tokens: 12,
            input_tokens_details: ResponsesInputDetails {
                cached_tokens: 0,
                cache_write_tokens: 0,
            },
            output_tokens: 17,
            output_tokens_details: ResponsesOutputDetails { reasoning_tokens: 0 },
            total_tokens: 29,
        }),
        user: None,
    }
}
