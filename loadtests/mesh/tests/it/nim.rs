//! NIM's fields and endpoints, in their exact shapes.

use schemas::http::MetadataBody;
use serde_json::{Value, json};

use crate::mesh::http::{Answer, Client, Request};
use crate::mesh::worker::{MINILM, WorkerSpec};
use crate::mesh::{Mesh, MeshOptions};

const DIMENSIONS: usize = 384;
const MAX_TOKENS: u64 = 256;

async fn embed(client: &Client, fields: Value) -> Answer {
    let mut body = json!({"model": MINILM, "input": "a small text"});
    body.as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    client.send(Request::post("/v1/embeddings", body.to_string())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nim_fields_and_endpoints_are_those_of_the_contract() {
    let mesh = Mesh::start(MeshOptions {
        workers: vec![WorkerSpec::minilm()],
        ..MeshOptions::default()
    })
    .await;
    let client = mesh.client(&mesh.key("t").await);
    fields(&client).await;
    endpoints(&client).await;
    mesh.finish().await;
}

async fn fields(client: &Client) {
    let plain = embed(client, json!({})).await.ok().vectors();
    assert_eq!((plain.len(), plain[0].len()), (1, DIMENSIONS));
    let same = [
        json!({"input_type": "query"}),
        json!({"input_type": "passage"}),
        json!({"model": format!("{MINILM}-query")}),
        json!({"model": format!("{MINILM}-passage")}),
        json!({"truncate": "NONE", "user": "somebody", "embedding_type": "float", "modality": ["text"]}),
        json!({"dimensions": DIMENSIONS}),
    ];
    for fields in same {
        let answer = embed(client, fields.clone()).await.ok();
        assert_eq!(answer.vectors(), plain, "{fields}");
        assert_eq!(answer.json()["model"], MINILM, "{fields}");
    }
    let refused = [
        (json!({"dimensions": 128}), "dimensions"),
        (json!({"embedding_type": "int8"}), "embedding_type"),
        (json!({"modality": "image"}), "modality"),
        (json!({"input_type": "both"}), "input_type"),
    ];
    for (fields, param) in refused {
        let answer = embed(client, fields.clone()).await;
        assert_eq!(
            (answer.status, &answer.json()["error"]["param"]),
            (400, &json!(param)),
            "{fields}: {}",
            answer.text()
        );
    }
    truncation(client).await;
}

async fn truncation(client: &Client) {
    let words = |range: std::ops::Range<usize>| range.map(|n| format!("word{n}")).collect::<Vec<_>>().join(" ");
    let long = words(0..600);
    for fields in [json!({"input": long}), json!({"input": long, "truncate": "NONE"})] {
        let answer = embed(client, fields).await;
        let text = answer.text();
        assert_eq!(
            (answer.status, answer.error_code().as_str()),
            (400, "input_too_long"),
            "{text}"
        );
        assert!(text.contains("exceeds maximum allowed token size 256"), "{text}");
        assert_eq!(answer.json()["error"]["param"], "input", "{text}");
    }
    let many = embed(client, json!({"input": ["short", long]})).await;
    assert_eq!(many.json()["error"]["param"], "input[1]", "{}", many.text());
    let cut = |side: &'static str| embed(client, json!({"input": long, "truncate": side}));
    let (start, end) = (cut("START").await.ok(), cut("END").await.ok());
    for answer in [&start, &end] {
        assert_eq!(answer.json()["usage"]["prompt_tokens"], MAX_TOKENS);
    }
    assert_ne!(start.vectors(), end.vectors());
    // END keeps the start: what follows changes nothing.
    let other_tail = embed(client, json!({"input": format!("{long} and more"), "truncate": "END"}))
        .await
        .ok();
    assert_eq!(other_tail.vectors(), end.vectors());
    let other_head = embed(
        client,
        json!({"input": format!("more and {long}"), "truncate": "START"}),
    )
    .await
    .ok();
    assert_eq!(other_head.vectors(), start.vectors());
}

async fn endpoints(client: &Client) {
    let anybody = Client {
        key: None,
        ..client.clone()
    };
    let live = anybody.get("/v1/health/live").await.ok().json();
    assert_eq!(
        (&live["object"], live["message"].is_string()),
        (&json!("health.response"), true),
        "{live}"
    );
    let ready = anybody.get("/v1/health/ready").await.ok().json();
    assert_eq!(
        ready,
        json!({"object": "health.response", "message": "Service is ready.", "ready": true})
    );
    let version = anybody.get("/v1/version").await.ok().json();
    assert!(
        version["release"].is_string() && version["api"].is_string(),
        "{version}"
    );
    assert_eq!(version.as_object().unwrap().len(), 2, "{version}");

    let metadata = anybody.get("/v1/metadata").await.ok();
    let typed: MetadataBody = serde_json::from_slice(&metadata.body).unwrap();
    assert_eq!(
        (typed.model_info.len(), typed.model_info[0].short_name.as_str()),
        (1, MINILM)
    );
    let metadata = metadata.json();
    for field in [
        "assetInfo",
        "licenseInfo",
        "modelInfo",
        "repository_override",
        "version",
        "selectedModelProfileId",
    ] {
        assert!(metadata.get(field).is_some(), "{field}: {metadata}");
    }
    for field in ["name", "path", "sha", "size"] {
        assert!(metadata["licenseInfo"].get(field).is_some(), "{field}: {metadata}");
    }

    let models = client.get("/v1/models").await.ok().json();
    assert_eq!(
        (&models["object"], models["data"].as_array().map(Vec::len)),
        (&json!("list"), Some(1)),
        "{models}"
    );
    let model = &models["data"][0];
    let shape = (
        &model["id"],
        &model["object"],
        &model["root"],
        &model["owned_by"],
        model["created"].is_u64(),
    );
    assert_eq!(
        shape,
        (
            &json!(MINILM),
            &json!("model"),
            &json!(MINILM),
            &json!("portalis"),
            true
        )
    );
    assert_eq!(&client.get(&format!("/v1/models/{MINILM}")).await.ok().json(), model);

    let openapi = anybody.get("/openapi.json").await.ok().json();
    assert!(
        openapi["openapi"]
            .as_str()
            .is_some_and(|version| version.starts_with("3.")),
        "{}",
        openapi["openapi"]
    );
    for path in [
        "/v1/embeddings",
        "/v1/ranking",
        "/v1/rerank",
        "/v1/responses",
        "/v1/tokenize",
        "/v1/detokenize",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/usage",
        "/v1/health/live",
        "/v1/health/ready",
        "/v1/version",
        "/v1/metadata",
        "/v1/metrics",
        "/openapi.json",
    ] {
        assert!(openapi["paths"].get(path).is_some(), "{path} is not in openapi.json");
    }
    let metrics = anybody.get("/v1/metrics").await.ok();
    assert!(metrics.header("content-type").unwrap().starts_with("text/plain"));
    assert!(
        metrics.text().contains("portalis_gateway_requests_total{"),
        "{}",
        metrics.text()
    );
}
