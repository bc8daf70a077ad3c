//! Workers that are killed, frozen and drained: nobody goes without an answer, nobody pays twice.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use schemas::cost::CostKind;
use testkit::eventually;

use crate::mesh::http::{Answer, Client, Request};
use crate::mesh::load::{Load, all_answered};
use crate::mesh::worker::{ECHO, WorkerSpec};
use crate::mesh::{DEADLINE, Mesh, MeshOptions, all_at_once};

const RESCUED: &str = "portalis_gateway_rescued_total";
const REPUBLISHED: &str = "portalis_gateway_republished_total";

/// Slow, and with few slots, so that the work spreads over all workers.
fn slow() -> WorkerSpec {
    WorkerSpec::echo(&["echo.batch_us=250000", "batch.max_items=4", "queue.slots=8"])
}

fn burst(client: &Client, count: usize) -> tokio::task::JoinHandle<Vec<Answer>> {
    let client = client.clone();
    tokio::spawn(async move {
        let requests = (0..count)
            .map(|number| Request::embed(ECHO, format!("burst {number}")))
            .collect();
        all_at_once(&client, requests).await
    })
}

async fn begun(mesh: &Mesh, place: usize) {
    eventually("the worker has work in hand", DEADLINE, || async {
        mesh.workers[place].in_hand().await > 0.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_of_a_killed_worker_is_finished_by_another_and_charged_once() {
    let mut mesh = Mesh::start(MeshOptions {
        workers: vec![slow(), slow()],
        ..MeshOptions::default()
    })
    .await;
    let client = mesh.client(&mesh.key("t").await);
    let answers = burst(&client, 24);
    begun(&mesh, 0).await;
    mesh.workers[0].kill();
    let ids = all_answered(&answers.await.unwrap());
    let given_back = mesh.gateway_metric(RESCUED, "");
    let requeued = mesh.gateway_metric(REPUBLISHED, "silent_worker");
    assert!(given_back + requeued >= 1.0, "the gateway did nothing");
    let redelivered = mesh.workers[1].metric("portalis_worker_redelivered_total", "").await;
    assert_eq!(
        redelivered, given_back,
        "what came again came because the gateway gave it back, not after the ack wait"
    );
    mesh.books("t").await.charge_once(&ids);
    mesh.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_of_a_frozen_worker_is_finished_by_another_and_its_late_answers_change_nothing() {
    let mut mesh = Mesh::start(MeshOptions {
        workers: vec![slow(), slow()],
        ..MeshOptions::default()
    })
    .await;
    let client = mesh.client(&mesh.key("t").await);
    let answers = burst(&client, 24);
    begun(&mesh, 0).await;
    mesh.workers[0].signal(libc::SIGSTOP);
    let answers = answers.await.unwrap();
    let ids = all_answered(&answers);
    assert!(
        mesh.gateway_metric(RESCUED, "") + mesh.gateway_metric(REPUBLISHED, "silent_worker") >= 1.0,
        "nothing was given back by the gateway"
    );
    mesh.forget_beat(0);
    mesh.workers[0].signal(libc::SIGCONT);
    mesh.worker_ready(0).await;
    eventually("the thawed worker has done its late work", DEADLINE, || async {
        let finished = mesh.workers[0].in_hand().await == 0.0;
        finished && !mesh.books("t").await.again.is_empty()
    })
    .await;
    let books = mesh.books("t").await;
    books.charge_once(&ids);
    assert!(
        books.usage.wasted_ns > 0,
        "what was done twice is booked as waste: {:?}",
        books.usage
    );
    // The thawed worker serves again.
    mesh.workers[1].kill();
    client.embed(ECHO, "after the thaw").await.ok();
    mesh.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_worker_finishes_what_it_has_and_nothing_is_done_twice() {
    let spec = || WorkerSpec::echo(&["echo.batch_us=60000", "batch.max_items=2", "queue.slots=4"]);
    let mut mesh = Mesh::start(MeshOptions {
        workers: vec![spec(), spec()],
        ..MeshOptions::default()
    })
    .await;
    let client = mesh.client(&mesh.key("t").await);
    let load = Load::start(&client, ECHO, 8);
    load.more(200, 8).await;
    begun(&mesh, 0).await;
    let status = mesh.workers[0].drain().await;
    assert!(status.success(), "{status}:\n{}", mesh.workers[0].log());
    load.more(200, 24).await;
    let ids = all_answered(&load.finish().await);
    let books = mesh.books("t").await;
    books.charge_once(&ids);
    assert!(books.again.is_empty() && books.usage.wasted_ns == 0, "{books:?}");
    assert_eq!(mesh.gateway_metric(RESCUED, ""), 0.0);
    mesh.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_kill_at_any_moment_loses_or_doubles_a_charge() {
    const WORKERS: usize = 3;
    const ROUNDS: usize = 4;
    let mut random = Random::new();
    let spec = WorkerSpec::echo(&["echo.batch_us=20000", "batch.max_items=2", "queue.slots=4"]);
    let mut mesh = Mesh::start(MeshOptions {
        workers: vec![spec.clone(); WORKERS],
        ..MeshOptions::default()
    })
    .await;
    let began = Instant::now();
    let client = mesh.client(&mesh.key("t").await);
    let load = Load::start(&client, ECHO, 10);
    let mut alive: Vec<usize> = (0..WORKERS).collect();
    for _ in 0..ROUNDS {
        load.more(200, 1 + random.below(40)).await;
        let victim = alive.swap_remove(random.below(alive.len()));
        mesh.workers[victim].kill();
        let place = mesh.spawn(&spec);
        mesh.worker_ready(place).await;
        alive.push(place);
    }
    load.more(200, 20).await;
    let ids = all_answered(&load.finish().await);
    let books = mesh.books("t").await;
    books.charge_once(&ids);
    let charged: u64 = books
        .facts
        .values()
        .filter(|fact| fact.kind == CostKind::Computed)
        .map(|fact| fact.compute_ns)
        .sum();
    assert_eq!(books.usage.compute_ns, charged, "the bill is the sum of its facts");
    assert_eq!(
        books.usage.compute_ns + books.usage.wasted_ns,
        books.device_ns(),
        "{:?}",
        books.usage
    );
    let possible = began.elapsed().as_nanos() * (WORKERS + 1) as u128;
    assert!(
        u128::from(books.device_ns()) <= possible,
        "more device time than the workers had"
    );
    mesh.finish().await;
}

/// Numbers from a seed that is printed; a failing run shows it.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let seed = std::env::var("PORTALIS_TEST_SEED")
            .ok()
            .and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or(now.as_nanos() as u64);
        println!("seed: run with PORTALIS_TEST_SEED={seed} to kill at the same points");
        Self(seed)
    }

    /// SplitMix64.
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}
