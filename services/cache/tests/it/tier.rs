//! One cache on a nats-server of its own. Input: settings. Output: its subjects as calls.
#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

use std::time::Duration;

use bus::{Bus, BusConfig, Headers};
use cache::Cache;
use process::{Context, FakeClock, Layers, Service};
use schemas::cache::{CacheFound, CacheGet, CacheHeld, CacheIndex, CacheKey, CachePut, KeptAnswer};
use schemas::{subjects, wire};
use serde::Serialize;
use serde_bytes::ByteBuf;
use testkit::{NatsServer, eventually};
use tokio::task::JoinHandle;

/// Limit for a broken build, not a measurement.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Tier {
    pub(crate) server: NatsServer,
    pub(crate) bus: Bus,
    pub(crate) context: Context,
    pub(crate) clock: FakeClock,
    service: JoinHandle<anyhow::Result<()>>,
}

/// A key whose first byte, and so whose shard, is `number`.
pub(crate) fn key(tenant: &str, number: u8) -> CacheKey {
    CacheKey {
        tenant: tenant.to_owned(),
        digest: ByteBuf::from(vec![number; 32]),
    }
}

pub(crate) fn fingerprints(held: &CacheHeld) -> Vec<u64> {
    let chunks = held.fingerprints.as_chunks::<8>().0;
    chunks.iter().map(|one| u64::from_le_bytes(*one)).collect()
}

impl Tier {
    pub(crate) async fn start(settings: &[(&str, &str)]) -> Self {
        let server = NatsServer::start().await;
        let mut layers = Layers::new().assign(&format!("bus.url={}", server.url())).unwrap();
        for (key, value) in settings {
            layers = layers.assign(&format!("{key}={value}")).unwrap();
        }
        let config = layers.load::<Cache>().unwrap().service;
        let clock = FakeClock::new(1_767_225_600_000);
        let mut context = Context::new("cache");
        context.clock = clock.clock();
        let service = tokio::spawn(Cache::serve(config, context.clone()));
        context.health.wait_ready(DEADLINE).await.unwrap();
        let url = server.url().to_string();
        let bus = Bus::connect(&BusConfig::for_url(&url), "test", None).await;
        Self {
            server,
            bus: bus.unwrap(),
            context,
            clock,
            service,
        }
    }

    pub(crate) async fn publish<T: Serialize>(&self, subject: &str, message: &T) {
        let body = wire::encode(message).unwrap();
        let sent = self.bus.publish(subject, Headers::new(), body.into());
        sent.await.unwrap();
    }

    pub(crate) async fn put(&self, key: &CacheKey, body: &[u8], ttl_ms: u64) {
        let answer = KeptAnswer {
            key: key.clone(),
            body: ByteBuf::from(body.to_vec()),
            ttl_ms,
        };
        let put = CachePut { answers: vec![answer] };
        self.publish(&subjects::cache_put(key.shard()), &put).await;
    }

    pub(crate) async fn try_get(&self, key: &CacheKey) -> Option<CacheFound> {
        let body = wire::encode(&CacheGet { key: key.clone() }).unwrap();
        let subject = subjects::cache_get(key.shard());
        let asked = self.bus.request(&subject, Headers::new(), body.into(), DEADLINE);
        Some(wire::decode(&asked.await.ok()?.payload).unwrap())
    }

    pub(crate) async fn get(&self, key: &CacheKey) -> CacheFound {
        self.try_get(key).await.unwrap()
    }

    /// Gets until it is there: a put is not answered.
    pub(crate) async fn found(&self, key: &CacheKey) -> CacheFound {
        eventually("the answer is here", DEADLINE, || async {
            self.get(key).await.body.is_some()
        })
        .await;
        self.get(key).await
    }

    pub(crate) async fn eventually_gone(&self, key: &CacheKey) {
        eventually("the answer is gone", DEADLINE, || async {
            self.get(key).await.body.is_none()
        })
        .await;
    }

    pub(crate) async fn index(&self, limit: u32) -> Vec<u64> {
        let body = wire::encode(&CacheIndex { limit }).unwrap();
        let subject = subjects::CACHE_INDEX;
        let asked = self.bus.request(subject, Headers::new(), body.into(), DEADLINE);
        fingerprints(&wire::decode(&asked.await.unwrap().payload).unwrap())
    }

    pub(crate) async fn expect_metric(&self, line: &str) {
        eventually(line, DEADLINE, || {
            let contexts = std::slice::from_ref(&self.context);
            let text = process::ops::metrics_text(contexts).unwrap();
            std::future::ready(text.lines().any(|one| one == line))
        })
        .await;
    }

    /// Stops the service and expects a clean end.
    pub(crate) async fn stop(self) {
        self.context.shutdown.start();
        let ended = tokio::time::timeout(DEADLINE, self.service).await;
        ended.unwrap().unwrap().unwrap();
        self.context.tasks.close_and_wait(DEADLINE).await.unwrap();
        assert!(!self.context.tasks.failed(), "a task failed");
    }
}
