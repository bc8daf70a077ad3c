//! Text from the small real model: chats and completions, streamed and not, and what happens to them when workers die and
//! clients leave.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Value, json};
use testkit::eventually;

use crate::mesh::http::Request;
use crate::mesh::stream::{Stream, chat_text};
use crate::mesh::worker::{TRANSLATOR, WorkerSpec, repository};
use crate::mesh::{DEADLINE, Mesh, MeshOptions, all_at_once};

/// A function and its translation.
#[derive(Debug, Deserialize)]
struct Pair {
    python: String,
    rust: String,
}

fn pairs(count: usize) -> Vec<Pair> {
    let file = repository().join("models/nano-translator/eval_pairs.jsonl");
    let text = std::fs::read_to_string(file).unwrap();
    let pairs = text.lines().map(|line| serde_json::from_str(line).unwrap());
    pairs.take(count).collect()
}

fn chat(python: &str, more: Value) -> Request {
    let content = format!("Translate this Python function to Rust:\n\n{python}");
    let mut body = json!({
        "model": TRANSLATOR, "temperature": 0, "messages": [{ "role": "user", "content": content }],
    });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    Request::post("/v1/chat/completions", body.to_string())
}

async fn mesh(workers: usize) -> Mesh {
    Mesh::start(MeshOptions {
        workers: vec![WorkerSpec::translator(); workers],
        ..MeshOptions::default()
    })
    .await
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn functions_are_translated_streamed_and_not_and_charged_once() {
    const FUNCTIONS: usize = 12;
    /// The card: 96 % exact; of so few at most two differ.
    const MOST_DIFFERENT: usize = 2;
    let mesh = mesh(1).await;
    let client = mesh.client(&mesh.key("t").await);
    let pairs = pairs(FUNCTIONS);
    let requests = pairs.iter().map(|pair| chat(&pair.python, json!({}))).collect();
    let answers = all_at_once(&client, requests).await;
    let mut ids: BTreeSet<String> = answers.iter().map(|answer| answer.request_id()).collect();
    let answers: Vec<Value> = answers.into_iter().map(|answer| answer.ok().json()).collect();
    let different = pairs
        .iter()
        .zip(&answers)
        .filter(|(pair, answer)| content(answer).trim() != pair.rust.trim());
    let different = different.count();
    assert!(
        different <= MOST_DIFFERENT,
        "{different} of {FUNCTIONS} differ from the reference"
    );
    for answer in &answers {
        assert_eq!(answer["object"], "chat.completion");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        let usage = |field: &str| answer["usage"][field].as_u64().unwrap();
        assert!(usage("prompt_tokens") > 10 && usage("completion_tokens") > 5);
        assert_eq!(
            usage("total_tokens"),
            usage("prompt_tokens") + usage("completion_tokens")
        );
    }

    let streamed = chat(
        &pairs[0].python,
        json!({ "stream": true, "stream_options": { "include_usage": true } }),
    );
    let stream = Stream::open(&client, &streamed).await;
    ids.insert(stream.request_id.clone());
    let chunks = stream.rest().await;
    assert_eq!(chat_text(&chunks, 0), content(&answers[0]));
    assert!(chunks.len() > 5, "it came in {} chunks", chunks.len());
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let last = chunks.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    for field in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(last["usage"][field], answers[0]["usage"][field]);
    }
    let cached = last["usage"]["prompt_tokens_details"]["cached_tokens"]
        .as_u64()
        .unwrap();
    assert!(cached > 0, "the same prompt was computed a moment ago");

    let again = client.send(chat(&pairs[0].python, json!({}))).await.ok();
    assert_eq!(again.cache(), "hit", "a greedy answer is kept");
    assert_eq!(content(&again.json()), content(&answers[0]));

    let prompt = json!({ "model": TRANSLATOR, "prompt": "def add(a: int", "max_tokens": 6, "temperature": 0, "ignore_eos": true });
    let completion = client.send(Request::post("/v1/completions", prompt.to_string())).await;
    ids.insert(completion.request_id());
    let completion = completion.ok().json();
    assert_eq!(completion["object"], "text_completion");
    assert_eq!(completion["choices"][0]["finish_reason"], "length");
    assert_eq!(completion["usage"]["completion_tokens"], 6);
    mesh.books("t").await.charge_once(&ids);
    mesh.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_when_its_worker_is_killed() {
    let mut mesh = mesh(2).await;
    let client = mesh.client(&mesh.key("t").await);
    let long = |stream: bool| {
        let more = json!({ "stream": stream, "ignore_eos": true, "max_tokens": 900 });
        chat("def f(a: int) -> int:\n    return a", more).header("cache-control", "no-cache")
    };
    let whole = client.send(long(false)).await.ok().json();

    let mut stream = Stream::open(&client, &long(true)).await;
    let mut chunks = read_until(&mut stream, 40).await;
    let mut holder = None;
    for place in 0..mesh.workers.len() {
        if mesh.workers[place].in_hand().await > 0.0 {
            holder = Some(place);
        }
    }
    mesh.workers[holder.expect("a worker writes it")].kill();
    chunks.extend(stream.rest().await);
    assert_eq!(
        chat_text(&chunks, 0),
        content(&whole),
        "nothing is missing and nothing came twice"
    );

    // Both are there before the request: it must not be over when its worker is killed.
    let alive = 1 - holder.unwrap();
    let place = mesh.spawn(&WorkerSpec::translator());
    mesh.worker_ready(place).await;
    let answer = tokio::spawn({
        let (client, request) = (client.clone(), long(false));
        async move { client.send(request).await }
    });
    eventually("the request is being written", DEADLINE, || async {
        mesh.workers[alive].in_hand().await + mesh.workers[place].in_hand().await > 0.0
    })
    .await;
    let holder = if mesh.workers[alive].in_hand().await > 0.0 {
        alive
    } else {
        place
    };
    mesh.workers[holder].kill();
    let answer = answer.await.unwrap().ok().json();
    assert_eq!(content(&answer), content(&whole), "another worker writes it whole");
    mesh.finish().await;
}

/// Reads a stream until so many bytes of its text are there.
async fn read_until(stream: &mut Stream, bytes: usize) -> Vec<Value> {
    let mut chunks = Vec::new();
    while chat_text(&chunks, 0).len() < bytes {
        let chunk = Stream::json(stream.event().await);
        chunks.push(chunk.unwrap_or_else(|| panic!("more was to come after {chunks:?}")));
    }
    chunks
}

/// Kills the worker that has something in hand.
async fn kill_holder(mesh: &mut Mesh) {
    for place in 0..mesh.workers.len() {
        if mesh.workers[place].in_hand().await > 0.0 {
            mesh.workers[place].kill();
            return;
        }
    }
    panic!("nobody writes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_constrained_stream_goes_on_in_its_grammar_when_its_worker_is_killed() {
    const NUMBERS: usize = 150;
    let mut mesh = mesh(2).await;
    let client = mesh.client(&mesh.key("t").await);
    let request = |stream: bool| {
        let regex = format!("([0-9]{{3}};){{{NUMBERS}}}");
        let more = json!({ "stream": stream, "temperature": 1.5, "seed": 7, "guided_regex": regex });
        chat("def f(a: int) -> int:\n    return a", more).header("cache-control", "no-cache")
    };
    let whole = client.send(request(false)).await.ok().json();
    let numbers: Vec<&str> = content(&whole).split_terminator(';').collect();
    assert_eq!(numbers.len(), NUMBERS);
    assert!(
        numbers
            .iter()
            .all(|number| number.len() == 3 && number.parse::<u32>().is_ok())
    );
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");

    let mut stream = Stream::open(&client, &request(true)).await;
    let mut chunks = read_until(&mut stream, 60).await;
    kill_holder(&mut mesh).await;
    chunks.extend(stream.rest().await);
    assert_eq!(chat_text(&chunks, 0), content(&whole));
    mesh.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_nobody_can_go_on_with_ends_with_an_error() {
    let mut mesh = mesh(1).await;
    let client = mesh.client(&mesh.key("t").await);
    let more = json!({ "stream": true, "ignore_eos": true, "max_tokens": 900 });
    let endless = chat("def f(a: int) -> int:\n    return a", more).header("x-portalis-timeout-ms", "6000");
    let mut stream = Stream::open(&client, &endless).await;
    read_until(&mut stream, 20).await;
    kill_holder(&mut mesh).await;
    let mut last = Value::Null;
    while let Some(event) = stream.event().await {
        last = serde_json::from_str(&event.data).expect("no [DONE] follows an answer that was cut");
    }
    let error = &last["error"];
    assert_eq!(
        (&error["object"], &error["code"]),
        (&json!("error"), &json!("deadline_exceeded"))
    );
    mesh.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_frees_the_place_and_pays_for_what_ran() {
    let mesh = mesh(1).await;
    let client = mesh.client(&mesh.key("t").await);
    let endless = chat(
        "def f(a: int) -> int:\n    return a",
        json!({ "stream": true, "ignore_eos": true, "max_tokens": 900 }),
    );
    let mut stream = Stream::open(&client, &endless).await;
    for _ in 0..5 {
        stream.event().await.unwrap();
    }
    drop(stream);
    eventually("the worker has let go", DEADLINE, || async {
        mesh.workers[0].in_hand().await == 0.0
            && mesh.workers[0]
                .metric("batch_processing_requests_total", "cancelled")
                .await
                == 1.0
    })
    .await;
    eventually("what ran is booked", DEADLINE, || async {
        let books = mesh.books("t").await;
        books.usage.compute_ns > 0
    })
    .await;
    mesh.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_written_is_told_with_the_field() {
    let mesh = mesh(1).await;
    let client = mesh.client(&mesh.key("t").await);
    let long = "x = 1\n".repeat(2_000);
    let cases = [
        (chat(&long, json!({})), 400, "messages"),
        (chat("a", json!({ "temperature": 3 })), 400, "temperature"),
        (chat("a", json!({ "logit_bias": { "99999": 1 } })), 400, "logit_bias"),
        (Request::embed(TRANSLATOR, "a"), 400, "model"),
    ];
    for (request, status, param) in cases {
        let answer = client.send(request).await;
        assert_eq!(answer.status, status, "{}", answer.text());
        assert_eq!(answer.json()["error"]["param"], param, "{}", answer.text());
    }
    mesh.finish().await;
}
