//! One broker, one gateway, an auth that knows one key. Input: settings. Output: clients, workers to script, metrics.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bus::{Bus, BusConfig, Headers};
use gateway::Gateway;
use process::{Context, Layers, Service};
use schemas::policy::{Grant, KID_CHARS, Resolved, SECRET_CHARS, Scope, key_checksum};
use schemas::work::Lane;
use schemas::{subjects, wire};
use testkit::NatsServer;
use tokio::task::JoinHandle;

use crate::client::Client;

/// A limit for a broken build, not a measurement.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// Who asks.
pub(crate) const TENANT: &str = "demo";

/// The mesh of one test.
pub(crate) struct Mesh {
    pub(crate) bus: Bus,
    pub(crate) address: SocketAddr,
    context: Context,
    serving: Option<JoinHandle<anyhow::Result<()>>>,
    answering: JoinHandle<()>,
    pub(crate) server: NatsServer,
}

impl Mesh {
    /// Starts everything and waits until it is ready.
    pub(crate) async fn start(settings: &[&str]) -> Self {
        let server = NatsServer::start().await;
        let bus = Bus::connect(&BusConfig::for_url(&server.url()), "test", None)
            .await
            .unwrap();
        let answering = answer_keys(&bus).await;
        let address = free_address();
        let first = [format!("bus.url={}", server.url()), format!("http.address={address}")];
        let layers = first
            .iter()
            .map(String::as_str)
            .chain(settings.iter().copied())
            .fold(Layers::new(), |layers, setting| layers.assign(setting).unwrap());
        let config = layers.load::<Gateway>().unwrap().service;
        let context = Context::new(Gateway::NAME);
        let mut serving = tokio::spawn(Gateway::serve(config, context.clone()));
        tokio::select! {
            ready = context.health.wait_ready(DEADLINE) => ready.unwrap(),
            ended = &mut serving => panic!("the gateway ended at start: {ended:?}"),
        }
        Self {
            bus,
            address,
            context,
            serving: Some(serving),
            answering,
            server,
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client {
            address: self.address,
            key: key(),
        }
    }

    /// The sum of a metric over the series whose labels include this text.
    pub(crate) fn metric(&self, name: &str, label: &str) -> f64 {
        let page = process::ops::metrics_text(std::slice::from_ref(&self.context)).unwrap();
        let series = page.lines().filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
        });
        series
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Drains the gateway as SIGTERM does; nothing may have failed.
    pub(crate) async fn finish(mut self) {
        self.context.shutdown.start();
        let serving = self.serving.take().unwrap();
        tokio::time::timeout(DEADLINE, serving).await.unwrap().unwrap().unwrap();
        self.context.tasks.close_and_wait(DEADLINE).await.unwrap();
        assert!(!self.context.tasks.failed());
        self.answering.abort();
        assert!(self.server.pid().is_some());
    }
}

/// An address that nobody else has: each use takes a loopback host of its own, so no other test can take the port between
/// this look and its use.
fn free_address() -> SocketAddr {
    static HOSTS: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let host = Ipv4Addr::new(127, high | 0x80, low, HOSTS.fetch_add(1, Ordering::Relaxed));
    let listener = TcpListener::bind((host, 0)).unwrap();
    listener.local_addr().unwrap()
}

/// A key of the right shape.
fn key() -> String {
    let body = format!("ptl_live_{}_{}", "k".repeat(KID_CHARS), "s".repeat(SECRET_CHARS));
    format!("{body}{}", key_checksum(&body))
}

/// Grants everything to everybody, as auth does for a good key.
async fn answer_keys(bus: &Bus) -> JoinHandle<()> {
    let mut questions = bus.subscribe(subjects::RESOLVE_ALL, None).await.unwrap();
    let bus = bus.clone();
    tokio::spawn(async move {
        while let Some(question) = questions.next().await {
            let granted = wire::encode(&Resolved::Granted(grant())).unwrap();
            bus.respond(&question, Headers::new(), granted.into()).await.unwrap();
        }
    })
}

fn grant() -> Grant {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Grant {
        kid: "k".repeat(KID_CHARS),
        tenant: TENANT.to_owned(),
        models: vec!["*".to_owned()],
        scopes: vec![Scope::Inference],
        priority_ceiling: Lane::Interactive,
        request_limit: None,
        policy_version: 1,
        identity: "identity".to_owned(),
        identity_expires_at_ms: now.as_millis() as u64 + 60_000,
    }
}
