//! The broker is killed and comes back: answers or clean refusals, and no fact is lost.

use schemas::streams;
use testkit::eventually;

use crate::mesh::http::{Answer, Request};
use crate::mesh::load::{Load, all_answered};
use crate::mesh::worker::{ECHO, WorkerSpec};
use crate::mesh::{DEADLINE, Mesh, MeshOptions};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_costs_nobody_an_answer_or_a_fact() {
    let spec = || WorkerSpec::echo(&["echo.batch_us=5000", "batch.max_items=4"]);
    let mut mesh = Mesh::start(MeshOptions {
        workers: vec![spec(), spec()],
        ..MeshOptions::default()
    })
    .await;
    let client = mesh.client(&mesh.key("t").await);
    let load = Load::start(&client, ECHO, 8);
    let prober = mesh.client(&mesh.key("prober").await);
    load.more(200, 60).await;
    mesh.server.kill();
    // Those in hand wait for the broker's return; whoever comes now is refused at once.
    let brief = || Request::embed(ECHO, "is it down?").header("x-portalis-timeout-ms", "300");
    eventually("new requests are refused", DEADLINE, || async {
        prober.send(brief()).await.status == 503
    })
    .await;
    mesh.server.restart().await;
    load.more(200, 60).await;
    let answers = load.finish().await;
    let (good, refused): (Vec<Answer>, Vec<Answer>) = answers.into_iter().partition(|answer| answer.status == 200);
    for answer in &refused {
        let text = answer.text();
        assert_eq!(answer.status, 503, "{text}");
        assert!(
            ["unavailable", "no_worker"].contains(&answer.error_code().as_str()),
            "{text}"
        );
        assert!(answer.header("retry-after").is_some(), "{text}");
    }
    let ids = all_answered(&good);
    eventually("every service is well again", DEADLINE, || async {
        let well = mesh
            .services
            .iter()
            .all(|service| service.is_well() && service.context.health.is_ready());
        well && mesh.gateways[0].service.is_well() && mesh.gateways[0].service.context.health.is_ready()
    })
    .await;
    client.embed(ECHO, "after the storm").await.ok();
    let mut books = mesh.books("t").await;
    // The last one is charged, too.
    assert_eq!(books.usage.computed, ids.len() as u64 + 1, "{:?}", books.usage);
    let last = books
        .requests(schemas::cost::CostKind::Computed)
        .difference(&ids)
        .next()
        .cloned()
        .unwrap();
    books.facts.retain(|_, fact| fact.request_id != last);
    books.usage.computed -= 1;
    books.charge_once(&ids);
    for place in 0..mesh.workers.len() {
        assert!(
            mesh.workers[place].ended().is_none(),
            "a worker ended:\n{}",
            mesh.workers[place].log()
        );
    }
    assert_eq!(
        mesh.bus.stream_info(&streams::dead().name).await.unwrap().messages,
        0,
        "nothing is dead"
    );
    mesh.finish().await;
}
