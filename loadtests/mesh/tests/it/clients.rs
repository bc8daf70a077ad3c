//! Clients that leave: their work stops, and they pay for what ran.

use schemas::cost::CostKind;
use schemas::streams;
use testkit::eventually;

use crate::mesh::http::Request;
use crate::mesh::worker::{ECHO, WorkerSpec};
use crate::mesh::{DEADLINE, Mesh, MeshOptions, all_at_once};

const CANCELLED: &str = "portalis_gateway_cancelled_total";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_of_clients_that_leave_is_stopped_and_only_what_ran_is_charged() {
    // Three slots are one for each lane; a batch lasts long enough for the second client to come and go meanwhile.
    let workers = vec![WorkerSpec::echo(&["echo.batch_us=4000000", "queue.slots=3"])];
    let mesh = Mesh::start(MeshOptions {
        workers,
        ..MeshOptions::default()
    })
    .await;
    let client = mesh.client(&mesh.key("t").await);
    let queue = streams::work_stream_name(ECHO);
    let queued = |wanted: u64| {
        let (bus, queue) = (mesh.bus.clone(), queue.clone());
        move || {
            let (bus, queue) = (bus.clone(), queue.clone());
            async move { bus.stream_info(&queue).await.is_ok_and(|info| info.messages == wanted) }
        }
    };
    let running = client.begin(&Request::embed(ECHO, "runs")).await.unwrap();
    eventually("the first runs", DEADLINE, || async {
        mesh.workers[0].in_hand().await == 1.0
    })
    .await;
    let waiting = client.begin(&Request::embed(ECHO, "waits")).await.unwrap();
    eventually("the second is queued", DEADLINE, queued(2)).await;
    drop(waiting);
    eventually("queued work of a client that left is deleted", DEADLINE, queued(1)).await;
    assert_eq!(mesh.gateway_metric(CANCELLED, ""), 1.0);
    assert_eq!(mesh.workers[0].in_hand().await, 1.0, "the first was not disturbed");
    drop(running);
    eventually("the other one left, too", DEADLINE, || async {
        mesh.gateway_metric(CANCELLED, "") == 2.0
    })
    .await;
    let books = mesh.books("t").await;
    let cancelled: Vec<_> = books
        .facts
        .values()
        .filter(|fact| fact.kind == CostKind::Cancelled)
        .collect();
    assert_eq!(
        (books.facts.len(), cancelled.len()),
        (1, 1),
        "only what ran is charged: {:?}",
        books.facts
    );
    assert!(cancelled[0].compute_ns >= 4_000_000_000, "{cancelled:?}");
    assert_eq!(
        mesh.workers[0]
            .metric("batch_processing_requests_total", "outcome=\"cancelled\"")
            .await,
        1.0
    );
    assert_eq!(
        mesh.workers[0]
            .metric("batch_processing_requests_total", "outcome=\"done\"")
            .await,
        0.0
    );

    // Of those who wait together the first may leave.
    let first = client.begin(&Request::embed(ECHO, "together")).await.unwrap();
    eventually("the first runs", DEADLINE, || async {
        mesh.workers[0].in_hand().await == 1.0
    })
    .await;
    let others = tokio::spawn({
        let client = client.clone();
        async move { all_at_once(&client, vec![Request::embed(ECHO, "together"); 7]).await }
    });
    drop(first);
    for answer in others.await.unwrap() {
        answer.ok();
    }
    mesh.finish().await;
}
