//! The whole mesh for one test: a real nats-server, every service, workers as processes. Input: options. Output: clients,
//! workers to kill, the books; all gone when the test is over, however it ends.

pub(crate) mod books;
pub(crate) mod http;
pub(crate) mod load;
pub(crate) mod stream;
pub(crate) mod worker;

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bus::{Bus, BusConfig, Headers};
use process::{Context, Layers, Service};
use schemas::fleet::{Beat, InstanceState};
use schemas::policy::{CreateKey, KeyInfo, KeysReply, NameKey, Scope};
use schemas::work::Lane;
use schemas::{subjects, wire};
use serde::Serialize;
use tempfile::TempDir;
use testkit::{NatsServer, eventually};
use tokio::task::JoinHandle;

use self::http::{Client, Request};
use self::worker::{Worker, WorkerSpec, sum};

/// A limit for a broken build, not a measurement.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);

/// An address that nobody else has: each use takes a loopback host of its own, so no other test can take the port between
/// this look and its use.
pub(crate) fn free_address() -> SocketAddr {
    static HOSTS: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let host = Ipv4Addr::new(127, high | 0x80, low, HOSTS.fetch_add(1, Ordering::Relaxed));
    let listener = TcpListener::bind((host, 0)).unwrap();
    listener.local_addr().unwrap()
}

/// What a test wants.
#[derive(Debug, Default)]
pub(crate) struct MeshOptions {
    /// The workers, one each.
    pub(crate) workers: Vec<WorkerSpec>,
    /// Settings of every gateway.
    pub(crate) gateway: &'static [&'static str],
    /// Gateways besides the first.
    pub(crate) more_gateways: usize,
}

/// A service in this process.
pub(crate) struct Running {
    pub(crate) context: Context,
    serving: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    fn launch<S: Service>(settings: &[String]) -> Self {
        let layers = settings
            .iter()
            .fold(Layers::new(), |layers, setting| layers.assign(setting).unwrap());
        let config = layers.load::<S>().unwrap().service;
        let context = Context::new(S::NAME);
        let serving = tokio::spawn(S::serve(config, context.clone()));
        Self { context, serving }
    }

    async fn ready(&mut self) {
        tokio::select! {
            ready = self.context.health.wait_ready(DEADLINE) => ready.unwrap(),
            ended = &mut self.serving => panic!("{} ended at start: {ended:?}", self.context.service),
        }
    }

    /// Whether it still serves, with no task failed.
    pub(crate) fn is_well(&self) -> bool {
        !self.serving.is_finished() && !self.context.tasks.failed() && !self.context.shutdown.is_stopping()
    }

    /// The sum of a metric over the series whose labels include this text.
    pub(crate) fn metric(&self, name: &str, label: &str) -> f64 {
        let page = process::ops::metrics_text(std::slice::from_ref(&self.context)).unwrap();
        sum(&page, name, label)
    }

    /// Drains it as SIGTERM does and makes sure that everything ended well.
    pub(crate) async fn drain(self) {
        self.context.shutdown.start();
        let name = self.context.service;
        let ended = tokio::time::timeout(DEADLINE, self.serving).await;
        ended
            .unwrap_or_else(|_| panic!("{name} does not drain"))
            .unwrap()
            .unwrap();
        self.context.tasks.close_and_wait(DEADLINE).await.unwrap();
        assert!(!self.context.tasks.failed(), "a task of {name} failed");
    }
}

/// A gateway and where it listens.
pub(crate) struct GatewayService {
    pub(crate) address: SocketAddr,
    pub(crate) service: Running,
}

/// The mesh of one test.
pub(crate) struct Mesh {
    pub(crate) workers: Vec<Worker>,
    pub(crate) specs: Vec<WorkerSpec>,
    pub(crate) gateways: Vec<GatewayService>,
    pub(crate) services: Vec<Running>,
    pub(crate) bus: Bus,
    /// Messages on the COST stream that are meant to be rejected.
    pub(crate) rejected: u64,
    beats: Arc<Mutex<HashMap<u32, Beat>>>,
    listening: JoinHandle<()>,
    pub(crate) server: NatsServer,
    folder: TempDir,
}

impl Mesh {
    /// Starts everything and waits until all of it is ready.
    pub(crate) async fn start(options: MeshOptions) -> Self {
        if let Ok(directives) = std::env::var("PORTALIS_TEST_LOG") {
            // Fails when another test of this process has begun to log already.
            let _ = process::telemetry::init(&directives, process::LogFormat::Text);
        }
        let server = NatsServer::start().await;
        let folder = tempfile::Builder::new().prefix("mesh-").tempdir().unwrap();
        let url = server.url();
        let bus = Bus::connect(&BusConfig::for_url(&url), "test", None).await.unwrap();
        let (beats, listening) = listen_to_beats(&bus).await;
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let bus_url = format!("bus.url={url}");
        let settings = |more: String| vec![bus_url.clone(), more];
        let services = vec![
            Running::launch::<auth::Auth>(&settings(format!("store.path={}", path("auth.sqlite3")))),
            Running::launch::<cache::Cache>(&settings("announce.interval_ms=1".to_owned())),
            Running::launch::<cost_accounting::CostAccounting>(&[
                bus_url.clone(),
                format!("ledger.path={}", path("ledger.db")),
                "booking.check_ms=100".to_owned(),
            ]),
            Running::launch::<autoscaler::Autoscaler>(&settings("actuator.kind=recommend".to_owned())),
        ];
        let mut mesh = Self {
            workers: Vec::new(),
            specs: options.workers,
            gateways: Vec::new(),
            services,
            bus,
            rejected: 0,
            beats,
            listening,
            server,
            folder,
        };
        for service in &mut mesh.services {
            service.ready().await;
        }
        for _ in 0..=options.more_gateways {
            mesh.start_gateway(options.gateway);
        }
        for spec in mesh.specs.clone() {
            mesh.spawn(&spec);
        }
        mesh.ready().await;
        mesh
    }

    fn start_gateway(&mut self, settings: &[&str]) {
        let address = free_address();
        let first = [
            format!("bus.url={}", self.server.url()),
            format!("http.address={address}"),
        ];
        let settings: Vec<String> = first
            .into_iter()
            .chain(settings.iter().map(ToString::to_string))
            .collect();
        let service = Running::launch::<gateway::Gateway>(&settings);
        self.gateways.push(GatewayService { address, service });
    }

    /// Starts one more worker; gives its place. It is not ready yet.
    pub(crate) fn spawn(&mut self, spec: &WorkerSpec) -> usize {
        self.workers
            .push(Worker::spawn(spec, &self.server.url(), self.folder.path()));
        self.workers.len() - 1
    }

    /// Waits until every worker has said that it is ready and every gateway knows their models.
    pub(crate) async fn ready(&mut self) {
        for gateway in &mut self.gateways {
            gateway.service.ready().await;
        }
        for place in 0..self.workers.len() {
            self.worker_ready(place).await;
        }
        let models: HashSet<&str> = self.specs.iter().map(|spec| spec.model.as_str()).collect();
        for gateway in &self.gateways {
            let client = Client {
                address: gateway.address,
                key: None,
            };
            eventually(
                "the gateway knows every model and has heard a worker",
                DEADLINE,
                || async {
                    let known = client.get("/v1/metadata").await.json();
                    let known = known["modelInfo"].as_array().map_or(0, Vec::len);
                    let heard = models.is_empty() || client.get("/v1/health/ready").await.status == 200;
                    known == models.len() && heard
                },
            )
            .await;
        }
    }

    /// Waits until a worker has said that it is ready.
    pub(crate) async fn worker_ready(&mut self, place: usize) {
        let beats = Arc::clone(&self.beats);
        let worker = &mut self.workers[place];
        let pid = worker.pid();
        eventually("the worker is ready", DEADLINE, || {
            if let Some(status) = worker.ended() {
                panic!("the worker ended at start ({status}):\n{}", worker.log());
            }
            let beats = beats.lock().unwrap();
            let ready = beats.get(&pid).is_some_and(|beat| beat.state == InstanceState::Ready);
            std::future::ready(ready)
        })
        .await;
    }

    /// The instance name of a worker.
    pub(crate) fn instance(&self, place: usize) -> String {
        let beats = self.beats.lock().unwrap();
        beats[&self.workers[place].pid()].instance.clone()
    }

    /// How often a worker has said something, by its latest numbers; forgets it, so that a later one is new.
    pub(crate) fn forget_beat(&self, place: usize) {
        self.beats.lock().unwrap().remove(&self.workers[place].pid());
    }

    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    pub(crate) fn ledger(&self) -> PathBuf {
        self.folder.path().join("ledger.db")
    }

    /// A client of the first gateway.
    pub(crate) fn client(&self, key: &str) -> Client {
        self.client_of(0, key)
    }

    pub(crate) fn client_of(&self, gateway: usize, key: &str) -> Client {
        Client {
            address: self.gateways[gateway].address,
            key: Some(key.to_owned()),
        }
    }

    /// The first gateway's metric.
    pub(crate) fn gateway_metric(&self, name: &str, label: &str) -> f64 {
        self.gateways[0].service.metric(name, label)
    }

    /// An ordinary key of a tenant.
    pub(crate) async fn key(&self, tenant: &str) -> String {
        self.create_key(&ordinary(tenant)).await.0
    }

    pub(crate) async fn create_key(&self, asked: &CreateKey) -> (String, KeyInfo) {
        match self.ask_keys("create", asked).await {
            KeysReply::Created { key, info } => (key, info),
            other => panic!("not created: {other:?}"),
        }
    }

    pub(crate) async fn change_key(&self, verb: &str, kid: &str) {
        let reply = self.ask_keys(verb, &NameKey { kid: kid.to_owned() }).await;
        assert!(matches!(reply, KeysReply::Changed(_)), "{reply:?}");
    }

    async fn ask_keys<Q: Serialize>(&self, verb: &str, question: &Q) -> KeysReply {
        let body = wire::encode(question).unwrap();
        let answer = self
            .bus
            .request(&subjects::keys(verb), Headers::new(), body.into(), DEADLINE)
            .await
            .unwrap();
        wire::decode(&answer.payload).unwrap()
    }

    /// Drains everything as SIGTERM does; nobody may fail.
    pub(crate) async fn finish(mut self) {
        for gateway in std::mem::take(&mut self.gateways) {
            gateway.service.drain().await;
        }
        for worker in &mut self.workers {
            if worker.ended().is_none() {
                let status = worker.drain().await;
                assert!(status.success(), "a worker ended with {status}:\n{}", worker.log());
            }
        }
        for service in std::mem::take(&mut self.services) {
            service.drain().await;
        }
        let report = cost_accounting::verify(&self.ledger()).await.unwrap();
        assert!(report.is_sound(), "{report:?}");
        self.listening.abort();
    }
}

/// Collects the latest beat of every worker, by process id.
async fn listen_to_beats(bus: &Bus) -> (Arc<Mutex<HashMap<u32, Beat>>>, JoinHandle<()>) {
    let beats: Arc<Mutex<HashMap<u32, Beat>>> = Arc::default();
    let mut subscription = bus.subscribe(subjects::WORKER_BEATS, None).await.unwrap();
    let collected = Arc::clone(&beats);
    let listening = tokio::spawn(async move {
        while let Some(message) = subscription.next().await {
            let Ok(beat) = wire::decode::<Beat>(&message.payload) else {
                continue;
            };
            if let Some(worker) = &beat.worker {
                collected.lock().unwrap().insert(worker.pid, beat);
            }
        }
    });
    (beats, listening)
}

/// An ordinary key of a tenant, for every model.
pub(crate) fn ordinary(tenant: &str) -> CreateKey {
    CreateKey {
        tenant: tenant.to_owned(),
        name: "test".to_owned(),
        models: vec!["*".to_owned()],
        scopes: vec![Scope::Inference, Scope::UsageRead],
        request_limit: None,
        priority_ceiling: Lane::Interactive,
        expires_at_ms: None,
    }
}

/// Sends requests all at once and gives the answers in their order.
pub(crate) async fn all_at_once(client: &Client, requests: Vec<Request>) -> Vec<http::Answer> {
    let sent: Vec<_> = requests
        .into_iter()
        .map(|request| {
            let client = client.clone();
            tokio::spawn(async move { client.send(request).await })
        })
        .collect();
    let mut answers = Vec::new();
    for answer in sent {
        answers.push(answer.await.unwrap());
    }
    answers
}
