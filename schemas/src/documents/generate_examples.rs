//! Fixed values of the messages about generation. Input: nothing. Output: examples of work and frames; their golden bytes
//! never change.

use std::collections::BTreeMap;

use serde_bytes::ByteBuf;
use serde_json::json;

use super::message_examples::{NOW_MS, frame, request_id};
use crate::cache::CachedText;
use crate::generate::{
    ChatPrompt, Constraint, Echo, FinishReason, GenerateTask, Message, OutputLimits, Prompt, PromptToken, Resume,
    Sampling, TextPart, TokenBias, TokenLogprob, Tool, ToolCall, ToolChoice, ToolFunction, TopToken,
};
use crate::reply::{Done, Frame, ReplyFrame, Usage};
use crate::work::{Task, Work};

pub(super) const WRITER: &str = "nano-translator";

fn request(task: GenerateTask) -> Work {
    Work {
        request_id: request_id(),
        model: WRITER.to_owned(),
        submitted_at_ms: NOW_MS,
        task: Task::Generate(Box::new(task)),
    }
}

fn plain(prompt: Prompt) -> GenerateTask {
    GenerateTask {
        prompt,
        more_prompts: Vec::new(),
        choices: 1,
        sampling: Sampling::default(),
        limits: OutputLimits::default(),
        logprobs: None,
        echo: false,
        constraint: None,
        constraint_field: None,
        stream: false,
        resume: Vec::new(),
        attempts_before: 0,
    }
}

fn message(role: &str, content: &str) -> Message {
    Message {
        role: role.to_owned(),
        content: Some(content.to_owned()),
        ..Message::default()
    }
}

/// Examples of `Work`.
pub(super) fn work() -> Vec<(&'static str, Work)> {
    let prompt = Prompt::Chat(ChatPrompt {
        messages: vec![message("user", "def double(x):\n    return 2 * x")],
        add_generation_prompt: true,
        parallel_tool_calls: true,
        ..ChatPrompt::default()
    });
    let resumed = GenerateTask {
        sampling: Sampling {
            temperature: 0.5,
            seed: Some(7),
            logit_bias: vec![TokenBias { token: 3, bias: -100.0 }],
            ..Sampling::default()
        },
        limits: OutputLimits {
            max_tokens: Some(64),
            stop: vec!["\n\n".to_owned()],
            ..OutputLimits::default()
        },
        choices: 2,
        logprobs: Some(1),
        constraint: Some(Constraint::Choice(vec!["yes".to_owned(), "no".to_owned()])),
        stream: true,
        resume: vec![
            Resume {
                choice: 0,
                tokens: vec![17, 4],
                finish: Some(FinishReason::Stop),
            },
            Resume {
                choice: 1,
                tokens: vec![9],
                finish: None,
            },
        ],
        attempts_before: 1,
        ..plain(Prompt::Text("Is it?".to_owned()))
    };
    let several = GenerateTask {
        more_prompts: vec![Prompt::Tokens(vec![1, 2]), Prompt::Text("b".to_owned())],
        echo: true,
        logprobs: Some(0),
        ..plain(Prompt::Text("a".to_owned()))
    };
    let constrained = GenerateTask {
        constraint: Some(Constraint::Regex("[0-9]+".to_owned())),
        constraint_field: Some("guided_regex".to_owned()),
        ..plain(Prompt::Text("x = ".to_owned()))
    };
    vec![
        ("several_prompts", request(several)),
        ("constrained", request(constrained)),
        ("chat", request(plain(prompt))),
        ("tools", request(plain(with_tools()))),
        ("completion", request(plain(Prompt::Tokens(vec![1, 2, 3])))),
        ("resumed", request(resumed)),
    ]
}

fn with_tools() -> Prompt {
    let call = Message {
        role: "assistant".to_owned(),
        tool_calls: vec![tool_call()],
        ..Message::default()
    };
    let answer = Message {
        tool_call_id: Some("call_1".to_owned()),
        ..message("tool", "21 degrees")
    };
    let tool = Tool {
        kind: "function".to_owned(),
        function: ToolFunction {
            name: "weather".to_owned(),
            description: Some("Weather of a place.".to_owned()),
            parameters: Some(json!({"type": "object", "properties": {"place": {"type": "string"}}})),
            strict: None,
        },
    };
    Prompt::Chat(ChatPrompt {
        messages: vec![message("user", "How warm is it in Ulm?"), call, answer],
        tools: vec![tool],
        tool_choice: ToolChoice::Required,
        parallel_tool_calls: false,
        add_generation_prompt: true,
        continue_final_message: false,
        template_arguments: BTreeMap::from([("enable_thinking".to_owned(), json!(false))]),
    })
}

fn tool_call() -> ToolCall {
    ToolCall {
        id: "call_1".to_owned(),
        name: "weather".to_owned(),
        arguments: "{\"place\":\"Ulm\"}".to_owned(),
    }
}

/// Examples of `ReplyFrame`.
pub(super) fn frames() -> Vec<(&'static str, ReplyFrame)> {
    let token = |bytes: &[u8], logprob| TopToken {
        bytes: ByteBuf::from(bytes.to_vec()),
        logprob,
    };
    let first = TextPart {
        choice: 0,
        text: "fn".to_owned(),
        tokens: vec![17],
        logprobs: vec![TokenLogprob {
            bytes: ByteBuf::from(b"fn".to_vec()),
            logprob: -0.25,
            top: vec![token(b"fn", -0.25), token(b"pub", -1.5)],
        }],
        ..TextPart::default()
    };
    let second = TextPart {
        choice: 1,
        tokens: vec![9],
        tool_calls: vec![tool_call()],
        finish: Some(FinishReason::ToolCalls),
        ..TextPart::default()
    };
    let last = TextPart {
        choice: 0,
        text: " double".to_owned(),
        tokens: vec![4, 2],
        finish: Some(FinishReason::Stop),
        ..TextPart::default()
    };
    let echoed = TextPart {
        echo: Some(Echo {
            text: "a b".to_owned(),
            tokens: vec![
                PromptToken {
                    bytes: ByteBuf::from(b"a".to_vec()),
                    ..PromptToken::default()
                },
                PromptToken {
                    bytes: ByteBuf::from(b" b".to_vec()),
                    logprob: Some(-0.5),
                    top: vec![token(b" b", -0.5)],
                },
            ],
        }),
        tokens: vec![4],
        ..TextPart::default()
    };
    let done = Frame::Done(Done {
        text: vec![last],
        usage: Usage {
            input_tokens: 12,
            output_tokens: 4,
            cached_tokens: 8,
            queue_us: 850,
            compute_ns: 4_200_000,
        },
        ..Done::default()
    });
    vec![
        ("text", frame(1, Frame::Text(vec![first, second]))),
        ("done_text", frame(2, done)),
        ("echo_text", frame(1, Frame::Text(vec![echoed]))),
    ]
}

/// What the caches keep of a text.
pub(super) fn cached() -> CachedText {
    CachedText {
        choices: vec![TextPart {
            choice: 0,
            text: "fn double".to_owned(),
            tokens: vec![17, 4, 2],
            finish: Some(FinishReason::Stop),
            ..TextPart::default()
        }],
        input_tokens: 12,
        output_tokens: 3,
    }
}
