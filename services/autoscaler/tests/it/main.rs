//! The autoscaler against a real nats-server. Input: heartbeats, queued work and a supervisor made by the test.
//! Output: decisions on the stream and orders to the supervisor.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use autoscaler::Autoscaler;
use bus::{Bus, BusConfig, Headers, ServeOptions};
use process::{CancellationToken, Context, Layers, Service};
use schemas::fleet::{Beat, Control, ControlReply, InstanceState, PoolInfo, ScaleDecision, ScaleReason, WorkerBeat};
use schemas::work::Lane;
use schemas::{streams, subjects, wire};
use testkit::{NatsServer, eventually};
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_secs(30);
const MODEL: &str = "m";

/// A server, a connection, and the autoscaler under test.
struct Bench {
    server: NatsServer,
    bus: Bus,
    context: Context,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Bench {
    async fn start(settings: &[&str]) -> Self {
        let server = NatsServer::start().await;
        let bus = Bus::connect(&BusConfig::for_url(&server.url()), "test", None)
            .await
            .unwrap();
        let layers = Layers::new().set("bus.url", server.url().into()).unwrap();
        let layers = settings
            .iter()
            .fold(layers, |layers, setting| layers.assign(setting).unwrap());
        let config = layers.load::<Autoscaler>().unwrap().service;
        let context = Context::new(Autoscaler::NAME);
        let serving = Autoscaler::serve(config, context.clone());
        let tasks = vec![tokio::spawn(async move { serving.await.unwrap() })];
        context.health.wait_ready(LIMIT).await.unwrap();
        Self {
            server,
            bus,
            context,
            stop: CancellationToken::new(),
            tasks,
        }
    }

    /// Beats until the end.
    fn beat(&mut self, beat: Beat) {
        let (bus, stop) = (self.bus.clone(), self.stop.clone());
        self.tasks.push(tokio::spawn(async move {
            let subject = subjects::beat(&beat.service, &beat.instance);
            let mut ticks = tokio::time::interval(Duration::from_millis(200));
            while !stop.is_cancelled() {
                ticks.tick().await;
                let _ = bus
                    .publish(&subject, Headers::new(), wire::encode(&beat).unwrap().into())
                    .await;
            }
        }));
    }

    /// A supervisor that does what it is told.
    async fn supervise(&mut self, wanted: &Arc<AtomicU32>) -> Arc<Mutex<Vec<Control>>> {
        self.beat(beat("supervisor", "supervisor-1", None));
        let orders = Arc::new(Mutex::new(Vec::new()));
        let subject = subjects::control("supervisor", "supervisor-1");
        let subscription = self.bus.subscribe(&subject, None).await.unwrap();
        let (bus, stop, wanted, seen) = (self.bus.clone(), self.stop.clone(), wanted.clone(), orders.clone());
        self.tasks.push(tokio::spawn(async move {
            let answer = |message: bus::Message| {
                let reply = match wire::decode(&message.payload).unwrap() {
                    Control::DescribePool => {
                        let wanted = wanted.load(Ordering::SeqCst);
                        ControlReply::Pools(vec![PoolInfo {
                            model: MODEL.to_owned(),
                            wanted,
                            running: wanted,
                            min: 1,
                            max: 3,
                        }])
                    }
                    order => {
                        if let Control::SetWorkers { workers, .. } = order {
                            wanted.store(workers, Ordering::SeqCst);
                        }
                        seen.lock().unwrap().push(order);
                        ControlReply::Accepted
                    }
                };
                let body = wire::encode(&reply).unwrap();
                async move { Some((Headers::new(), body.into())) }
            };
            bus.serve(subscription, ServeOptions::default(), stop, answer).await;
        }));
        orders
    }

    /// Work that nobody takes.
    async fn queue_work(&self, messages: usize) {
        self.bus.ensure_stream(&streams::work(MODEL, 64)).await.unwrap();
        for lane in Lane::ALL {
            self.bus
                .ensure_consumer(&streams::work_lane(MODEL, lane))
                .await
                .unwrap();
        }
        for _ in 0..messages {
            let subject = subjects::work(MODEL, Lane::Interactive, "t");
            self.bus
                .publish_acked(&subject, Headers::new(), "work".into(), LIMIT)
                .await
                .unwrap();
        }
    }

    async fn decisions(&self) -> Vec<ScaleDecision> {
        let stored = self
            .bus
            .reader("EVENTS", 0)
            .next_batch(100, Duration::from_millis(500))
            .await
            .unwrap();
        stored
            .iter()
            .map(|message| wire::decode(&message.payload).unwrap())
            .collect()
    }

    fn metric(&self, line: &str) -> f64 {
        let text = process::ops::metrics_text(std::slice::from_ref(&self.context)).unwrap();
        let found = text.lines().find_map(|found| found.strip_prefix(line));
        found.map_or(0.0, |value| value.trim().parse().unwrap())
    }

    async fn end(mut self) {
        self.context.shutdown.start();
        let serving = self.tasks.remove(0);
        tokio::time::timeout(LIMIT, serving).await.unwrap().unwrap();
        self.context.tasks.close_and_wait(LIMIT).await.unwrap();
        assert!(!self.context.tasks.failed());
        self.stop.cancel();
        for task in self.tasks {
            tokio::time::timeout(LIMIT, task).await.unwrap().unwrap();
        }
        self.server.stop().await;
    }
}

fn beat(service: &str, instance: &str, worker: Option<WorkerBeat>) -> Beat {
    Beat {
        service: service.to_owned(),
        instance: instance.to_owned(),
        version: String::new(),
        started_at_ms: 1,
        state: InstanceState::Ready,
        worker,
    }
}

fn worker() -> WorkerBeat {
    WorkerBeat {
        model: MODEL.to_owned(),
        slots: 8,
        in_hand: 0,
        waiting_tokens: 0,
        finished_total: 0,
        tokens_total: 0,
        busy_ns_total: 0,
        batch_us: 0,
        device: "cpu".to_owned(),
        pid: 1,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_work_makes_the_supervisor_start_one_more() {
    let mut bench = Bench::start(&["policy.max_queue_age_ms=1"]).await;
    let wanted = Arc::new(AtomicU32::new(1));
    bench.queue_work(5).await;
    bench.beat(beat("gpu-worker", "gpu-worker-1", Some(worker())));
    let orders = bench.supervise(&wanted).await;

    eventually("the supervisor is told", LIMIT, async || {
        !orders.lock().unwrap().is_empty()
    })
    .await;
    let order = Control::SetWorkers {
        model: MODEL.to_owned(),
        workers: 2,
    };
    assert_eq!(orders.lock().unwrap().first(), Some(&order));
    eventually("the decision is stored", LIMIT, async || {
        !bench.decisions().await.is_empty()
    })
    .await;
    let first = bench.decisions().await.remove(0);
    assert_eq!((first.from, first.to, first.reason), (1, 2, ScaleReason::QueueTooOld));
    assert_eq!((first.observed.queued, first.observed.ready_workers), (5, 1));
    assert!(first.observed.oldest_ms > 1, "{first:?}");
    let counted = r#"portalis_scale_decisions_total{reason="queue_too_old",service="autoscaler"}"#;
    assert!(bench.metric(counted) >= 1.0);
    assert!((bench.metric(r#"worker_queue_depth{service="autoscaler"}"#) - 5.0).abs() < 0.5);

    // The new worker does not come up: it counts as capacity, so nobody asks for a third.
    let looked = || bench.metric(r#"portalis_workers_wanted{service="autoscaler"}"#);
    eventually("the order is seen", LIMIT, async || looked() > 1.5).await;
    assert_eq!((wanted.load(Ordering::SeqCst), orders.lock().unwrap().len()), (2, 1));
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_cannot_be_seen_moves_nothing() {
    let mut bench = Bench::start(&["policy.max_queue_age_ms=1"]).await;
    let wanted = Arc::new(AtomicU32::new(1));
    bench.beat(beat("gpu-worker", "gpu-worker-1", Some(worker())));
    let orders = bench.supervise(&wanted).await;
    let held = r#"portalis_scale_holds_total{signal="queue",state="missing",service="autoscaler"}"#;
    eventually("several looks without a queue", LIMIT, async || {
        bench.metric(held) >= 3.0
    })
    .await;
    assert!(bench.decisions().await.is_empty());
    assert!(orders.lock().unwrap().is_empty());

    // Rubbish on the subjects that it listens to is no reason to stop either.
    for subject in ["portalis.v1.beat.x.y", "portalis.v1.beat.gpu-worker.gpu-worker-1"] {
        bench
            .bus
            .publish(subject, Headers::new(), vec![0xc1, 0xff].into())
            .await
            .unwrap();
    }
    let malformed = r#"portalis_autoscaler_malformed_messages_total{subject="beat",service="autoscaler"}"#;
    eventually("rubbish is counted", LIMIT, async || bench.metric(malformed) >= 2.0).await;
    let before = bench.metric(held);
    eventually("it still looks", LIMIT, async || bench.metric(held) > before).await;
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_workers_are_corrected_and_a_recommendation_changes_nothing() {
    let settings = [
        "actuator.kind=recommend",
        "actuator.min_workers=2",
        "actuator.max_workers=4",
    ];
    let mut bench = Bench::start(&settings).await;
    bench.beat(beat("gpu-worker", "gpu-worker-1", Some(worker())));
    let wanted = Arc::new(AtomicU32::new(1));
    let orders = bench.supervise(&wanted).await;
    eventually("the recommendation is stored", LIMIT, async || {
        !bench.decisions().await.is_empty()
    })
    .await;
    let first = bench.decisions().await.remove(0);
    assert_eq!((first.from, first.to, first.reason), (1, 2, ScaleReason::BelowMinimum));
    assert!(orders.lock().unwrap().is_empty());
    bench.end().await;
}
