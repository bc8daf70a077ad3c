//! One broker, one auth, one client. Input: settings of a test. Output: questions and answers in one line each.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use auth::Auth;
use bus::{Bus, BusConfig, Headers, Message};
use process::{Context, FakeClock, Layers, Service};
use schemas::policy::{
    CreateKey, Grant, Held, Hold, KeyInfo, KeysReply, NameKey, RequestLimit, Resolve, Resolved, hex, key_id,
};
use schemas::work::Lane;
use schemas::{subjects, wire};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use testkit::NatsServer;
use tokio::task::JoinHandle;

/// Longest wait for anything; only a failing test waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running auth.
pub(crate) struct AuthService {
    pub(crate) context: Context,
    pub(crate) clock: FakeClock,
    serving: JoinHandle<anyhow::Result<()>>,
}

impl AuthService {
    /// Starts with the clock at the present and standing still.
    pub(crate) async fn start(server: &NatsServer, settings: &[&str]) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Self::start_at(server, now.as_millis() as u64, settings).await
    }

    /// Starts at a time; the store is in memory if the settings do not say otherwise.
    pub(crate) async fn start_at(server: &NatsServer, now_ms: u64, settings: &[&str]) -> Self {
        let url = format!("bus.url={}", server.url());
        let first = [url.as_str(), "store.path="];
        let layers = first
            .iter()
            .chain(settings)
            .fold(Layers::new(), |layers, setting| layers.assign(setting).unwrap());
        let config = layers.load::<Auth>().unwrap().service;
        let clock = FakeClock::new(now_ms);
        let mut context = Context::new(Auth::NAME);
        context.clock = clock.clock();
        let serving = tokio::spawn(Auth::serve(config, context.clone()));
        let mut service = Self {
            context,
            clock,
            serving,
        };
        tokio::select! {
            ready = service.context.health.wait_ready(PATIENCE) => ready.unwrap(),
            ended = &mut service.serving => panic!("auth ended at start: {ended:?}"),
        }
        service
    }

    /// Stops it and makes sure that everything ended well.
    pub(crate) async fn stop(self) {
        self.context.shutdown.start();
        self.ended().await;
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ended(self) {
        let ended = tokio::time::timeout(PATIENCE, self.serving).await;
        ended.unwrap().unwrap().unwrap();
        self.context.tasks.close_and_wait(PATIENCE).await.unwrap();
        assert!(!self.context.tasks.failed());
    }

    /// The sum of a counter over all series whose labels include these.
    pub(crate) fn counted(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let families = self.context.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        let series = family.map(|family| family.get_metric()).unwrap_or_default();
        let wanted = series.iter().filter(|one| {
            labels.iter().all(|(name, value)| {
                let mut pairs = one.get_label().iter();
                pairs.any(|pair| pair.name() == *name && pair.value() == *value)
            })
        });
        wanted.map(|one| one.get_counter().get_value() as u64).sum()
    }
}

/// Somebody who asks auth.
pub(crate) struct Client {
    pub(crate) bus: Bus,
}

impl Client {
    pub(crate) async fn connect(server: &NatsServer) -> Self {
        let config = BusConfig::for_url(&server.url());
        let bus = Bus::connect(&config, "test", None).await.unwrap();
        Self { bus }
    }

    /// A question as raw bytes.
    pub(crate) async fn ask_raw(&self, subject: &str, headers: Headers, body: Vec<u8>) -> Message {
        self.bus.request(subject, headers, body.into(), PATIENCE).await.unwrap()
    }

    /// A question in MessagePack.
    pub(crate) async fn ask<Q: Serialize, A: DeserializeOwned>(&self, subject: &str, question: &Q) -> A {
        let body = wire::encode(question).unwrap();
        let answer = self.ask_raw(subject, Headers::new(), body).await;
        wire::decode(&answer.payload).unwrap()
    }

    pub(crate) async fn create(&self, asked: &CreateKey) -> (String, KeyInfo) {
        match self.ask(&subjects::keys("create"), asked).await {
            KeysReply::Created { key, info } => (key, info),
            other => panic!("not created: {other:?}"),
        }
    }

    pub(crate) async fn change(&self, verb: &str, kid: &str) -> KeysReply {
        let asked = NameKey { kid: kid.to_owned() };
        self.ask(&subjects::keys(verb), &asked).await
    }

    pub(crate) async fn resolve(&self, key: &str) -> Resolved {
        let kid = key_id(key).unwrap();
        self.ask(&subjects::resolve(kid), &question(key)).await
    }

    pub(crate) async fn granted(&self, key: &str) -> Grant {
        match self.resolve(key).await {
            Resolved::Granted(grant) => grant,
            Resolved::Denied(failure) => panic!("denied: {failure:?}"),
        }
    }

    pub(crate) async fn hold(&self, kid: &str, least: u32, most: u32) -> Held {
        let asked = Hold {
            kid: kid.to_owned(),
            least,
            most,
        };
        self.ask(&subjects::hold(kid), &asked).await
    }
}

/// What a gateway asks about a key.
pub(crate) fn question(key: &str) -> Resolve {
    Resolve {
        kid: key_id(key).unwrap().to_owned(),
        key_sha256: hex(&Sha256::digest(key.as_bytes())),
    }
}

/// An ordinary key of a tenant.
pub(crate) fn ordinary(tenant: &str) -> CreateKey {
    CreateKey {
        tenant: tenant.to_owned(),
        name: "test".to_owned(),
        models: vec!["all-*".to_owned()],
        scopes: Vec::new(),
        request_limit: None,
        priority_ceiling: Lane::Interactive,
        expires_at_ms: None,
    }
}

/// The same with a limit.
pub(crate) fn limited(per_minute: u32, burst: u32) -> CreateKey {
    CreateKey {
        request_limit: Some(RequestLimit { per_minute, burst }),
        ..ordinary("limited")
    }
}

/// A setting that puts the store into a folder.
pub(crate) fn store_in(folder: &Path) -> String {
    format!("store.path={}", folder.join("auth.sqlite3").display())
}
