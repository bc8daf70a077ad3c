//! The gateway: OpenAI and NIM shapes in, work on the bus out. Input: HTTP requests. Output: HTTP answers; wiring only,
//! the request's path begins in `http/embeddings.rs` or `http/generate.rs`.

mod answer;
mod authorize;
mod cached_usage;
mod call;
mod cancel;
mod catalog;
pub mod config;
mod dispatch;
mod flight;
mod flights;
mod http;
mod known;
mod lookup;
mod metrics;
mod permits;
mod plan;
mod progress;
mod received;
mod replies;
mod rescue;
mod server;
mod share;
mod text_log;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bus::{Bus, Gather};
use foldhash::fast::RandomState;
use moka::sync::Cache;
use process::{CancellationToken, Clock, Context, Health, Serving};
use schemas::cache::CacheKey;
use schemas::error::{ErrorCode, Failure};
use schemas::{streams, subjects};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::answer::Answer;
use crate::authorize::Authorizer;
use crate::cached_usage::CachedUsage;
use crate::catalog::Catalog;
use crate::config::Config;
use crate::flight::Flight;
use crate::flights::Flights;
use crate::known::KnownShared;
use crate::metrics::Metrics;
use crate::server::ServerOptions;
use crate::share::{Kept, Sharing};

/// The gateway as a service, and what its parts share.
pub struct Gateway {
    config: Config,
    context: Context,
    instance: String,
    health: Health,
    clock: Clock,
    bus: Bus,
    metrics: Metrics,
    authorizer: Authorizer,
    catalog: Catalog,
    flights: Flights,
    local: Cache<CacheKey, Arc<Answer>, RandomState>,
    known_shared: KnownShared,
    sharing: Sharing,
    departures: Gather,
    cached_usage: CachedUsage,
    abandoned: mpsc::Sender<Arc<Flight>>,
    places: Arc<Semaphore>,
    read_timeout: Duration,
    reply_subject: String,
}

impl process::Service for Gateway {
    const NAME: &'static str = "gateway";
    const DEFAULT_CONFIG: &'static str = include_str!("../default.toml");
    type Config = Config;

    fn serve(config: Config, context: Context) -> Serving {
        Box::pin(serve(config, context))
    }
}

async fn serve(config: Config, context: Context) -> anyhow::Result<()> {
    // The port first: a busy one is the most likely mistake and needs no broker to be noticed.
    let address = &config.http.address;
    let listener = TcpListener::bind(address.as_str())
        .await
        .with_context(|| format!("cannot listen on {address} (set http.address to a free address and port)"))?;
    let options = ServerOptions {
        header_timeout: Duration::from_millis(config.http.read_timeout_ms),
        write_timeout: Duration::from_millis(config.http.write_timeout_ms),
        max_connections: config.http.max_in_flight,
    };
    let bus = Bus::connect(&config.bus, &context.instance, None)
        .await
        .context("cannot reach the message bus")?;
    let (abandoned, abandoned_queue) = mpsc::channel(cancel::QUEUE);
    let (sharing, shared_queue) = Sharing::new();
    let (departures, departing) = bus.gather();
    let queues = Queues {
        abandoned,
        sharing,
        departures,
    };
    let gateway = Arc::new(Gateway::new(config, context.clone(), bus, queues)?);
    // Background tasks outlive the HTTP side: requests in hand still need replies while they drain.
    let stop = CancellationToken::new();
    let departed = stop.clone();
    context.tasks.spawn("departures", async move {
        departing.run(departed).await;
        Ok(())
    });
    gateway
        .start(abandoned_queue, shared_queue, &stop)
        .await
        .context("cannot start listening on the bus")?;
    tracing::info!(address = %listener.local_addr()?, instance = context.instance, "gateway is listening");
    let shutdown = &context.shutdown;
    let router = http::router(Arc::clone(&gateway));
    server::serve(
        listener,
        router,
        options,
        shutdown.soft().clone(),
        shutdown.hard().clone(),
    )
    .await;
    stop.cancel();
    Ok(())
}

/// Where requests leave what is to be done after their answer.
struct Queues {
    abandoned: mpsc::Sender<Arc<Flight>>,
    sharing: Sharing,
    departures: Gather,
}

impl Gateway {
    fn new(config: Config, context: Context, bus: Bus, queues: Queues) -> anyhow::Result<Self> {
        let metrics = Metrics::new(&context.registry)?;
        let clock = context.clock.clone();
        let ttl = Duration::from_millis(config.cache.ttl_ms);
        Ok(Self {
            authorizer: Authorizer::new(bus.clone(), clock.clone(), &config.authorize, metrics.clone()),
            catalog: Catalog::new(clock.monotonic_us(), config.dispatch.no_worker_grace_ms),
            flights: Flights::default(),
            local: Cache::builder()
                .max_capacity(config.cache.local_bytes)
                .weigher(|_: &CacheKey, answer: &Arc<Answer>| answer.weight_bytes())
                .time_to_live(ttl)
                .support_invalidation_closures()
                .build_with_hasher(RandomState::default()),
            known_shared: KnownShared::new(config.cache.max_known_shared, ttl, clock.clone()),
            sharing: queues.sharing,
            departures: queues.departures,
            cached_usage: CachedUsage::default(),
            abandoned: queues.abandoned,
            places: Arc::new(Semaphore::new(config.http.max_in_flight)),
            read_timeout: Duration::from_millis(config.http.read_timeout_ms),
            reply_subject: subjects::reply_batch(&context.instance),
            instance: context.instance.clone(),
            health: context.health.clone(),
            clock,
            bus,
            metrics,
            config,
            context,
        })
    }

    /// Subscribes to everything, then starts the tasks that listen.
    async fn start(
        self: &Arc<Self>,
        abandoned: mpsc::Receiver<Arc<Flight>>,
        shared: mpsc::Receiver<Kept>,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let tasks = &self.context.tasks;
        let listener = |subject: &'static str| self.bus.subscribe(subject, None);
        let replies = self.bus.subscribe(&subjects::reply_all(&self.instance), None).await?;
        let beats = listener(subjects::WORKER_BEATS).await?;
        let revoked = listener(subjects::REVOKED).await?;
        let held = listener(subjects::CACHE_HELD).await?;
        let purge = listener(subjects::CACHE_PURGE).await?;
        let models = self.bus.kv(&streams::models_bucket()).await?;
        let this = || Arc::clone(self);
        tasks.spawn("replies", replies::run(this(), replies, stop.clone()));
        tasks.spawn(
            "beats",
            watch::listen(this(), beats, stop.clone(), "beat", watch::on_beat),
        );
        tasks.spawn(
            "revoked",
            watch::listen(this(), revoked, stop.clone(), "revoked", watch::on_revoked),
        );
        tasks.spawn(
            "held",
            watch::listen(this(), held, stop.clone(), "held", watch::on_held),
        );
        tasks.spawn(
            "purge",
            watch::listen(this(), purge, stop.clone(), "purge", watch::on_purge),
        );
        tasks.spawn("models", watch::follow_models(this(), models, stop.clone()));
        tasks.spawn("connection", watch::follow_connection(this(), stop.clone()));
        tasks.spawn("rescue", rescue::run(this(), stop.clone()));
        tasks.spawn("cancel", cancel::run(this(), abandoned, stop.clone()));
        tasks.spawn("share", share::run(this(), shared, stop.clone()));
        tasks.spawn("cached usage", cached_usage::run(this(), stop.clone()));
        let malformed = self.metrics.malformed.with_label_values(&["control"]);
        let orders = bus::control::run(
            self.bus.clone(),
            self.context.clone(),
            move || malformed.inc(),
            stop.clone(),
        );
        tasks.spawn("control", orders);
        tasks.spawn(
            "beat",
            bus::beat::run(self.bus.clone(), self.context.clone(), || None, stop.clone()),
        );
        Ok(())
    }

    /// A place among the requests that are answered at once.
    fn take_place(&self) -> Result<OwnedSemaphorePermit, Failure> {
        self.metrics
            .in_flight
            .set(i64::try_from(self.flights.count()).unwrap_or(i64::MAX));
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            Failure::new(
                ErrorCode::Unavailable,
                "the gateway answers as many requests as it can; try again",
            )
            .retry_after_ms(1_000)
        })
    }
}
