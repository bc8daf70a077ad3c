//! Workers that die or give up in the middle of a text: another goes on, nothing is said twice, nothing is left out.

use schemas::generate::FinishReason;
use schemas::reply::Frame;
use serde_json::{Value, json};

use crate::client::{Stream, chat_texts};
use crate::mesh::Mesh;
use crate::worker::{MODEL, Taken, Worker, last, part};

const CHAT: &str = "/v1/chat/completions";

fn asked(mesh: &Mesh, stream: bool) -> Value {
    assert!(mesh.server.pid().is_some());
    json!({
        "model": MODEL, "messages": [{"role": "user", "content": "Say a."}], "n": 2, "stream": stream,
        "stream_options": if stream { json!({"include_usage": true}) } else { Value::Null }
    })
}

async fn begin(mesh: &Mesh, worker: &mut Worker) -> (Stream, Taken) {
    let (client, body) = (mesh.client(), asked(mesh, true));
    let asked = tokio::spawn(async move { client.stream(CHAT, &body).await });
    let mut taken = worker.take().await;
    let first = vec![part(0, "one", &[1]), last(1, "uno", &[11, 2])];
    taken.frame(Frame::Text(first)).await;
    (asked.await.unwrap(), taken)
}

fn both(first: &str) -> [(String, Option<String>); 2] {
    [first, "uno"].map(|text| (text.to_owned(), Some("stop".to_owned())))
}

#[tokio::test]
async fn a_stream_goes_on_at_another_worker_when_its_own_dies() {
    let mesh = Mesh::start(&[]).await;
    let mut first = Worker::start(&mesh, "w1").await;
    let (mut stream, mut lost) = begin(&mesh, &mut first).await;
    // The text of a token may lag behind it.
    lost.say(0, " t", &[3]).await;
    lost.say(0, "", &[4]).await;
    let mut second = Worker::start(&mesh, "w2").await;
    drop(first);
    let mut taken = second.take().await;
    assert_eq!(taken.request_id(), lost.request_id());
    let task = taken.task();
    assert_eq!((task.attempts_before, task.stream), (1, true));
    assert_eq!(
        (task.resume[0].choice, task.resume[0].tokens.as_slice()),
        (0, &[1, 3, 4][..])
    );
    assert_eq!(task.resume[0].finish, None);
    assert_eq!(
        (task.resume[1].choice, task.resume[1].finish),
        (1, Some(FinishReason::Stop))
    );
    // The first one was frozen, not dead: it is not heard any more.
    lost.say(0, "hree", &[5]).await;
    taken.say(0, "wo", &[5]).await;
    lost.say(0, "!", &[6]).await;
    taken.done(vec![last(0, "", &[2])], 7, 7).await;
    let events = stream.rest().await;
    let texts = chat_texts(&events);
    assert_eq!([texts[&0].clone(), texts[&1].clone()], both("one two"));
    let usage: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert_eq!(usage["usage"]["completion_tokens"], 7);
    assert_eq!(events.last().unwrap(), "[DONE]");
    assert_eq!(mesh.metric("portalis_gateway_rescued_total", ""), 1.0);
    assert_eq!(mesh.metric("portalis_gateway_republished_total", "silent_worker"), 1.0);
    mesh.finish().await;
}

#[tokio::test]
async fn a_whole_answer_is_finished_by_another_worker_too() {
    let mesh = Mesh::start(&[]).await;
    let mut first = Worker::start(&mesh, "w1").await;
    let (client, body) = (mesh.client(), asked(&mesh, false));
    let answer = tokio::spawn(async move { client.post(CHAT, &body).await });
    let lost = first.take().await;
    let mut second = Worker::start(&mesh, "w2").await;
    drop(first);
    let taken = second.take().await;
    assert_eq!(taken.request_id(), lost.request_id());
    assert!(taken.task().resume.is_empty(), "nothing was said yet");
    taken
        .done(vec![last(0, "one", &[1, 2]), last(1, "uno", &[11, 2])], 7, 4)
        .await;
    let body = answer.await.unwrap().ok().body;
    assert_eq!(body["choices"][0]["message"]["content"], "one");
    assert_eq!(body["choices"][1]["message"]["content"], "uno");
    mesh.finish().await;
}

#[tokio::test]
async fn a_message_that_is_given_back_is_heard_once() {
    let mesh = Mesh::start(&[]).await;
    let mut worker = Worker::start(&mesh, "w1").await;
    let (mut stream, mut taken) = begin(&mesh, &mut worker).await;
    taken.say(0, " two", &[3]).await;
    taken.give_back().await;
    let mut again = worker.take().await;
    assert!(again.task().resume.is_empty(), "the same message");
    // The same seed, the same tokens, cut elsewhere.
    again.say(0, "one tw", &[1, 3]).await;
    again.say(1, "uno", &[11]).await;
    again
        .done(vec![last(0, "o three", &[4, 2]), last(1, "", &[2])], 7, 6)
        .await;
    let texts = chat_texts(&stream.rest().await);
    assert_eq!([texts[&0].clone(), texts[&1].clone()], both("one two three"));
    mesh.finish().await;
}

#[tokio::test]
async fn a_lost_frame_or_another_text_is_mended_from_what_was_read() {
    let mesh = Mesh::start(&[]).await;
    let mut worker = Worker::start(&mesh, "w1").await;
    let (mut stream, mut taken) = begin(&mesh, &mut worker).await;
    taken.skip();
    taken.say(0, " lost", &[9]).await;
    let mut second = worker.take().await;
    assert_eq!(
        (second.task().attempts_before, second.task().resume[0].tokens.as_slice()),
        (1, &[1][..])
    );
    second.say(0, " two", &[3]).await;
    second.give_back().await;
    let mut third = worker.take().await;
    third.say(0, " other", &[8]).await;
    let fourth = worker.take().await;
    assert_eq!(
        (fourth.task().attempts_before, fourth.task().resume[0].tokens.as_slice()),
        (3, &[1, 3][..])
    );
    fourth.done(vec![last(0, " three", &[4])], 7, 5).await;
    let texts = chat_texts(&stream.rest().await);
    assert_eq!([texts[&0].clone(), texts[&1].clone()], both("one two three"));
    assert_eq!(mesh.metric("portalis_gateway_republished_total", "lost_frame"), 2.0);
    mesh.finish().await;
}
