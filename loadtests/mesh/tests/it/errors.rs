//! Errors: the right status, one envelope, and nothing of ours in it.

use std::collections::BTreeSet;

use schemas::policy::{CreateKey, RequestLimit, Scope, key_checksum};
use serde_json::{Value, json};
use testkit::eventually;

use crate::mesh::http::{Answer, Client, Request};
use crate::mesh::worker::{ECHO, WorkerSpec, repository};
use crate::mesh::{DEADLINE, Mesh, MeshOptions, all_at_once, ordinary};

/// Checks everything that every error has; gives code and param.
#[track_caller]
fn checked(client: &Client, answer: &Answer) -> (String, Value) {
    let body = answer.json();
    let error = body["error"]
        .as_object()
        .unwrap_or_else(|| panic!("no envelope: {body}"));
    let fields: BTreeSet<&str> = error.keys().map(String::as_str).collect();
    assert_eq!(fields, BTreeSet::from(["code", "message", "param", "type"]), "{body}");
    assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
    assert!(
        !error["message"].as_str().unwrap().is_empty() && error["type"].is_string(),
        "{body}"
    );
    assert_eq!(answer.header("content-type"), Some("application/json"), "{body}");
    assert!(!answer.request_id().is_empty(), "{body}");
    let text = answer.text();
    let secret = client
        .key
        .as_deref()
        .and_then(|key| key.rsplit('_').next())
        .filter(|secret| secret.len() > 20)
        .unwrap_or("-----");
    let tree = repository();
    let source = tree.to_str().unwrap();
    for leak in [
        secret,
        "/src/",
        "services/",
        ".rs:",
        "/home/",
        source,
        "/tmp/",
        "panicked",
        "nats://",
    ] {
        assert!(!text.contains(leak), "{leak:?} in {text}");
    }
    let retryable = [429, 503].contains(&answer.status);
    let seconds = answer.header("retry-after").map(|value| value.parse::<u64>().unwrap());
    assert_eq!(
        seconds.is_some(),
        retryable,
        "Retry-After {seconds:?} with {}: {text}",
        answer.status
    );
    assert!(seconds.is_none_or(|seconds| (1..=60).contains(&seconds)), "{seconds:?}");
    (answer.error_code(), error["param"].clone())
}

#[track_caller]
fn refused(client: &Client, answer: &Answer, wanted: (u16, &str)) -> Value {
    let (code, param) = checked(client, answer);
    assert_eq!((answer.status, code.as_str()), wanted, "{}", answer.text());
    param
}

fn body(fields: Value) -> Request {
    let mut body = json!({"model": ECHO, "input": "a"});
    body.as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    Request::post("/v1/embeddings", body.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_name_what_is_wrong() {
    let mesh = Mesh::start(MeshOptions {
        workers: vec![WorkerSpec::echo(&[])],
        ..MeshOptions::default()
    })
    .await;
    let client = mesh.client(&mesh.key("t").await);
    let good = || Request::embed(ECHO, "a");
    let post = |body: &str| Request::post("/v1/embeddings", body);
    let cases: Vec<(Request, u16, &str, Value)> = vec![
        (post("{"), 400, "invalid_json", Value::Null),
        (post(""), 400, "invalid_json", Value::Null),
        (post("[]"), 400, "invalid_field", Value::Null),
        (post(r#"{"input":"a"}"#), 400, "invalid_field", json!("model")),
        (post(r#"{"model":"echo"}"#), 400, "invalid_field", json!("input")),
        (body(json!({"input": 1})), 400, "invalid_field", json!("input")),
        (body(json!({"input": []})), 400, "invalid_field", json!("input")),
        (
            body(json!({"input": ["a", ""]})),
            400,
            "invalid_field",
            json!("input[1]"),
        ),
        (
            body(json!({"encoding_format": "hex"})),
            400,
            "invalid_field",
            json!("encoding_format"),
        ),
        (
            body(json!({"truncate": "MIDDLE"})),
            400,
            "invalid_field",
            json!("truncate"),
        ),
        (
            body(json!({"dimensions": -1})),
            400,
            "invalid_field",
            json!("dimensions"),
        ),
        (
            body(json!({"temperature": 1})),
            422,
            "extra_forbidden",
            json!("temperature"),
        ),
        (body(json!({"model": "nobody"})), 404, "model_not_found", json!("model")),
        (
            Request::get("/v1/models/nobody"),
            404,
            "model_not_found",
            json!("model"),
        ),
        (Request::get("/v1/nothing"), 404, "not_found", Value::Null),
        (Request::get("/v1/embeddings"), 405, "method_not_allowed", Value::Null),
        (
            Request::new("DELETE", "/v1/models", Vec::new()),
            405,
            "method_not_allowed",
            Value::Null,
        ),
        (
            good().header("content-type", "text/plain"),
            415,
            "unsupported_media_type",
            Value::Null,
        ),
        (
            good().header("x-portalis-timeout-ms", "soon"),
            400,
            "invalid_field",
            json!("x-portalis-timeout-ms"),
        ),
        (Request::get("/v1/usage?from=1"), 400, "invalid_field", json!("from")),
    ];
    for (request, status, code, wanted) in cases {
        let shown = format!("{request:?}");
        let answer = client.send(request).await;
        let param = refused(&client, &answer, (status, code));
        assert_eq!(param, wanted, "{shown}: {}", answer.text());
        assert!(
            status != 405 || answer.header("allow").is_some(),
            "405 without Allow: {shown}"
        );
    }
    let large = json!({"model": ECHO, "input": "a".repeat(2 * 1024 * 1024)}).to_string();
    refused(&client, &client.send(post(&large)).await, (413, "body_too_large"));
    client.send(good().without("content-type")).await.ok();
    mesh.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_checked_and_their_rights_and_limits_kept() {
    let mesh = Mesh::start(MeshOptions {
        workers: vec![WorkerSpec::echo(&[])],
        ..MeshOptions::default()
    })
    .await;
    let (key, info) = mesh.create_key(&ordinary("t")).await;
    let client = mesh.client(&key);
    let anybody = Client {
        key: None,
        ..client.clone()
    };
    for request in [
        Request::embed(ECHO, "a"),
        Request::get("/v1/models"),
        Request::get("/v1/usage"),
    ] {
        let answer = anybody.send(request).await;
        refused(&anybody, &answer, (401, "missing_key"));
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    }
    let unknown = format!("ptl_live_{}_{}", "k".repeat(12), "s".repeat(43));
    let unknown = format!("{unknown}{}", key_checksum(&unknown));
    for bad in ["garbage", "sk-1234", "ptl_live_x_y", &unknown] {
        let stranger = mesh.client(bad);
        refused(&stranger, &stranger.embed(ECHO, "a").await, (401, "invalid_key"));
    }
    for header in ["x-api-key", "api-key"] {
        anybody.send(Request::embed(ECHO, "a").header(header, &key)).await.ok();
    }

    let narrow = CreateKey {
        models: vec!["other-*".to_owned()],
        scopes: vec![Scope::Inference],
        ..ordinary("t")
    };
    let narrow = mesh.client(&mesh.create_key(&narrow).await.0);
    assert_eq!(
        refused(&narrow, &narrow.embed(ECHO, "a").await, (403, "forbidden")),
        json!("model")
    );
    refused(&narrow, &narrow.get("/v1/usage").await, (403, "forbidden"));
    assert_eq!(
        narrow.get("/v1/models").await.ok().json()["data"],
        json!([]),
        "what it may not use is not shown"
    );

    client.embed(ECHO, "a").await.ok();
    mesh.change_key("disable", &info.kid).await;
    eventually("a disabled key is refused", DEADLINE, || async {
        client.embed(ECHO, "a").await.status == 401
    })
    .await;
    refused(&client, &client.embed(ECHO, "a").await, (401, "invalid_key"));
    mesh.change_key("enable", &info.kid).await;
    eventually("an enabled key works", DEADLINE, || async {
        client.embed(ECHO, "a").await.status == 200
    })
    .await;
    mesh.change_key("delete", &info.kid).await;
    eventually("a deleted key is refused", DEADLINE, || async {
        client.embed(ECHO, "a").await.status == 401
    })
    .await;

    let limit = RequestLimit {
        per_minute: 2,
        burst: 2,
    };
    let limited = CreateKey {
        request_limit: Some(limit),
        ..ordinary("limited")
    };
    let limited = mesh.client(&mesh.create_key(&limited).await.0);
    let first = limited.embed(ECHO, "a").await.ok();
    assert_eq!(first.header("x-ratelimit-limit-requests"), Some("2"));
    limited.embed(ECHO, "a").await.ok();
    let third = limited.embed(ECHO, "a").await;
    refused(&limited, &third, (429, "rate_limited"));
    assert_eq!(third.header("x-ratelimit-limit-requests"), Some("2"));
    assert_eq!(third.header("x-ratelimit-remaining-requests"), Some("0"));
    let reset = third.header("x-ratelimit-reset-requests").unwrap();
    assert!(
        reset.ends_with('s') && reset.starts_with(|digit: char| digit.is_ascii_digit()),
        "{reset}"
    );
    mesh.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_deadlines_and_missing_workers_are_told_at_once() {
    const SLOW: &str = "slow";
    // A batch that no test outlives.
    let slow = WorkerSpec::echo_named(
        SLOW,
        &["echo.batch_us=3600000000", "queue.max_queued_per_tenant_lane=4"],
    );
    let options = MeshOptions {
        workers: vec![slow, WorkerSpec::echo(&[])],
        gateway: &["dispatch.no_worker_grace_ms=0"],
        ..MeshOptions::default()
    };
    let mut mesh = Mesh::start(options).await;
    let client = mesh.client(&mesh.key("t").await);
    let hasty = |text: &str| Request::embed(SLOW, text).header("x-portalis-timeout-ms", "1500");

    let answers = all_at_once(&client, (0..8).map(|number| hasty(&format!("text {number}"))).collect()).await;
    let with = |status: u16| {
        answers
            .iter()
            .filter(|answer| answer.status == status)
            .collect::<Vec<_>>()
    };
    let (full, late) = (with(429), with(504));
    assert_eq!(
        (full.len(), late.len()),
        (4, 4),
        "{:?}",
        answers.iter().map(|answer| answer.status).collect::<Vec<_>>()
    );
    full.iter()
        .for_each(|answer| drop(refused(&client, answer, (429, "tenant_queue_full"))));
    late.iter()
        .for_each(|answer| drop(refused(&client, answer, (504, "deadline_exceeded"))));
    let other = mesh.client(&mesh.key("other").await);
    refused(&other, &other.send(hasty("mine")).await, (504, "deadline_exceeded"));

    mesh.workers[0].kill();
    let brief = || Request::embed(SLOW, "nobody is there").header("x-portalis-timeout-ms", "100");
    eventually("a model without workers is refused", DEADLINE, || async {
        client.send(brief()).await.status == 503
    })
    .await;
    refused(&client, &client.send(brief()).await, (503, "no_worker"));
    assert_eq!(
        client.get("/v1/health/ready").await.status,
        200,
        "another model is served"
    );
    client.embed(ECHO, "a").await.ok();
    assert!(mesh.workers[1].drain().await.success());
    eventually("a mesh without workers is not ready", DEADLINE, || async {
        client.get("/v1/health/ready").await.status == 503
    })
    .await;
    refused(&client, &client.get("/v1/health/ready").await, (503, "no_worker"));
    assert_eq!(client.get("/v1/health/live").await.status, 200);
    mesh.finish().await;
}
