//! Responses: the whole, the events of a stream, and how each ends.

use schemas::error::{ErrorCode, Failure};
use schemas::generate::{FinishReason, Prompt, TextPart};
use serde_json::{Value, json};

use crate::client::Stream;
use crate::mesh::Mesh;
use crate::worker::{EMBEDDER, MODEL, Taken, Worker, last};

const RESPONSES: &str = "/v1/responses";

#[tokio::test]
async fn a_whole_response_has_openais_shape() {
    let mesh = Mesh::start(&[]).await;
    let mut worker = Worker::start(&mesh, "w1").await;
    let client = mesh.client();
    let body = json!({
        "model": MODEL, "input": "Say a.", "instructions": "Be brief.", "max_output_tokens": 9, "user": "u",
        "reasoning": {"effort": "low"}
    });
    let asked = tokio::spawn(async move { client.post(RESPONSES, &body).await });
    let taken = worker.take().await;
    let id = taken.request_id().to_string().replace('-', "");
    let Prompt::Chat(chat) = &taken.task().prompt else {
        panic!("not a chat")
    };
    let said: Vec<_> = chat
        .messages
        .iter()
        .map(|said| (said.role.as_str(), said.content.as_deref()))
        .collect();
    assert_eq!(said, [("system", Some("Be brief.")), ("user", Some("Say a."))]);
    assert_eq!(chat.template_arguments["reasoning_effort"], "low");
    assert_eq!(taken.task().limits.max_tokens, Some(9));
    let cut = TextPart {
        finish: Some(FinishReason::Length),
        ..last(0, "a", &[5])
    };
    taken.done(vec![cut], 7, 9).await;
    let mut body = asked.await.unwrap().ok().body;
    assert!(body["created_at"].take().as_u64().unwrap() > 1_700_000_000);
    let text = json!({"type": "output_text", "text": "a", "annotations": [], "logprobs": []});
    let message = json!({
        "id": format!("msg_{id}"), "type": "message", "status": "incomplete", "role": "assistant", "content": [text]
    });
    let expected = json!({
        "id": format!("resp_{id}"), "object": "response", "created_at": null, "status": "incomplete",
        "background": false, "error": null, "incomplete_details": {"reason": "max_output_tokens"},
        "instructions": "Be brief.", "max_output_tokens": 9, "metadata": {}, "model": MODEL, "output": [message],
        "parallel_tool_calls": true, "previous_response_id": null, "reasoning": {"effort": "low"},
        "service_tier": "default", "store": false, "temperature": 1.0, "text": {"format": {"type": "text"}},
        "tool_choice": "auto", "tools": [], "top_logprobs": 0, "top_p": 1.0, "truncation": "disabled",
        "usage": {
            "input_tokens": 7, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 9, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 16
        },
        "user": "u"
    });
    assert_eq!(body, expected);
    mesh.finish().await;
}

/// A stream whose first part was sent.
async fn begin(mesh: &Mesh, worker: &mut Worker) -> (Stream, Taken) {
    let (client, body) = (
        mesh.client(),
        json!({"model": MODEL, "input": "Say a.", "stream": true}),
    );
    let asked = tokio::spawn(async move { client.stream(RESPONSES, &body).await });
    let mut taken = worker.take().await;
    taken.say(0, "one", &[1]).await;
    (asked.await.unwrap(), taken)
}

async fn kinds(stream: &mut Stream, count: usize) -> Vec<String> {
    let mut kinds = Vec::new();
    for _ in 0..count {
        kinds.push(stream.json().await["type"].as_str().unwrap().to_owned());
    }
    kinds
}

#[tokio::test]
async fn events_come_one_by_one_and_nothing_follows_the_last() {
    let mesh = Mesh::start(&[]).await;
    let mut worker = Worker::start(&mesh, "w1").await;
    let (mut stream, mut taken) = begin(&mesh, &mut worker).await;
    assert_eq!(stream.headers["content-type"], "text/event-stream; charset=utf-8");
    let opening = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ];
    assert_eq!(kinds(&mut stream, 4).await, opening);
    assert_eq!(stream.json().await["delta"], "one");
    taken.say(0, " two", &[2]).await;
    assert_eq!(stream.json().await["delta"], " two");
    taken.done(vec![last(0, "!", &[9])], 7, 3).await;
    assert_eq!(stream.json().await["delta"], "!");
    assert_eq!(stream.json().await["text"], "one two!");
    assert_eq!(
        kinds(&mut stream, 2).await,
        ["response.content_part.done", "response.output_item.done"]
    );
    let whole = stream.json().await;
    assert_eq!(
        (&whole["type"], &whole["sequence_number"]),
        (&json!("response.completed"), &json!(10))
    );
    assert_eq!(whole["response"]["output"][0]["content"][0]["text"], "one two!");
    assert_eq!(whole["response"]["usage"]["total_tokens"], 10);
    assert_eq!(
        stream.rest().await,
        Vec::<String>::new(),
        "a client of responses expects no [DONE]"
    );
    mesh.finish().await;
}

#[tokio::test]
async fn an_answer_that_cannot_go_on_ends_in_an_error() {
    let mesh = Mesh::start(&[]).await;
    let mut worker = Worker::start(&mesh, "w1").await;
    let (mut stream, taken) = begin(&mesh, &mut worker).await;
    taken.fail(Failure::new(ErrorCode::Internal, "broken")).await;
    let events = stream.rest().await;
    let end: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(
        (&end["type"], &end["message"], &end["code"]),
        (&json!("error"), &json!("broken"), &json!("internal"))
    );
    assert_eq!(end["error"]["message"], "broken");
    mesh.finish().await;
}

#[tokio::test]
async fn a_failure_before_the_first_text_names_the_field_as_the_client_knows_it() {
    let mesh = Mesh::start(&[]).await;
    let mut worker = Worker::start(&mesh, "w1").await;
    for stream in [false, true] {
        let (client, body) = (
            mesh.client(),
            json!({"model": MODEL, "input": "Say a.", "stream": stream}),
        );
        let asked = tokio::spawn(async move { client.post(RESPONSES, &body).await });
        let taken = worker.take().await;
        taken
            .fail(Failure::new(ErrorCode::InputTooLong, "too long").param("messages"))
            .await;
        let answer = asked.await.unwrap();
        assert_eq!(
            (answer.status, answer.error("param")),
            (400, "input"),
            "{}",
            answer.body
        );
    }
    let embeds = mesh
        .client()
        .post(RESPONSES, &json!({"model": EMBEDDER, "input": "a"}))
        .await;
    assert_eq!((embeds.status, embeds.error("param")), (400, "model"));
    mesh.finish().await;
}
