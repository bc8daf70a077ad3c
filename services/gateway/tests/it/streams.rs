//! Streamed answers: every chunk as it comes, the end, errors on the way, clients that leave or do not read.

use schemas::error::{ErrorCode, Failure};
use schemas::reply::Frame;
use schemas::work::Cancel;
use schemas::{subjects, wire};
use serde_json::{Value, json};

use crate::client::chat_texts;
use crate::mesh::{DEADLINE, Mesh};
use crate::worker::{MODEL, Taken, Worker, last, part};

const CHAT: &str = "/v1/chat/completions";

fn streamed(more: &Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Say a."}], "stream": true});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// A stream whose first part was sent.
async fn begin(mesh: &Mesh, worker: &mut Worker, more: &Value) -> (crate::client::Stream, Taken) {
    let (client, body) = (mesh.client(), streamed(more));
    let asked = tokio::spawn(async move { client.stream(CHAT, &body).await });
    let mut taken = worker.take().await;
    assert!(taken.task().stream);
    taken.say(0, "one", &[1]).await;
    (asked.await.unwrap(), taken)
}

#[tokio::test]
async fn chunks_come_one_by_one() {
    let mesh = Mesh::start(&[]).await;
    let mut worker = Worker::start(&mesh, "w1").await;
    let usage = json!({"stream_options": {"include_usage": true}});
    let (mut stream, mut taken) = begin(&mesh, &mut worker, &usage).await;
    assert_eq!(stream.headers["content-type"], "text/event-stream; charset=utf-8");
    assert_eq!(stream.headers["x-request-id"], taken.request_id().to_string());
    let first = stream.json().await;
    assert_eq!(first["object"], "chat.completion.chunk");
    assert_eq!(
        first["choices"][0]["delta"],
        json!({"role": "assistant", "content": ""})
    );
    assert_eq!((&first["usage"], first.get("usage").is_some()), (&Value::Null, true));
    assert_eq!(stream.json().await["choices"][0]["delta"], json!({"content": "one"}));
    // Each word is sent only when the one before was read, so none waits for the next.
    for (token, word) in ["two", "three", "\u{1f600}"].into_iter().enumerate() {
        taken.say(0, word, &[2 + u32::try_from(token).unwrap()]).await;
        let chunk = stream.json().await;
        assert_eq!(chunk["choices"][0]["delta"], json!({"content": word}));
        assert_eq!((&chunk["id"], &chunk["created"]), (&first["id"], &first["created"]));
    }
    taken.done(vec![last(0, "!", &[9])], 7, 5).await;
    assert_eq!(stream.json().await["choices"][0]["delta"], json!({"content": "!"}));
    let end = stream.json().await;
    assert_eq!(
        (&end["choices"][0]["delta"], &end["choices"][0]["finish_reason"]),
        (&json!({}), &json!("stop"))
    );
    let usage = stream.json().await;
    assert_eq!(
        (&usage["choices"], &usage["usage"]["total_tokens"]),
        (&json!([]), &json!(12))
    );
    assert_eq!(stream.rest().await, ["[DONE]"]);
    assert_eq!(mesh.metric("portalis_gateway_first_text_seconds_count", "chat"), 1.0);
    mesh.finish().await;
}

#[tokio::test]
async fn choices_are_told_apart_and_completions_have_their_own_chunks() {
    let mesh = Mesh::start(&[]).await;
    let mut worker = Worker::start(&mesh, "w1").await;
    let (mut stream, mut taken) = begin(&mesh, &mut worker, &json!({"n": 2})).await;
    let both = vec![part(1, "uno", &[11]), part(0, " two", &[2])];
    taken.frame(Frame::Text(both)).await;
    taken
        .done(vec![last(0, "", &[3]), last(1, " dos", &[12, 13])], 7, 6)
        .await;
    let events = stream.rest().await;
    let texts = chat_texts(&events);
    assert_eq!(texts[&0], ("one two".to_owned(), Some("stop".to_owned())));
    assert_eq!(texts[&1], ("uno dos".to_owned(), Some("stop".to_owned())));
    assert_eq!(events.last().unwrap(), "[DONE]");
    assert!(!events[0].contains("usage"));

    let client = mesh.client();
    let body = json!({"model": MODEL, "prompt": [1, 2], "stream": true});
    let asked = tokio::spawn(async move { client.stream("/v1/completions", &body).await });
    let mut taken = worker.take().await;
    taken.say(0, "a", &[1]).await;
    let mut stream = asked.await.unwrap();
    let chunk = stream.json().await;
    assert_eq!(chunk["object"], "text_completion");
    let choice = json!({"text": "a", "index": 0, "logprobs": null, "finish_reason": null});
    assert_eq!(chunk["choices"], json!([choice]));
    taken.done(vec![last(0, "b", &[2])], 2, 2).await;
    let choice = json!({"text": "b", "index": 0, "logprobs": null, "finish_reason": "stop"});
    assert_eq!(stream.json().await["choices"], json!([choice]));
    assert_eq!(stream.rest().await, ["[DONE]"]);
    mesh.finish().await;
}

#[tokio::test]
async fn silence_is_broken_by_comments() {
    let mesh = Mesh::start(&["stream.keep_alive_ms=20"]).await;
    let mut worker = Worker::start(&mesh, "w1").await;
    // The head does not wait for the first text for ever.
    let mut stream = mesh.client().stream(CHAT, &streamed(&json!({}))).await;
    stream.comments(1).await;
    let mut taken = worker.take().await;
    stream.comments(3).await;
    taken.say(0, "a", &[1]).await;
    assert_eq!(stream.json().await["choices"][0]["delta"]["role"], "assistant");
    stream.comments(5).await;
    taken.done(vec![last(0, "b", &[2])], 7, 2).await;
    let events = stream.rest().await;
    assert_eq!(chat_texts(&events)[&0], ("ab".to_owned(), Some("stop".to_owned())));
    mesh.finish().await;
}

#[tokio::test]
async fn an_error_on_the_way_is_an_event_and_the_last_one() {
    let mesh = Mesh::start(&[]).await;
    let mut worker = Worker::start(&mesh, "w1").await;
    let (mut stream, taken) = begin(&mesh, &mut worker, &json!({})).await;
    taken
        .fail(Failure::new(ErrorCode::Internal, "the device is gone"))
        .await;
    let events = stream.rest().await;
    let error: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    let expected = json!({"error": {
        "object": "error", "message": "the device is gone", "type": "server_error", "param": null, "code": "internal"
    }});
    assert_eq!(error, expected);
    assert_eq!(chat_texts(&events[..events.len() - 1])[&0], ("one".to_owned(), None));
    assert_eq!(mesh.metric("portalis_gateway_failures_total", "internal"), 1.0);
    mesh.finish().await;
}

async fn cancelled(cancels: &mut bus::Subscription) -> Cancel {
    let message = tokio::time::timeout(DEADLINE, cancels.next()).await;
    wire::decode(&message.expect("a cancellation").unwrap().payload).unwrap()
}

/// The next cancellation on either subject.
async fn cancelled_anywhere(one: &mut bus::Subscription, other: &mut bus::Subscription) -> Cancel {
    tokio::select! {
        cancel = cancelled(one) => cancel,
        cancel = cancelled(other) => cancel,
    }
}

#[tokio::test]
async fn the_work_of_a_client_that_leaves_is_taken_back() {
    let mesh = Mesh::start(&[]).await;
    let mut worker = Worker::start(&mesh, "w1").await;
    let mut cancels = mesh.bus.subscribe(&subjects::cancel_worker("w1"), None).await.unwrap();
    let mut of_model = mesh.bus.subscribe(&subjects::cancel_model(MODEL), None).await.unwrap();
    let (stream, taken) = begin(&mesh, &mut worker, &json!({})).await;
    drop(stream);
    assert_eq!(cancelled(&mut cancels).await.request_ids, [taken.request_id()]);
    // Before its first text too, when the client waits for the head.
    let (client, body) = (mesh.client(), streamed(&json!({})));
    let asked = tokio::spawn(async move { client.stream(CHAT, &body).await.rest().await });
    let taken = worker.take().await;
    asked.abort();
    // Sent to all workers of the model if the gateway has not heard yet who has it.
    let cancel = cancelled_anywhere(&mut cancels, &mut of_model).await;
    assert_eq!(cancel.request_ids, [taken.request_id()]);
    assert_eq!(mesh.metric("portalis_gateway_cancelled_total", ""), 2.0);
    mesh.finish().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_ends_its_own_answer_and_holds_nobody_up() {
    let mesh = Mesh::start(&["stream.max_unread_frames=2"]).await;
    let mut worker = Worker::start(&mesh, "w1").await;
    let mut cancels = mesh.bus.subscribe(&subjects::cancel_worker("w1"), None).await.unwrap();
    let (unread, mut slow) = begin(&mesh, &mut worker, &json!({})).await;
    let (mut stream, mut quick) = begin(&mesh, &mut worker, &json!({})).await;
    stream.json().await;
    stream.json().await;
    let much = "x".repeat(100_000);
    let mut sent = 0;
    let cancel = loop {
        // More than the sockets of both sides hold; the limit of one answer is not reached.
        assert!(sent < 150, "nobody stopped it after {sent} frames");
        slow.say(0, &much, &[sent]).await;
        quick.say(0, "a", &[sent]).await;
        assert_eq!(stream.json().await["choices"][0]["delta"]["content"], "a");
        sent += 1;
        if let Some(message) = cancels.try_next() {
            break wire::decode::<Cancel>(&message.payload).unwrap();
        }
    };
    assert_eq!(cancel.request_ids, [slow.request_id()]);
    assert_eq!(mesh.metric("portalis_gateway_slow_readers_total", ""), 1.0);
    quick.done(vec![last(0, "b", &[999])], 7, 2).await;
    assert_eq!(stream.rest().await.last().unwrap(), "[DONE]");
    drop(unread);
    mesh.finish().await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_for_too_long_loses_its_connection() {
    let mesh = Mesh::start(&["http.write_timeout_ms=50"]).await;
    let mut worker = Worker::start(&mesh, "w1").await;
    let mut cancels = mesh.bus.subscribe(&subjects::cancel_worker("w1"), None).await.unwrap();
    let (_unread, mut taken) = begin(&mesh, &mut worker, &json!({})).await;
    let much = "x".repeat(100_000);
    // More than the sockets of both sides hold, far less than the frames that may wait.
    for sent in 0..80 {
        taken.say(0, &much, &[sent]).await;
    }
    assert_eq!(cancelled(&mut cancels).await.request_ids, [taken.request_id()]);
    assert_eq!(mesh.metric("portalis_gateway_streams_open", ""), 0.0);
    // Nothing waits for the client, who is still connected.
    mesh.finish().await;
}
