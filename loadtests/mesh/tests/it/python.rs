//! Clients that are not ours: the Python example over NATS, and the stock OpenAI client over HTTP.

use std::path::PathBuf;
use std::process::Stdio;

use schemas::policy::{CreateKey, RequestLimit};
use serde_json::Value;
use tokio::process::Command;

use crate::mesh::worker::{CALLER, MINILM, RANKER, TRANSLATOR, WorkerSpec, repository};
use crate::mesh::{DEADLINE, Mesh, MeshOptions, ordinary};

/// The Python with the tests' packages.
fn python() -> PathBuf {
    let python = repository().join(".portalis/venv/bin/python");
    assert!(
        python.is_file(),
        "{} is not there: run scripts/setup.sh --tests",
        python.display()
    );
    python
}

/// Runs a script; gives its output.
async fn run(script: PathBuf, arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(python());
    command.arg(&script).args(arguments).envs(variables.iter().copied());
    command
        .env_remove("http_proxy")
        .env_remove("HTTP_PROXY")
        .env("NO_PROXY", "*");
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output()).await.unwrap().unwrap();
    let (out, err) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    assert!(
        output.status.success(),
        "{}: {}\n{out}{err}",
        script.display(),
        output.status
    );
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_internal_publisher_gets_the_answers_of_http_in_both_formats() {
    let mesh = Mesh::start(MeshOptions {
        workers: vec![WorkerSpec::minilm()],
        ..MeshOptions::default()
    })
    .await;
    let key = mesh.key("t").await;
    let texts = ["one text over the bus", "and another one"];
    let http = mesh.client(&key).embed(MINILM, serde_json::json!(texts)).await.ok();
    let (wanted, usage) = (http.vectors(), http.json()["usage"]["prompt_tokens"].clone());
    let script = || repository().join("schemas/examples/python/embed_over_nats.py");
    let url = mesh.url();
    let variables = [("PORTALIS_NATS_URL", url.as_str()), ("PORTALIS_API_KEY", key.as_str())];
    for flags in [
        &["--model", MINILM][..],
        &["--model", MINILM, "--json", "--lane", "batch"][..],
    ] {
        let arguments: Vec<&str> = flags.iter().chain(&texts).copied().collect();
        let output = run(script(), &arguments, &variables).await;
        let lines: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), wanted.len(), "{output}");
        for (line, vector) in lines.iter().zip(&wanted) {
            assert_eq!(
                (&line["dims"], &line["usage"]["input_tokens"]),
                (&Value::from(vector.len()), &usage),
                "{output}"
            );
            let first: Vec<f32> = serde_json::from_value(line["first"].clone()).unwrap();
            for (got, wanted) in first.iter().zip(vector) {
                assert!((got - wanted).abs() < 1e-6, "{first:?} is not {:?}", &vector[..3]);
            }
        }
    }
    assert_eq!(
        mesh.books("t").await.usage.computed,
        3,
        "publishers pay as everybody does"
    );
    mesh.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_internal_publisher_ranks_as_http_does_in_both_formats() {
    let mesh = Mesh::start(MeshOptions {
        workers: vec![WorkerSpec::encoder(RANKER)],
        ..MeshOptions::default()
    })
    .await;
    let key = mesh.key("t").await;
    let passages = ["a worker", "How often is a request paid?", "Which mountain is high?"];
    let texts: Vec<Value> = passages.iter().map(|text| serde_json::json!({"text": text})).collect();
    let body = serde_json::json!({"model": RANKER, "query": {"text": "a"}, "passages": texts});
    let request = crate::mesh::http::Request::post("/v1/ranking", body.to_string());
    let http = mesh.client(&key).send(request).await.ok().json();
    let url = mesh.url();
    let variables = [("PORTALIS_NATS_URL", url.as_str()), ("PORTALIS_API_KEY", key.as_str())];
    for flags in [&[][..], &["--json", "--lane", "batch"][..]] {
        let arguments = [&["--model", RANKER, "--query", "a"][..], flags, &passages].concat();
        let script = repository().join("schemas/examples/python/rank_over_nats.py");
        let output = run(script, &arguments, &variables).await;
        let lines: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), passages.len(), "{output}");
        for (line, place) in lines.iter().zip(http["rankings"].as_array().unwrap()) {
            assert_eq!(line["index"], place["index"], "{output}");
            let difference = line["score"].as_f64().unwrap() - place["logit"].as_f64().unwrap();
            assert!(difference.abs() < 1e-5, "{output}");
            assert_eq!(
                line["usage"]["input_tokens"], http["usage"]["prompt_tokens"],
                "{output}"
            );
        }
    }
    assert_eq!(
        mesh.books("t").await.usage.computed,
        3,
        "publishers pay as everybody does"
    );
    mesh.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stock_openai_client_needs_only_base_url_and_key() {
    let mesh = Mesh::start(MeshOptions {
        workers: vec![WorkerSpec::minilm()],
        ..MeshOptions::default()
    })
    .await;
    let key = mesh.key("t").await;
    let limit = RequestLimit {
        per_minute: 1,
        burst: 1,
    };
    let (limited, _) = mesh
        .create_key(&CreateKey {
            request_limit: Some(limit),
            ..ordinary("limited")
        })
        .await;
    let (narrow, _) = mesh
        .create_key(&CreateKey {
            models: vec!["other".to_owned()],
            ..ordinary("t")
        })
        .await;
    let base_url = format!("http://{}/v1", mesh.gateways[0].address);
    let script = repository().join("loadtests/mesh/tests/python/openai_client.py");
    let output = run(script, &[&base_url, MINILM, &key, &limited, &narrow], &[]).await;
    assert!(output.ends_with("all is as it should be\n"), "{output}");
    // 100 in one call, 100 calls, two single ones and the limited tenant's one.
    let books = mesh.books("t").await;
    assert!(books.usage.requests >= 101, "{:?}", books.usage);
    mesh.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stock_openai_client_writes_text() {
    let folder = tempfile::tempdir().unwrap();
    let mesh = Mesh::start(MeshOptions {
        workers: vec![
            WorkerSpec::translator(),
            WorkerSpec::minilm(),
            WorkerSpec::caller(folder.path()),
        ],
        ..MeshOptions::default()
    })
    .await;
    let key = mesh.key("t").await;
    let base_url = format!("http://{}/v1", mesh.gateways[0].address);
    let script = repository().join("loadtests/mesh/tests/python/openai_chat.py");
    let output = run(script, &[&base_url, TRANSLATOR, MINILM, CALLER, &key], &[]).await;
    assert!(
        output.ends_with("the OpenAI client is content with the text\n"),
        "{output}"
    );
    mesh.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stock_openai_client_has_responses() {
    let mesh = Mesh::start(MeshOptions {
        workers: vec![WorkerSpec::translator(), WorkerSpec::encoder(RANKER)],
        ..MeshOptions::default()
    })
    .await;
    let key = mesh.key("t").await;
    let base_url = format!("http://{}/v1", mesh.gateways[0].address);
    let script = repository().join("loadtests/mesh/tests/python/openai_responses.py");
    let output = run(script, &[&base_url, TRANSLATOR, RANKER, &key], &[]).await;
    assert!(
        output.ends_with("the OpenAI client is content with the responses\n"),
        "{output}"
    );
    mesh.finish().await;
}
