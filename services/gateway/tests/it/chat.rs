//! Whole answers: their shape, what is cached, what is refused.

use schemas::error::{ErrorCode, Failure};
use schemas::generate::{Constraint, Echo, Prompt, TextPart, TokenLogprob, ToolCall};
use serde_bytes::ByteBuf;
use serde_json::{Value, json};

use crate::mesh::Mesh;
use crate::worker::{EMBEDDER, MODEL, Worker, last};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn chat(more: &Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Say a."}]});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[tokio::test]
async fn a_whole_answer_has_openais_shape() {
    let mesh = Mesh::start(&[]).await;
    let mut worker = Worker::start(&mesh, "w1").await;
    let client = mesh.client();
    let body = chat(&json!({"n": 2, "logprobs": true, "top_logprobs": 1, "response_format": {"type": "json_object"}}));
    let asked = tokio::spawn(async move { client.post(CHAT, &body).await });
    let taken = worker.take().await;
    let id = taken.request_id().to_string();
    let task = taken.task();
    assert_eq!((task.choices, task.logprobs, task.stream), (2, Some(1), false));
    assert_eq!(task.constraint, Some(Constraint::JsonObject));
    assert!(matches!(&task.prompt, Prompt::Chat(chat) if chat.messages[0].role == "user"));
    let first = TextPart {
        logprobs: vec![TokenLogprob {
            bytes: ByteBuf::from(b"a".to_vec()),
            logprob: -0.5,
            top: Vec::new(),
        }],
        ..last(0, "a", &[5])
    };
    let second = TextPart {
        tool_calls: vec![ToolCall {
            id: "call_1".to_owned(),
            name: "f".to_owned(),
            arguments: "{}".to_owned(),
        }],
        finish: Some(schemas::generate::FinishReason::ToolCalls),
        ..last(1, "", &[6])
    };
    taken.done(vec![first, second], 7, 2).await;
    let answer = asked.await.unwrap().ok();
    assert_eq!(answer.headers["x-request-id"], id);
    assert_eq!(answer.headers["x-portalis-cache"], "miss");
    let token = json!({"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []});
    let call = json!({"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let mut body = answer.body;
    assert!(body["created"].take().as_u64().unwrap() > 1_700_000_000);
    assert!(body["system_fingerprint"].take().as_str().unwrap().starts_with("fp_"));
    let expected = json!({
        "id": format!("chatcmpl-{}", id.replace('-', "")),
        "object": "chat.completion",
        "created": null,
        "model": MODEL,
        "system_fingerprint": null,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "a", "refusal": null},
                "logprobs": {"content": [token], "refusal": null},
                "finish_reason": "stop"
            },
            {
                "index": 1,
                "message": {"role": "assistant", "content": null, "refusal": null, "tool_calls": [call]},
                "logprobs": {"content": [], "refusal": null},
                "finish_reason": "tool_calls"
            }
        ],
        "usage": {
            "prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9, "prompt_tokens_details": {"cached_tokens": 0}
        }
    });
    assert_eq!(body, expected);
    mesh.finish().await;
}

#[tokio::test]
async fn a_completion_has_the_older_shape_and_begins_with_its_prompt_if_asked() {
    let mesh = Mesh::start(&[]).await;
    let mut worker = Worker::start(&mesh, "w1").await;
    let client = mesh.client();
    let body = json!({"model": MODEL, "prompt": "fn ", "echo": true, "stop": ["\n"], "max_tokens": 3});
    let asked = tokio::spawn(async move { client.post(COMPLETIONS, &body).await });
    let taken = worker.take().await;
    assert_eq!(taken.task().prompt, Prompt::Text("fn ".to_owned()));
    assert_eq!(
        (taken.task().limits.max_tokens, taken.task().limits.stop.as_slice()),
        (Some(3), &["\n".to_owned()][..])
    );
    assert!(taken.task().echo);
    let echo = Echo {
        text: "fn ".to_owned(),
        tokens: Vec::new(),
    };
    let said = TextPart {
        echo: Some(echo),
        ..last(0, "main", &[5])
    };
    taken.done(vec![said], 2, 1).await;
    let body = asked.await.unwrap().ok().body;
    assert!(body["id"].as_str().unwrap().starts_with("cmpl-"), "{body}");
    assert_eq!(body["object"], "text_completion");
    let choice = json!({"text": "fn main", "index": 0, "logprobs": null, "finish_reason": "stop"});
    assert_eq!(body["choices"], json!([choice]));
    assert_eq!(body["usage"]["total_tokens"], 3);
    mesh.finish().await;
}

#[tokio::test]
async fn only_answers_that_would_be_the_same_again_are_cached() {
    let mesh = Mesh::start(&[]).await;
    let mut worker = Worker::start(&mesh, "w1").await;
    let ask = |more: Value| {
        let client = mesh.client();
        tokio::spawn(async move { client.post(CHAT, &chat(&more)).await })
    };
    for same in [json!({"temperature": 0}), json!({"seed": 7})] {
        let first = ask(same.clone());
        worker.take().await.done(vec![last(0, "a", &[5])], 7, 1).await;
        let first = first.await.unwrap().ok();
        let second = ask(same).await.unwrap().ok();
        assert_eq!(second.headers["x-portalis-cache"], "hit");
        assert_eq!(second.body["choices"], first.body["choices"]);
        assert_eq!(second.body["usage"], first.body["usage"]);
        assert_ne!(second.body["id"], first.body["id"], "each client has an id of its own");
    }
    for text in ["b", "c"] {
        let asked = ask(json!({"temperature": 0.5}));
        worker.take().await.done(vec![last(0, text, &[5])], 7, 1).await;
        let answer = asked.await.unwrap().ok();
        assert_eq!(answer.body["choices"][0]["message"]["content"], text);
        assert_eq!(answer.headers["x-portalis-cache"], "miss");
    }
    mesh.finish().await;
}

#[tokio::test]
async fn what_cannot_be_met_is_refused_with_the_field() {
    let mesh = Mesh::start(&[]).await;
    let mut worker = Worker::start(&mesh, "w1").await;
    let client = mesh.client();
    let refused = [
        (CHAT, chat(&json!({"temperature": 3})), 400, "temperature"),
        (CHAT, chat(&json!({"model": EMBEDDER})), 400, "model"),
        (CHAT, chat(&json!({"model": "nobody"})), 404, "model"),
        (CHAT, chat(&json!({"temprature": 1})), 422, "temprature"),
        (CHAT, chat(&json!({"stream": true, "n": 129})), 400, "n"),
        (CHAT, json!({"model": MODEL}), 400, "messages"),
        (
            CHAT,
            chat(&json!({"messages": [{"role": "user", "content": [{"type": 7}]}]})),
            400,
            "messages[0].content[0].type",
        ),
        (
            COMPLETIONS,
            json!({"model": MODEL, "prompt": ["a", ""]}),
            400,
            "prompt[1]",
        ),
        ("/v1/embeddings", json!({"model": MODEL, "input": "a"}), 400, "model"),
    ];
    for (path, body, status, param) in refused {
        let answer = client.post(path, &body).await;
        assert_eq!(
            (answer.status, answer.error("param")),
            (status, param),
            "{body}: {}",
            answer.body
        );
        assert_eq!(answer.error("type"), "invalid_request_error");
    }
    // What only the worker knows has a status of its own too, streamed or not.
    for stream in [false, true] {
        let client = mesh.client();
        let asked = tokio::spawn(async move { client.post(CHAT, &chat(&json!({"stream": stream}))).await });
        let failure =
            Failure::new(ErrorCode::InputTooLong, "the prompt has 70 tokens, the limit is 64").param("messages");
        worker.take().await.fail(failure).await;
        let answer = asked.await.unwrap();
        assert_eq!(
            (answer.status, answer.error("param")),
            (400, "messages"),
            "{}",
            answer.body
        );
    }
    mesh.finish().await;
}

#[tokio::test]
async fn deadlines_hold_under_both_names() {
    let mesh = Mesh::start(&[]).await;
    let _worker = Worker::start(&mesh, "w1").await;
    for header in ["x-request-timeout-ms: 50\r\n", "x-portalis-timeout-ms: 50\r\n"] {
        for stream in [false, true] {
            let answer = mesh
                .client()
                .post_with(CHAT, &chat(&json!({"stream": stream})), header)
                .await;
            assert_eq!(
                (answer.status, answer.error("code")),
                (504, "deadline_exceeded"),
                "{header}"
            );
        }
    }
    mesh.finish().await;
}
