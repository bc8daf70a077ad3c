//! Gateways: several share one limit, and one that stops finishes what it has.

use std::time::Instant;

use schemas::policy::{CreateKey, RequestLimit};
use testkit::eventually;

use crate::mesh::http::Request;
use crate::mesh::load::all_answered;
use crate::mesh::worker::{ECHO, WorkerSpec};
use crate::mesh::{DEADLINE, Mesh, MeshOptions, all_at_once, ordinary};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_never_admit_more_than_the_keys_limit() {
    const LIMIT: RequestLimit = RequestLimit {
        per_minute: 60,
        burst: 20,
    };
    let options = MeshOptions {
        workers: vec![WorkerSpec::echo(&[])],
        more_gateways: 1,
        ..MeshOptions::default()
    };
    let mesh = Mesh::start(options).await;
    let (key, _) = mesh
        .create_key(&CreateKey {
            request_limit: Some(LIMIT),
            ..ordinary("t")
        })
        .await;
    let began = Instant::now();
    let requests = || (0..40).map(|_| Request::embed(ECHO, "a")).collect();
    let (one, two) = (mesh.client_of(0, &key), mesh.client_of(1, &key));
    let (first, second) = tokio::join!(all_at_once(&one, requests()), all_at_once(&two, requests()));
    let elapsed = began.elapsed().as_secs_f64();
    let answers: Vec<_> = first.into_iter().chain(second).collect();
    let count = |status: u16| answers.iter().filter(|answer| answer.status == status).count();
    let (admitted, refused) = (count(200), count(429));
    assert_eq!(
        admitted + refused,
        80,
        "{:?}",
        answers.iter().map(|answer| answer.status).collect::<Vec<_>>()
    );
    let allowed = f64::from(LIMIT.burst) + elapsed * f64::from(LIMIT.per_minute) / 60.0;
    assert!(admitted as f64 <= allowed, "{admitted} admitted, {allowed} allowed");
    assert!(
        admitted >= LIMIT.burst as usize / 2,
        "only {admitted} admitted of a burst of {}",
        LIMIT.burst
    );
    mesh.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_gateway_answers_what_it_has_and_takes_no_more() {
    let workers = vec![WorkerSpec::echo(&["echo.batch_us=600000"])];
    let mut mesh = Mesh::start(MeshOptions {
        workers,
        ..MeshOptions::default()
    })
    .await;
    let client = mesh.client(&mesh.key("t").await);
    let asked = tokio::spawn({
        let client = client.clone();
        async move {
            all_at_once(
                &client,
                (0..4).map(|number| Request::embed(ECHO, format!("{number}"))).collect(),
            )
            .await
        }
    });
    eventually("all are in hand", DEADLINE, || async {
        mesh.workers[0].in_hand().await == 4.0
    })
    .await;
    let gateway = mesh.gateways.remove(0);
    gateway.service.context.shutdown.start();
    eventually("the port is closed", DEADLINE, || async {
        client.begin(&Request::get("/v1/version")).await.is_err()
    })
    .await;
    assert!(!asked.is_finished(), "the port closed before the answers");
    gateway.service.drain().await;
    let ids = all_answered(&asked.await.unwrap());
    assert_eq!(ids.len(), 4);
    mesh.books("t").await.charge_once(&ids);
    mesh.finish().await;
}
