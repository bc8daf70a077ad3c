//! Rankings and tokens of tiny real models: the numbers are the model's own, each request is charged once, and what is asked of
//! the wrong model is told so.

use std::collections::BTreeSet;

use schemas::cost::CostKind;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::mesh::http::{Answer, Client, Request};
use crate::mesh::worker::{MINILM, NOMIC, RANKER, TRANSLATOR, WorkerSpec, encoder_dir};
use crate::mesh::{Mesh, MeshOptions, all_at_once};

/// Rounding of f32 sums taken in another order.
const MAX_DIFFERENCE: f64 = 1e-4;

#[derive(Debug, Deserialize)]
struct Expected {
    cases: Vec<Pair>,
}

/// A pair with the logit that CrossEncoder gives it.
#[derive(Debug, Deserialize)]
struct Pair {
    query: String,
    passage: String,
    ids: Vec<u32>,
    logit: f64,
}

fn pairs() -> Vec<Pair> {
    let text = std::fs::read_to_string(encoder_dir(RANKER).join("expected.json")).unwrap();
    serde_json::from_str::<Expected>(&text).unwrap().cases
}

fn ranking(query: &str, passages: &[&str], truncate: &str) -> Request {
    let passages: Vec<Value> = passages.iter().map(|text| json!({"text": text})).collect();
    let body = json!({"model": RANKER, "query": {"text": query}, "passages": passages, "truncate": truncate});
    Request::post("/v1/ranking", body.to_string())
}

fn post(path: &str, body: &Value) -> Request {
    Request::post(path, body.to_string())
}

async fn mesh(workers: Vec<WorkerSpec>) -> Mesh {
    Mesh::start(MeshOptions {
        workers,
        ..MeshOptions::default()
    })
    .await
}

fn logits(answer: &Answer) -> Vec<(usize, f64)> {
    let body = answer.json();
    let places = body["rankings"].as_array().unwrap().iter();
    places
        .map(|place| {
            let index = usize::try_from(place["index"].as_u64().unwrap()).unwrap();
            (index, place["logit"].as_f64().unwrap())
        })
        .collect()
}

fn refused(answer: &Answer, status: u16, param: &str) {
    let error = answer.json();
    let found = (answer.status, &error["error"]["param"]);
    assert_eq!(found, (status, &json!(param)), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rankings_are_the_models_own_and_charged_once() {
    let mesh = mesh(vec![WorkerSpec::encoder(RANKER)]).await;
    let client = mesh.client(&mesh.key("t").await);
    let pairs = pairs();
    let requests = pairs.iter().map(|pair| ranking(&pair.query, &[&pair.passage], "END"));
    let answers = all_at_once(&client, requests.collect()).await;
    let mut ids: BTreeSet<String> = answers.iter().map(Answer::request_id).collect();
    let mut tokens = 0;
    for (pair, answer) in pairs.iter().zip(answers) {
        let answer = answer.ok();
        let (index, logit) = logits(&answer)[0];
        let difference = (logit - pair.logit).abs();
        assert!(index == 0 && difference <= MAX_DIFFERENCE, "{pair:?}: {logit}");
        assert_eq!(answer.json()["usage"]["prompt_tokens"], pair.ids.len(), "{pair:?}");
        tokens += pair.ids.len() as u64;
    }

    // Two pairs of the fixture share a query; the second of them is the better one.
    let (first, second) = (&pairs[0], &pairs[1]);
    assert!(first.query == second.query && first.logit < second.logit);
    let both = client
        .send(ranking(&first.query, &[&first.passage, &second.passage], "END"))
        .await;
    ids.insert(both.request_id());
    let order: Vec<usize> = logits(&both.ok()).iter().map(|(index, _)| *index).collect();
    assert_eq!(order, [1, 0]);
    tokens += (first.ids.len() + second.ids.len()) as u64;

    let body = json!({
        "model": RANKER, "query": first.query, "documents": [first.passage, {"text": second.passage}],
        "top_n": 1, "return_documents": true,
    });
    let best = client.send(post("/v1/rerank", &body)).await.ok();
    assert_eq!(best.cache(), "hit", "both shapes ask the same question");
    let best = best.json();
    assert_eq!(best["results"].as_array().unwrap().len(), 1);
    let result = &best["results"][0];
    assert_eq!(
        (&result["index"], &result["document"]["text"]),
        (&json!(1), &json!(second.passage))
    );
    let relevance = 1.0 / (1.0 + (-second.logit).exp());
    assert!(
        (result["relevance_score"].as_f64().unwrap() - relevance).abs() <= MAX_DIFFERENCE,
        "{result}"
    );

    let books = mesh.books("t").await;
    books.charge_once(&ids);
    let computed = books.facts.values().filter(|fact| fact.kind == CostKind::Computed);
    for fact in computed {
        assert_eq!((fact.operation.as_str(), fact.output_tokens), ("rank", 0));
    }
    let charged: u64 = books
        .facts
        .values()
        .filter(|fact| fact.kind == CostKind::Computed)
        .map(|fact| fact.input_tokens)
        .sum();
    assert_eq!(charged, tokens, "usage is exact");
    mesh.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_asked_for_what_it_does_not_do_says_so() {
    let mesh = mesh(vec![
        WorkerSpec::encoder(RANKER),
        WorkerSpec::minilm(),
        WorkerSpec::encoder(NOMIC),
    ])
    .await;
    let client = mesh.client(&mesh.key("t").await);
    let rank = |model: &str| json!({"model": model, "query": {"text": "a"}, "passages": [{"text": "a"}]});
    let rerank = |model: &str| json!({"model": model, "query": "a", "documents": ["a"]});
    let chat = json!({"model": RANKER, "messages": [{"role": "user", "content": "a"}]});
    for (path, body, status) in [
        ("/v1/ranking", rank(MINILM), 400),
        ("/v1/ranking", rank("no-such-model"), 404),
        ("/v1/rerank", rerank(MINILM), 400),
        ("/v1/embeddings", json!({"model": RANKER, "input": "a"}), 400),
        ("/v1/chat/completions", chat, 400),
        ("/v1/responses", json!({"model": RANKER, "input": "a"}), 400),
        ("/v1/tokenize", json!({"model": "no-such-model", "prompt": "a"}), 404),
    ] {
        refused(&client.send(post(path, &body)).await, status, "model");
    }

    // Over the limit NONE refuses, as NIM's clients expect it; a rerank request is cut unless it says otherwise.
    let long = "a worker ".repeat(200);
    let answer = client.send(ranking("a", &["a", &long], "NONE")).await;
    assert!(answer.text().contains("exceeds maximum allowed"), "{}", answer.text());
    refused(&answer, 400, "passages[1]");
    let cut = json!({"model": RANKER, "query": "a", "documents": [long]});
    client.send(post("/v1/rerank", &cut)).await.ok();
    refused(&client.send(ranking("a", &["a"], "START")).await, 400, "truncate");
    let unknown = post(
        "/v1/ranking",
        &json!({"model": RANKER, "query": {"text": "a"}, "passages": [], "top_k": 1}),
    );
    refused(&client.send(unknown).await, 422, "top_k");

    let embed = |fields: Value| {
        let mut body = json!({"model": NOMIC, "input": "How often is a request paid?"});
        body.as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        client.send(post("/v1/embeddings", &body))
    };
    refused(&embed(json!({})).await, 400, "input_type");
    let query = embed(json!({"input_type": "query"})).await.ok();
    let passage = embed(json!({"model": format!("{NOMIC}-passage")})).await.ok();
    assert_ne!(query.vectors(), passage.vectors(), "each side has a prompt of its own");
    assert!(passage.json()["usage"]["prompt_tokens"].as_u64() > query.json()["usage"]["prompt_tokens"].as_u64());
    mesh.finish().await;
}

async fn tokens(client: &Client, body: &Value) -> Value {
    client.send(post("/v1/tokenize", body)).await.ok().json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_those_that_requests_pay_for_and_cost_nothing_themselves() {
    let mesh = mesh(vec![WorkerSpec::translator(), WorkerSpec::encoder(RANKER)]).await;
    let client = mesh.client(&mesh.key("t").await);
    let messages = json!([{"role": "user", "content": "def f(a: int) -> int:\n    return a"}]);
    let said = tokens(&client, &json!({"model": TRANSLATOR, "messages": messages})).await;
    let chat = json!({"model": TRANSLATOR, "messages": messages, "max_tokens": 1});
    let chat = client.send(post("/v1/chat/completions", &chat)).await.ok().json();
    assert_eq!(said["count"], chat["usage"]["prompt_tokens"]);
    assert_eq!(
        (&said["max_model_len"], &said["token_strs"]),
        (&json!(1_024), &Value::Null)
    );

    let text = "a worker, a request";
    let body = json!({"model": RANKER, "prompt": text, "return_token_strs": true});
    let spelled = tokens(&client, &body).await;
    assert_eq!(spelled["token_strs"][0], "[CLS]");
    assert_eq!(spelled["count"], spelled["tokens"].as_array().unwrap().len());
    let bare = tokens(
        &client,
        &json!({"model": RANKER, "prompt": text, "add_special_tokens": false}),
    )
    .await;
    assert_eq!(bare["count"].as_u64().unwrap() + 2, spelled["count"].as_u64().unwrap());
    let back = json!({"model": RANKER, "tokens": bare["tokens"]});
    let back = client.send(post("/v1/detokenize", &back)).await.ok().json();
    assert_eq!(back["prompt"], text);
    let outside = json!({"model": RANKER, "tokens": [1, 4_000_000]});
    refused(&client.send(post("/v1/detokenize", &outside)).await, 400, "tokens");

    let books = mesh.books("t").await;
    assert_eq!(books.usage.requests, 1, "only the chat: {:?}", books.usage);
    mesh.finish().await;
}
