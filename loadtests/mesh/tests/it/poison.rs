//! Work that kills its worker: it dies after its last attempt, with the reason, and the queue goes on.

use std::os::unix::process::ExitStatusExt;

use schemas::dead::DeadLetter;
use schemas::{streams, wire};
use testkit::eventually;

use crate::mesh::http::Request;
use crate::mesh::load::all_answered;
use crate::mesh::worker::{ECHO, WorkerSpec};
use crate::mesh::{DEADLINE, Mesh, MeshOptions, all_at_once};

const POISON: &str = "poison pill";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_dies_after_its_last_attempt_and_everybody_else_is_served() {
    let spec = WorkerSpec::echo(&["echo.batch_us=20000", &format!("echo.abort_on={POISON}")]);
    let mut mesh = Mesh::start(MeshOptions {
        workers: vec![spec.clone()],
        ..MeshOptions::default()
    })
    .await;
    let client = mesh.client(&mesh.key("t").await);
    let poisoned = tokio::spawn({
        let client = client.clone();
        async move { client.embed(ECHO, POISON).await }
    });
    let others = tokio::spawn({
        let client = client.clone();
        let requests = (0..6)
            .map(|number| Request::embed(ECHO, format!("innocent {number}")))
            .collect();
        async move { all_at_once(&client, requests).await }
    });
    // As the supervisor does: a worker that has died is started again.
    let (mut deaths, mut last) = (0, 0);
    eventually("the poison is given up and the others are answered", DEADLINE, || {
        if let Some(status) = mesh.workers[last].ended() {
            assert_eq!(
                status.signal(),
                Some(libc::SIGABRT),
                "{status}:\n{}",
                mesh.workers[last].log()
            );
            deaths += 1;
            last = mesh.spawn(&spec);
        }
        std::future::ready(poisoned.is_finished() && others.is_finished())
    })
    .await;
    let answer = poisoned.await.unwrap();
    assert_eq!(
        (answer.status, answer.error_code().as_str()),
        (500, "poisoned"),
        "{}",
        answer.text()
    );
    assert_eq!(deaths, streams::MAX_WORK_DELIVERIES, "one death per attempt");
    let ids = all_answered(&others.await.unwrap());
    let after = client.embed(ECHO, "after the poison").await.ok();
    let ids = ids.into_iter().chain([after.request_id()]).collect();
    mesh.books("t").await.charge_once(&ids);

    let dead = streams::dead().name;
    let letters = mesh.bus.stream_info(&dead).await.unwrap();
    assert_eq!(letters.messages, 1, "one dead letter");
    let letter = mesh.bus.get_message(&dead, letters.last_sequence).await.unwrap();
    let letter: DeadLetter = wire::decode(&letter.payload).unwrap();
    assert_eq!(letter.reason, "delivered 3 times without an answer");
    assert_eq!(letter.deliveries, streams::MAX_WORK_DELIVERIES as u64);
    let work: schemas::work::Work = wire::decode(&letter.payload).unwrap();
    assert_eq!(work.request_id.to_string(), answer.request_id());
    assert!(
        letter
            .headers
            .iter()
            .all(|(name, _)| name != schemas::headers::IDENTITY),
        "identities are not kept"
    );
    mesh.finish().await;
}
