//! The data path: vectors, caches, and what the bill says.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::{EmbeddingModel, Input, LoadOptions, Truncate};
use schemas::cost::CostKind;
use serde_json::json;
use testkit::eventually;

use crate::mesh::http::{Answer, Request};
use crate::mesh::worker::{ECHO, MINILM, WorkerSpec, model_dir};
use crate::mesh::{DEADLINE, Mesh, MeshOptions, all_at_once};

const TEXTS: [&str; 3] = [
    "The quick brown fox jumps over the lazy dog.",
    "Ein Bild sagt mehr als tausend Worte, und kürzer ist es auch.",
    "cache",
];

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |x: &[f32], y: &[f32]| -> f64 { x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum() };
    dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt())
}

/// The vectors and token counts of the engine itself.
fn reference() -> (Vec<Vec<f32>>, Vec<Vec<u32>>) {
    let model = EmbeddingModel::load(&model_dir(), LoadOptions::default()).unwrap();
    let ids: Vec<_> = TEXTS
        .iter()
        .map(|text| model.tokenize(Input::Text(text), Truncate::None).unwrap())
        .collect();
    let vectors = model.embed(&ids).unwrap().rows().map(<[f32]>::to_vec).collect();
    (vectors, ids.into_iter().map(engine::TokenIds::into_vec).collect())
}

fn tokens(answer: &Answer) -> (u64, u64) {
    let usage = &answer.json()["usage"];
    (
        usage["prompt_tokens"].as_u64().unwrap(),
        usage["total_tokens"].as_u64().unwrap(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_form_of_input_and_encoding_gives_the_engines_own_vectors() {
    let mesh = Mesh::start(MeshOptions {
        workers: vec![WorkerSpec::minilm()],
        ..MeshOptions::default()
    })
    .await;
    let client = mesh.client(&mesh.key("t").await);
    let (vectors, ids) = reference();
    let same = |answer: &Answer, wanted: &[Vec<f32>]| {
        let got = answer.vectors();
        assert_eq!(got.len(), wanted.len());
        for (index, (got, wanted)) in got.iter().zip(wanted).enumerate() {
            let cosine = cosine(got, wanted);
            assert!(cosine >= 0.9999, "vector {index}: cosine {cosine}");
        }
        let body = answer.json();
        for (index, object) in body["data"].as_array().unwrap().iter().enumerate() {
            assert_eq!(
                (&object["index"], &object["object"]),
                (&json!(index), &json!("embedding"))
            );
        }
        assert_eq!((&body["object"], &body["model"]), (&json!("list"), &json!(MINILM)));
    };
    let all: u64 = ids.iter().map(|ids| ids.len() as u64).sum();

    let one = client.embed(MINILM, TEXTS[0]).await.ok();
    same(&one, &vectors[..1]);
    assert_eq!(tokens(&one), (ids[0].len() as u64, ids[0].len() as u64));
    let list = client.embed(MINILM, json!(TEXTS)).await.ok();
    same(&list, &vectors);
    assert_eq!(tokens(&list), (all, all));
    // Clients send ids without the special tokens at both ends.
    let bare: Vec<&[u32]> = ids.iter().map(|ids| &ids[1..ids.len() - 1]).collect();
    let by_ids = client.embed(MINILM, json!(bare)).await.ok();
    same(&by_ids, &vectors);
    assert_eq!(tokens(&by_ids), (all, all));
    same(&client.embed(MINILM, json!(bare[2])).await.ok(), &vectors[2..]);

    let body = json!({"model": MINILM, "input": TEXTS, "encoding_format": "base64", "user": "u"});
    let packed = client
        .send(Request::post("/v1/embeddings", body.to_string()))
        .await
        .ok();
    assert_eq!(packed.cache(), "hit", "one cached answer serves both encodings");
    for (object, wanted) in packed.json()["data"].as_array().unwrap().iter().zip(&vectors) {
        let bytes = STANDARD.decode(object["embedding"].as_str().unwrap()).unwrap();
        let got: Vec<f32> = bytes
            .chunks_exact(4)
            .map(|four| f32::from_le_bytes(four.try_into().unwrap()))
            .collect();
        assert!(cosine(&got, wanted) >= 0.9999);
    }
    mesh.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_cached_as_the_client_wishes_and_the_bill_shows_it() {
    let mesh = Mesh::start(MeshOptions {
        workers: vec![WorkerSpec::echo(&[])],
        ..MeshOptions::default()
    })
    .await;
    let client = mesh.client(&mesh.key("t").await);
    let with = |text: &str, directive: &str| Request::embed(ECHO, text).header("cache-control", directive);

    let first = client.embed(ECHO, "a b c").await.ok();
    assert_eq!(first.cache(), "miss");
    let second = client.embed(ECHO, "a b c").await.ok();
    assert_eq!(second.cache(), "hit");
    assert_eq!(second.body, first.body);
    assert_ne!(second.request_id(), first.request_id());
    assert_eq!(
        client.send(with("a b c", "no-cache")).await.ok().cache(),
        "miss",
        "computed on request"
    );
    assert_eq!(client.send(with("secret", "no-store")).await.ok().cache(), "miss");
    assert_eq!(
        client.embed(ECHO, "secret").await.ok().cache(),
        "miss",
        "no-store kept nothing"
    );
    assert_eq!(client.embed(ECHO, "secret").await.ok().cache(), "hit");

    // Nobody may learn that somebody else has asked the same.
    let other = mesh.client(&mesh.key("other").await);
    assert_eq!(other.embed(ECHO, "a b c").await.ok().cache(), "miss");
    let same_tenant = mesh.client(&mesh.key("t").await);
    assert_eq!(
        same_tenant.embed(ECHO, "a b c").await.ok().cache(),
        "hit",
        "a tenant's keys share its answers"
    );

    let spent = tokens(&first).0;
    eventually("usage says what was used", DEADLINE, || async {
        client.get("/v1/usage").await.ok().json()["requests"] == 6
    })
    .await;
    let usage = client.get("/v1/usage").await.ok().json();
    assert_eq!(
        (&usage["computed"], &usage["cached"]),
        (&json!(4), &json!(2)),
        "{usage}"
    );
    assert_eq!(usage["output_tokens"], 0);
    assert!(usage["input_tokens"].as_u64().unwrap() >= 3 * spent, "{usage}");
    for positive in ["cost_usd", "saved_usd", "compute_seconds"] {
        assert!(usage[positive].as_f64().unwrap() > 0.0, "{positive}: {usage}");
    }
    assert!(usage["as_of"].as_str().unwrap().ends_with('Z'), "{usage}");

    let books = mesh.books("t").await;
    assert_eq!((books.usage.computed, books.usage.cached), (4, 3));
    assert_eq!(mesh.books("other").await.usage.computed, 1);
    mesh.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identical_requests_in_flight_are_computed_once() {
    let workers = vec![WorkerSpec::echo(&["echo.batch_us=700000"])];
    let mesh = Mesh::start(MeshOptions {
        workers,
        ..MeshOptions::default()
    })
    .await;
    let client = mesh.client(&mesh.key("t").await);
    let answers = all_at_once(&client, (0..64).map(|_| Request::embed(ECHO, "same")).collect()).await;
    let count = |wanted: &str| answers.iter().filter(|answer| answer.cache() == wanted).count();
    let (miss, coalesced, hit) = (count("miss"), count("coalesced"), count("hit"));
    assert_eq!((miss, coalesced + hit), (1, 63), "coalesced {coalesced}, hit {hit}");
    assert!(coalesced > 0, "nobody waited for the first");
    assert!(
        answers
            .iter()
            .all(|answer| answer.status == 200 && answer.body == answers[0].body)
    );
    eventually("the cached answers are reported", DEADLINE, || async {
        mesh.usage("t").await.is_some_and(|usage| usage.cached == 63)
    })
    .await;
    let books = mesh.books("t").await;
    assert_eq!(
        (
            books.count(CostKind::Computed),
            books.usage.computed,
            books.usage.requests
        ),
        (1, 1, 64)
    );
    assert_eq!(
        mesh.workers[0]
            .metric("batch_processing_requests_total", "outcome=\"done\"")
            .await,
        1.0
    );
    mesh.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_gateway_answers_from_the_shared_tier() {
    let options = MeshOptions {
        workers: vec![WorkerSpec::echo(&[])],
        more_gateways: 1,
        ..MeshOptions::default()
    };
    let mesh = Mesh::start(options).await;
    let key = mesh.key("t").await;
    let (one, two) = (mesh.client_of(0, &key), mesh.client_of(1, &key));
    let mut number = 0;
    // The news of an answer takes a moment to come round; each try asks something new.
    eventually("the second gateway has an answer of the first", DEADLINE, || {
        number += 1;
        let (one, two, text) = (one.clone(), two.clone(), format!("text {number}"));
        let mesh = &mesh;
        async move {
            let first = one.embed(ECHO, text.as_str()).await.ok();
            let second = two.embed(ECHO, text.as_str()).await.ok();
            assert_eq!(first.vectors(), second.vectors());
            mesh.gateways[1]
                .service
                .metric("tiered_cache_hits_total", "tier=\"shared\"")
                > 0.0
        }
    })
    .await;
    mesh.finish().await;
}
