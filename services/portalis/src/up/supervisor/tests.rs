//! The supervisor with real processes and a real nats-server; the heartbeats of its workers are sent by the test.

use std::path::Path;
use std::time::Duration;

use bus::{BusConfig, Headers};
use testkit::NatsServer;
use tokio::task::JoinHandle;

use super::super::worker_log::WorkerLogs;
use super::*;

const LIMIT: Duration = Duration::from_secs(30);

struct Bench {
    _server: NatsServer,
    bus: Bus,
    context: Context,
    status: watch::Receiver<Status>,
    running: JoinHandle<anyhow::Result<()>>,
    // Last, because children end with it.
    _spawner: Spawner,
}

impl Bench {
    async fn start(script: &str, min: u32, max: u32) -> Self {
        let server = NatsServer::start().await;
        let bus = Bus::connect(&BusConfig::for_url(&server.url()), "test", None)
            .await
            .unwrap();
        let context = Context::new(SERVICE);
        let spawner = Spawner::start().unwrap();
        let launch = WorkerLaunch {
            model: "m".to_owned(),
            program: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/workers").join(script),
            config: None,
            variables: vec![],
            logs: WorkerLogs::Terminal,
            drain: LIMIT,
        };
        let launches = vec![(launch, min, max)];
        let (supervisor, status) = Supervisor::new(bus.clone(), context.clone(), spawner.clone(), launches)
            .await
            .unwrap();
        let running = tokio::spawn(supervisor.run());
        Self {
            _server: server,
            bus,
            context,
            status,
            running,
            _spawner: spawner,
        }
    }

    /// Waits until the status is as wanted.
    async fn until(&mut self, wanted: impl Fn(&PoolStatus) -> bool) -> PoolStatus {
        let found = self.status.wait_for(|status| status.pools.first().is_some_and(&wanted));
        let status = tokio::time::timeout(LIMIT, found).await.expect("in time").unwrap();
        status.pools[0].clone()
    }

    /// Says what a worker of this process number would say.
    async fn beat(&self, pid: u32) {
        let worker = schemas::fleet::WorkerBeat {
            model: "m".to_owned(),
            slots: 1,
            in_hand: 0,
            waiting_tokens: 0,
            finished_total: 0,
            tokens_total: 0,
            busy_ns_total: 0,
            batch_us: 0,
            device: "cpu".to_owned(),
            pid,
        };
        let beat = Beat {
            service: "gpu-worker".to_owned(),
            instance: format!("gpu-worker-{pid}"),
            version: String::new(),
            started_at_ms: self.context.clock.now_unix_ms(),
            state: InstanceState::Ready,
            worker: Some(worker),
        };
        let subject = subjects::beat(&beat.service, &beat.instance);
        self.bus
            .publish(&subject, Headers::new(), wire::encode(&beat).unwrap().into())
            .await
            .unwrap();
    }

    async fn order(&self, order: &Control) -> ControlReply {
        let subject = subjects::control(SERVICE, &self.context.instance);
        let body = wire::encode(order).unwrap();
        let answer = self
            .bus
            .request(&subject, Headers::new(), body.into(), LIMIT)
            .await
            .unwrap();
        wire::decode(&answer.payload).unwrap()
    }

    async fn end(self) {
        self.context.shutdown.start();
        tokio::time::timeout(LIMIT, self.running)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        self.context.tasks.close_and_wait(LIMIT).await.unwrap();
        assert!(!self.context.tasks.failed());
    }
}

fn kill(pid: u32) {
    // SAFETY: a plain system call on a child that was started by this test.
    unsafe {
        libc::kill(libc::pid_t::try_from(pid).unwrap(), libc::SIGKILL);
    }
}

fn set(workers: u32) -> Control {
    Control::SetWorkers {
        model: "m".to_owned(),
        workers,
    }
}

#[tokio::test]
async fn workers_come_back_come_and_go() {
    let mut bench = Bench::start("patient.sh", 1, 2).await;
    let first = bench.until(|pool| pool.pids.len() == 1).await.pids[0];
    assert!(!bench.context.health.is_ready());
    bench.beat(first).await;
    bench.until(|pool| pool.ready == 1).await;
    bench.context.health.wait_ready(LIMIT).await.unwrap();

    // Killed: another takes its place.
    kill(first);
    let second = bench
        .until(|pool| pool.pids.len() == 1 && pool.pids[0] != first)
        .await
        .pids[0];
    assert_eq!(bench.status.borrow().pools[0].start_failure, None);
    // A beat of somebody else's process makes nobody ready.
    bench.beat(first).await;
    bench.beat(second).await;
    bench.until(|pool| pool.ready == 1).await;

    // More, not more than may be, and less again.
    assert_eq!(bench.order(&set(2)).await, ControlReply::Accepted);
    let both = bench.until(|pool| pool.pids.len() == 2).await;
    assert_eq!((both.info.wanted, both.info.running, both.ready), (2, 2, 1));
    assert!(matches!(bench.order(&set(3)).await, ControlReply::Refused(reason) if reason.contains("1 to 2")));
    assert!(matches!(bench.order(&Control::Drain).await, ControlReply::Refused(_)));
    let ControlReply::Pools(pools) = bench.order(&Control::DescribePool).await else {
        panic!("no pools")
    };
    assert_eq!((pools.len(), pools[0].wanted, pools[0].min, pools[0].max), (1, 2, 1, 2));
    assert_eq!(bench.order(&set(1)).await, ControlReply::Accepted);
    let left = bench.until(|pool| pool.pids.len() == 1).await;
    assert_eq!(left.pids, [second], "the one that was ready stays");

    // Rubbish is refused and harms nobody.
    let subject = subjects::control(SERVICE, &bench.context.instance);
    let answer = bench
        .bus
        .request(&subject, Headers::new(), vec![0xc1].into(), LIMIT)
        .await
        .unwrap();
    assert!(matches!(
        wire::decode(&answer.payload).unwrap(),
        ControlReply::Refused(_)
    ));
    bench.end().await;
    assert!(!Path::new(&format!("/proc/{second}")).exists());
}

#[tokio::test]
async fn a_worker_that_cannot_start_says_why() {
    let mut bench = Bench::start("broken.sh", 1, 1).await;
    let failed = bench.until(|pool| pool.start_failure.is_some()).await;
    assert_eq!(failed.start_failure.as_deref(), Some("the model is broken"));
    bench.end().await;
    let mut missing = Bench::start("no-such-program", 1, 1).await;
    let failed = missing.until(|pool| pool.start_failure.is_some()).await;
    assert!(failed.start_failure.unwrap().contains("no-such-program"));
    missing.end().await;
}
