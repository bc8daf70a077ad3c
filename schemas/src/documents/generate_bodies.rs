//! Fixed values of the public bodies about generation. Input: nothing. Output: entries with examples.

use std::collections::BTreeMap;

use serde_json::json;

use super::generate_examples::WRITER;
use super::registry::{Entry, read, written};
use crate::http::{
    AnswerMessage, ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatContent, ChatDelta, ChatFunction,
    ChatFunctionCall, ChatLogprobs, ChatMessage, ChatRequest, ChatRole, ChatTokenLogprob, ChatTool, ChatToolCall,
    ChatToolChoice, ChatTopLogprob, CompletionPrompt, CompletionUsage, CompletionsRequest, EmbeddingsInput,
    JsonSchemaFormat, OneOrMany, ResponseFormat, ResponseFormatKind, StreamErrorBody, StreamErrorObject, StreamOptions,
    TextChoice, TextCompletion, TextLogprobs,
};
use crate::wire::WireError;
use crate::work::EmbedInput;

const CREATED_S: u64 = 1_767_225_600;
const FINGERPRINT: &str = "fp_0123456789";

pub(super) fn entries() -> Vec<Result<Entry, WireError>> {
    vec![
        read(chat_requests()),
        read(completion_requests()),
        written(chat_completion()),
        written(chat_chunk()),
        written(text_completion()),
        written(StreamErrorBody {
            error: StreamErrorObject {
                object: "error".to_owned(),
                message: "the deadline passed before the answer was there".to_owned(),
                kind: "timeout_error".to_owned(),
                param: None,
                code: Some("deadline_exceeded".to_owned()),
            },
        }),
    ]
}

fn chat_requests() -> Vec<(&'static str, ChatRequest)> {
    let user = |content: &str| ChatMessage {
        role: ChatRole::User,
        content: Some(ChatContent::Text(content.to_owned())),
        ..ChatMessage::default()
    };
    let request = |content: &str| ChatRequest {
        model: WRITER.to_owned(),
        messages: vec![user(content)],
        ..ChatRequest::default()
    };
    let code = "def double(x):\n    return 2 * x";
    let schema = ResponseFormat {
        kind: ResponseFormatKind::JsonSchema,
        json_schema: Some(JsonSchemaFormat {
            name: "answer".to_owned(),
            description: None,
            schema: Some(json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]})),
            strict: Some(true),
        }),
    };
    let tool = ChatTool {
        kind: "function".to_owned(),
        function: ChatFunction {
            name: "weather".to_owned(),
            description: Some("Weather of a place.".to_owned()),
            parameters: Some(json!({"type": "object", "properties": {"place": {"type": "string"}}})),
            strict: None,
        },
    };
    let streamed = ChatRequest {
        stream: Some(true),
        stream_options: Some(StreamOptions {
            include_usage: Some(true),
            include_obfuscation: None,
        }),
        temperature: Some(0.0),
        max_completion_tokens: Some(256),
        stop: Some(OneOrMany::One("```".to_owned())),
        ..request(code)
    };
    let structured = ChatRequest {
        response_format: Some(schema),
        logprobs: Some(true),
        top_logprobs: Some(2),
        seed: Some(7),
        ..request("Is water wet?")
    };
    let tools = ChatRequest {
        tools: Some(vec![tool]),
        tool_choice: Some(ChatToolChoice::Mode("auto".to_owned())),
        ..request("How warm is it in Ulm?")
    };
    vec![
        ("", request(code)),
        ("streamed", streamed),
        ("structured", structured),
        ("tools", tools),
    ]
}

fn completion_requests() -> Vec<(&'static str, CompletionsRequest)> {
    let request = |prompt| CompletionsRequest {
        model: WRITER.to_owned(),
        prompt: CompletionPrompt(EmbeddingsInput::One(prompt)),
        suffix: None,
        max_tokens: Some(64),
        temperature: Some(0.0),
        top_p: None,
        n: None,
        best_of: None,
        stream: None,
        stream_options: None,
        logprobs: None,
        echo: None,
        stop: None,
        presence_penalty: None,
        frequency_penalty: None,
        logit_bias: None,
        seed: None,
        user: None,
        response_format: None,
        top_k: None,
        min_p: None,
        repetition_penalty: None,
        min_tokens: None,
        ignore_eos: None,
        guided_json: None,
        guided_regex: None,
        guided_choice: None,
        guided_grammar: None,
        guided_decoding_backend: None,
        guided_whitespace_pattern: None,
        nvext: None,
    };
    let biased = CompletionsRequest {
        logit_bias: Some(BTreeMap::from([("7".to_owned(), -100.0)])),
        logprobs: Some(1),
        ..request(EmbedInput::Tokens(vec![1, 2, 3]))
    };
    vec![
        ("", request(EmbedInput::Text("fn double(".to_owned()))),
        ("tokens", biased),
    ]
}

fn tool_call() -> ChatToolCall {
    ChatToolCall {
        index: None,
        id: "call_1".to_owned(),
        kind: "function".to_owned(),
        function: ChatFunctionCall {
            name: "weather".to_owned(),
            arguments: "{\"place\":\"Ulm\"}".to_owned(),
        },
    }
}

fn logprobs() -> ChatLogprobs {
    ChatLogprobs {
        content: Some(vec![ChatTokenLogprob {
            token: "fn".to_owned(),
            logprob: -0.25,
            bytes: Some(b"fn".to_vec()),
            top_logprobs: vec![ChatTopLogprob {
                token: "fn".to_owned(),
                logprob: -0.25,
                bytes: Some(b"fn".to_vec()),
            }],
        }]),
        refusal: None,
    }
}

fn chat_completion() -> ChatCompletion {
    let message = |content: Option<&str>, tool_calls| AnswerMessage {
        role: "assistant".to_owned(),
        content: content.map(str::to_owned),
        refusal: None,
        tool_calls,
    };
    ChatCompletion {
        id: "chatcmpl-019b76dae00070008000000000000001".to_owned(),
        object: "chat.completion".to_owned(),
        created: CREATED_S,
        model: WRITER.to_owned(),
        choices: vec![
            ChatChoice {
                index: 0,
                message: message(Some("fn"), Vec::new()),
                logprobs: Some(logprobs()),
                finish_reason: "stop".to_owned(),
            },
            ChatChoice {
                index: 1,
                message: message(None, vec![tool_call()]),
                logprobs: None,
                finish_reason: "tool_calls".to_owned(),
            },
        ],
        usage: CompletionUsage::new(12, 4, 8),
        system_fingerprint: FINGERPRINT.to_owned(),
    }
}

fn chat_chunk() -> ChatChunk {
    ChatChunk {
        id: "chatcmpl-019b76dae00070008000000000000001".to_owned(),
        object: "chat.completion.chunk".to_owned(),
        created: CREATED_S,
        model: WRITER.to_owned(),
        system_fingerprint: FINGERPRINT.to_owned(),
        choices: vec![ChatChunkChoice {
            index: 0,
            delta: ChatDelta {
                role: Some("assistant".to_owned()),
                content: Some(String::new()),
                tool_calls: Vec::new(),
            },
            logprobs: None,
            finish_reason: None,
        }],
        usage: Some(None),
    }
}

fn text_completion() -> TextCompletion {
    TextCompletion {
        id: "cmpl-019b76dae00070008000000000000001".to_owned(),
        object: "text_completion".to_owned(),
        created: CREATED_S,
        model: WRITER.to_owned(),
        system_fingerprint: FINGERPRINT.to_owned(),
        choices: vec![TextChoice {
            text: "fn".to_owned(),
            index: 0,
            logprobs: Some(TextLogprobs {
                tokens: vec!["fn".to_owned()],
                token_logprobs: vec![Some(-0.25)],
                top_logprobs: vec![Some(BTreeMap::from([("fn".to_owned(), -0.25)]))],
                text_offset: vec![0],
            }),
            finish_reason: Some("length".to_owned()),
        }],
        usage: Some(Some(CompletionUsage::new(3, 1, 0))),
    }
}
