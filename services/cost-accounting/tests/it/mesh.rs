//! A broker and the service in this process. Input: what a test publishes. Output: usage, metrics, the ledger's report.

use std::path::PathBuf;
use std::time::Duration;

use bus::{Bus, BusConfig, Headers};
use cost_accounting::{CostAccounting, VerifyReport, verify};
use process::{Context, Layers, Service};
use schemas::cost::{CostBatch, CostEvent, UsageGet, UsageReport};
use schemas::{streams, subjects, wire};
use tempfile::TempDir;
use testkit::{NatsServer, eventually};
use tokio::task::JoinHandle;

/// A limit for a broken build, not a measurement.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// Where tests publish.
pub(crate) const SUBJECT: &str = "portalis.v1.cost.demo.all-minilm-l6-v2";

/// A message of events.
pub(crate) fn batch(events: &[CostEvent]) -> Vec<u8> {
    wire::encode(&CostBatch {
        events: events.to_vec(),
    })
    .unwrap()
}

/// Asks for the usage of tenant `demo`.
pub(crate) async fn ask(bus: &Bus, key_id: Option<&str>) -> Option<UsageReport> {
    let get = UsageGet {
        key_id: key_id.map(str::to_owned),
        tenant: "demo".to_owned(),
        start_s: None,
        end_s: None,
    };
    let payload = wire::encode(&get).unwrap();
    let reply = bus
        .request(subjects::USAGE_GET, Headers::new(), payload.into(), DEADLINE)
        .await
        .ok()?;
    Some(wire::decode(&reply.payload).unwrap())
}

pub(crate) struct Mesh {
    pub(crate) server: NatsServer,
    pub(crate) bus: Bus,
    pub(crate) context: Context,
    service: Option<JoinHandle<anyhow::Result<()>>>,
    folder: TempDir,
}

impl Mesh {
    /// A broker, a connection to it, and the service, ready.
    pub(crate) async fn start() -> Self {
        let server = NatsServer::start().await;
        let bus = Bus::connect(&BusConfig::for_url(&server.url()), "test", None)
            .await
            .unwrap();
        let mesh = Self {
            server,
            bus,
            context: Context::new(CostAccounting::NAME),
            service: None,
            folder: tempfile::tempdir().unwrap(),
        };
        mesh.start_service().await
    }

    pub(crate) async fn start_service(mut self) -> Self {
        let layers = Layers::new()
            .set("bus.url", self.server.url().into())
            .and_then(|layers| layers.set("ledger.path", self.ledger().to_str().unwrap().into()))
            .and_then(|layers| layers.set("booking.check_ms", 50.into()))
            .unwrap();
        let config = layers.load::<CostAccounting>().unwrap().service;
        self.context = Context::new(CostAccounting::NAME);
        self.service = Some(tokio::spawn(CostAccounting::serve(config, self.context.clone())));
        self.context.health.wait_ready(DEADLINE).await.unwrap();
        self
    }

    pub(crate) fn ledger(&self) -> PathBuf {
        self.folder.path().join("ledger.db")
    }

    pub(crate) async fn publish(&self, subject: &str, body: Vec<u8>) {
        self.publish_with(subject, Headers::new(), body).await;
    }

    pub(crate) async fn publish_with(&self, subject: &str, headers: Headers, body: Vec<u8>) {
        self.bus
            .publish_acked(subject, headers, body.into(), DEADLINE)
            .await
            .unwrap();
    }

    pub(crate) async fn ask(&self, key_id: Option<&str>) -> UsageReport {
        ask(&self.bus, key_id).await.unwrap()
    }

    /// The usage as soon as it is as asked.
    pub(crate) async fn usage_when(&self, wanted: impl Fn(&UsageReport) -> bool) -> UsageReport {
        let last = std::cell::RefCell::new(UsageReport::default());
        eventually("the usage is as it should be", DEADLINE, || async {
            let usage = ask(&self.bus, None).await.unwrap_or_default();
            let done = wanted(&usage);
            last.replace(usage);
            done
        })
        .await;
        last.into_inner()
    }

    pub(crate) async fn reconnected(&self) {
        let up = || async { self.bus.round_trip(DEADLINE).await.is_ok() && self.stream_is_there().await };
        eventually("the broker is back", DEADLINE, up).await;
    }

    async fn stream_is_there(&self) -> bool {
        self.bus.stream_info(&streams::cost().name).await.is_ok()
    }

    pub(crate) async fn purge_below(&self, sequence: u64) {
        let body = format!("{{\"seq\":{sequence}}}");
        let purged = self
            .bus
            .request("$JS.API.STREAM.PURGE.COST", Headers::new(), body.into(), DEADLINE)
            .await;
        let answer = String::from_utf8(purged.unwrap().payload.to_vec()).unwrap();
        assert!(answer.contains("\"success\":true"), "{answer}");
    }

    pub(crate) fn metrics(&self) -> String {
        process::ops::metrics_text(std::slice::from_ref(&self.context)).unwrap()
    }

    /// Drains the service as SIGTERM does; the broker stays.
    pub(crate) async fn stop_service(mut self) -> Self {
        self.context.shutdown.start();
        let service = self.service.take().unwrap();
        tokio::time::timeout(DEADLINE, service).await.unwrap().unwrap().unwrap();
        assert!(!self.context.tasks.failed());
        self.context.tasks.close_and_wait(DEADLINE).await.unwrap();
        self
    }

    /// Drains the service and proves that its ledger is sound.
    pub(crate) async fn drain(self) -> VerifyReport {
        let mesh = self.stop_service().await;
        let report = verify(&mesh.ledger()).await.unwrap();
        assert!(report.is_sound(), "{report:?}");
        report
    }
}
