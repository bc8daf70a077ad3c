//! The program as people call it. Input: command lines, a real nats-server. Output: what it prints and its exit code.
//! The whole mesh is tested in `loadtests/mesh`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::net::TcpListener;
use std::process::{Command, Output};
use std::time::Duration;

use bus::{Bus, BusConfig, Headers};
use schemas::dead::DeadLetter;
use schemas::fleet::{Beat, InstanceState, ScaleDecision, ScaleInputs, ScaleReason};
use schemas::ids::RequestId;
use schemas::work::{EmbedInput, EmbedTask, Lane, Task, Work};
use schemas::{streams, subjects, wire};
use serde_json::Value;
use testkit::NatsServer;

const LIMIT: Duration = Duration::from_secs(30);

fn portalis(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_portalis"))
        .args(arguments)
        .output()
        .unwrap()
}

/// What it printed, of a command that must succeed.
async fn answer(url: &str, line: &str) -> String {
    let arguments: Vec<String> = line.split(' ').chain(["--nats-url", url]).map(str::to_owned).collect();
    let run = move || portalis(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{line}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The one line that it complained with.
fn complaint(arguments: &[&str]) -> String {
    let output = portalis(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
    assert_eq!(
        (errors.lines().count(), output.stdout.len()),
        (1, 0),
        "{arguments:?}: {errors}"
    );
    assert!(errors.starts_with("error: "), "{errors}");
    errors
}

fn dead_letter() -> DeadLetter {
    let inputs = vec![EmbedInput::Text("poison".to_owned())];
    let task = Task::Embed(EmbedTask {
        inputs,
        truncate: Default::default(),
        input_type: None,
    });
    let work = Work {
        request_id: RequestId::new(),
        model: "m".to_owned(),
        submitted_at_ms: 0,
        task,
    };
    DeadLetter {
        subject: subjects::work("m", Lane::Interactive, "acme"),
        stream: "WORK_m".to_owned(),
        stream_sequence: 7,
        deliveries: 3,
        reason: "delivered 3 times without an answer".to_owned(),
        died_at_ms: 1_700_000_000_000,
        headers: vec![],
        payload: wire::encode(&work).unwrap().into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_answers_about_a_mesh() {
    let server = NatsServer::start().await;
    let (url, bus) = (
        server.url(),
        Bus::connect(&BusConfig::for_url(&server.url()), "test", None)
            .await
            .unwrap(),
    );
    let json = async |line: &str| serde_json::from_str::<Value>(&answer(&url, line).await).unwrap();

    // An empty mesh has nothing to tell, and that is no error.
    assert!(answer(&url, "dead list").await.contains("no dead letters"));
    assert!(answer(&url, "scale explain m").await.contains("no decision on m"));
    assert!(answer(&url, "status").await.contains("nobody beats"));
    assert!(answer(&url, "cache purge --tenant acme").await.contains("acme"));
    let text = complaint(&["keys", "list", "--nats-url", &url]);
    assert!(text.contains("portalis status"), "{text}");

    bus.ensure_stream(&streams::dead()).await.unwrap();
    bus.ensure_stream(&streams::events()).await.unwrap();
    let store = async |subject: &str, body: Vec<u8>| {
        bus.publish_acked(subject, Headers::new(), body.into(), LIMIT)
            .await
            .unwrap();
    };
    store(&subjects::dead("m"), wire::encode(&dead_letter()).unwrap()).await;
    for (model, to) in [("m", 2), ("other", 9), ("m", 3)] {
        let decision = ScaleDecision {
            model: model.to_owned(),
            from: to - 1,
            to,
            reason: ScaleReason::Backlog,
            observed: ScaleInputs::default(),
            decided_at_ms: 1_700_000_000_000 + u64::from(to),
        };
        store(&subjects::scale(model), wire::encode(&decision).unwrap()).await;
    }

    let letters = json("dead list --json").await;
    assert_eq!(
        (letters[0]["number"].as_u64(), letters.as_array().unwrap().len()),
        (Some(1), 1),
        "{letters}"
    );
    let letter = json("dead show 1").await;
    assert_eq!(letter["work"]["task"]["embed"]["inputs"][0], "poison", "{letter}");
    let decisions = json("scale explain m --json").await;
    let targets: Vec<_> = decisions
        .as_array()
        .unwrap()
        .iter()
        .map(|decision| decision["to"].as_u64())
        .collect();
    assert_eq!(targets, [Some(2), Some(3)], "{decisions}");
    assert!(answer(&url, "scale explain m --limit 1").await.contains("2 to 3"));

    // A replay needs a key of the tenant whose work it was.
    let text = complaint(&["dead", "replay", "1", "--key-file", "/no/such", "--nats-url", &url]);
    assert!(text.contains("tenant acme") && text.contains("--key-file"), "{text}");
    assert!(complaint(&["dead", "show", "9", "--nats-url", &url]).contains("no dead letter 9"));

    // Who beats is seen.
    let beat = Beat {
        service: "auth".to_owned(),
        instance: "auth-1".to_owned(),
        version: String::new(),
        started_at_ms: 1,
        state: InstanceState::Draining,
        worker: None,
    };
    let beating = tokio::spawn({
        let (bus, body) = (bus.clone(), wire::encode(&beat).unwrap());
        async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(100));
            loop {
                ticks.tick().await;
                let _ = bus
                    .publish("portalis.v1.beat.auth.auth-1", Headers::new(), body.clone().into())
                    .await;
            }
        }
    });
    let status = json("status --json").await;
    assert_eq!(status["instances"][0]["state"], "draining", "{status}");
    beating.abort();
}

#[test]
fn what_cannot_be_done_is_told_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    // Any file stands for the worker program: nothing gets as far as to start it.
    let worker = env!("CARGO_BIN_EXE_portalis");
    let up = [
        "up",
        "--data-dir",
        data,
        "--worker-binary",
        worker,
        "--no-default-model",
        "--echo",
        "e",
    ];
    let cases: [(&[&str], &str); 6] = [
        (&["--port", &port, "--ops-port", "0"], "choose another with --port"),
        (&["--port", "0", "--ops-port", &port], "choose another with --ops-port"),
        (
            &["--port", "0", "--ops-port", "0", "--nats-server", "/no/such"],
            "--nats-server",
        ),
        (
            &["--port", "0", "--ops-port", "0", "--model", "x=/no/such"],
            "--model x=PATH",
        ),
        (&["--port", "0", "--ops-port", "0", "--config", "/no/such"], "/no/such"),
        (
            &["--port", "0", "--ops-port", "0", "--worker-binary", "/no/such"],
            "--worker-binary",
        ),
    ];
    for (more, hint) in cases {
        let base = if more.contains(&"--worker-binary") {
            [&up[..3], &up[5..]].concat()
        } else {
            up.to_vec()
        };
        let text = complaint(&[&base[..], more].concat());
        assert!(text.contains(hint), "{text}");
    }
    assert!(complaint(&["up", "--data-dir", data, "--port", "0", "--worker-binary", worker]).contains("make setup"));
    assert!(complaint(&["keys", "list", "--data-dir", data]).contains("make up"));
    assert!(complaint(&["ledger", "verify", "--data-dir", data]).contains("--data-dir"));
}
