//! auth: keys, what they may do, signed identities and request permits. Input: requests from gateways and the CLI over
//! the bus. Output: grants, permits, public keys in the bucket `JWKS`, and word of every change.
//!
//! A request's way: `answer.rs` reads it, `authorize.rs` (or `administer.rs`) decides with `directory.rs` (rows),
//! `pepper.rs` (macs), `identity.rs` (tokens) and `permits.rs` (limits).

mod administer;
mod answer;
mod authorize;
mod config;
mod directory;
mod identity;
mod jwks;
mod keys;
mod metrics;
mod pepper;
mod permits;
mod store;
mod upkeep;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bus::{Bus, Message, ServeOptions, Subscription};
use process::{CancellationToken, Context};
use schemas::subjects;
use tokio::task::JoinHandle;
use tracing::Instrument;

use crate::answer::{Answer, Desk};
use crate::authorize::Authority;
pub use crate::config::Config;
use crate::directory::Directory;
use crate::identity::Identities;
use crate::jwks::Jwks;
use crate::metrics::{Kind, Metrics, Outcome};
use crate::pepper::Peppers;
use crate::permits::Permits;
use crate::store::Store;
use crate::upkeep::Upkeep;

/// The name under which instances share requests.
const QUEUE: &str = "auth";
/// Longest wait at the end for what was sent to reach the broker.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// The service.
#[derive(Debug)]
pub struct Auth;

impl process::Service for Auth {
    const NAME: &'static str = "auth";
    const DEFAULT_CONFIG: &'static str = include_str!("../default.toml");
    type Config = Config;

    fn serve(config: Config, context: Context) -> process::Serving {
        Box::pin(serve(config, context))
    }
}

async fn serve(config: Config, context: Context) -> anyhow::Result<()> {
    config.check()?;
    // Both from the start, so that readiness never counts one without the other.
    let store_health = context.health.component("store");
    let bus_health = context.health.component("bus");
    let metrics = Metrics::new(&context.registry)?;
    let (store, peppers) = open_store(&config).await?;
    let bus = Bus::connect(&config.bus, &context.instance, None).await?;
    let identity = &config.identity;
    let authority = Arc::new(Authority {
        directory: Directory::new(store.clone(), config.store.cached_keys),
        peppers,
        identities: Identities::new(identity.lifetime_s, identity.cached_identities),
        permits: Permits::new(context.clock.clone(), config.permits.valid_ms),
        clock: context.clock.clone(),
        metrics: metrics.clone(),
    });
    let (jwks_bus, clock) = (bus.clone(), context.clock.clone());
    let jwks = Jwks::new(jwks_bus, clock, identity.clone(), metrics.clone());
    // The public key is there before the first question can be answered.
    jwks.refresh(&authority.identities)
        .await
        .context("cannot publish the signing key")?;
    let desk = Desk {
        authority: Arc::clone(&authority),
        bus: bus.clone(),
        page_keys: config.store.page_keys,
    };
    let answering = answer_all(&desk, &config, &context).await?;
    let upkeep = Upkeep {
        authority,
        jwks,
        store: store_health.clone(),
        interval: Duration::from_millis(config.upkeep.interval_ms),
        tombstone_days: config.store.tombstone_days,
    };
    store_health.set_ready();
    let watching = bus::connected::follow(bus.clone(), bus_health, context.shutdown.soft().clone());
    let answered = CancellationToken::new();
    let beating = bus::beat::run(bus.clone(), context.clone(), || None, answered.clone());
    let background = [
        context.tasks.spawn("upkeep", upkeep.run(bus.clone(), context.clone())),
        context.tasks.spawn("connection", watching),
        context.tasks.spawn("beat", beating),
    ];

    context.shutdown.stopping().await;
    // A task that panicked is reported by the context, which owns it.
    for task in answering {
        let _ = task.await;
    }
    answered.cancel();
    for task in background {
        let _ = task.await;
    }
    bus.close(CLOSE_LIMIT).await;
    store.close().await;
    Ok(())
}

async fn open_store(config: &Config) -> anyhow::Result<(Store, Peppers)> {
    let store = Store::open(config.store.path()).await?;
    let peppers = match config.store.pepper_path() {
        Some(path) => Peppers::open(&path, &store.pepper_versions().await?)?,
        None => Peppers::ephemeral()?,
    };
    Ok((store, peppers))
}

/// Answers every subject of auth until the stop; when this returns, the broker knows all subscriptions.
async fn answer_all(desk: &Desk, config: &Config, context: &Context) -> anyhow::Result<[JoinHandle<()>; 4]> {
    let concurrency = config.serve.concurrency;
    let subscribe = async |subject: &str| {
        let subscribed = desk.bus.subscribe(subject, Some(QUEUE)).await;
        subscribed.with_context(|| format!("cannot listen on {subject}"))
    };
    let resolve = subscribe(subjects::RESOLVE_ALL).await?;
    let hold = subscribe(subjects::HOLD_ALL).await?;
    let keys = subscribe(subjects::KEYS_ALL).await?;
    let orders = bus::control::listen(&desk.bus, context).await;
    let orders = orders.context("cannot listen for orders")?;
    let (one, two, three) = (desk.clone(), desk.clone(), desk.clone());
    let metrics = desk.authority.metrics.clone();
    let malformed = move || metrics.count(Kind::Control, Outcome::Malformed);
    Ok([
        context.tasks.spawn(
            "resolve",
            serve_one(desk, context, resolve, concurrency, move |message| {
                let desk = one.clone();
                async move { desk.resolve(message).await }
            }),
        ),
        context.tasks.spawn(
            "hold",
            serve_one(desk, context, hold, concurrency, move |message| {
                let desk = two.clone();
                async move { desk.hold(message).await }
            }),
        ),
        context.tasks.spawn(
            "keys",
            serve_one(desk, context, keys, concurrency, move |message| {
                let desk = three.clone();
                async move { desk.keys(message).await }
            }),
        ),
        context
            .tasks
            .spawn("control", orders.obey(malformed, context.shutdown.soft().clone())),
    ])
}

/// Answers one subscription until the stop.
fn serve_one<H, F>(
    desk: &Desk,
    context: &Context,
    subscription: Subscription,
    concurrency: usize,
    handler: H,
) -> impl Future<Output = anyhow::Result<()>> + Send + use<H, F>
where
    H: Fn(Message) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let (bus, shutdown) = (desk.bus.clone(), context.shutdown.clone());
    let options = ServeOptions {
        concurrency,
        ..ServeOptions::default()
    };
    async move {
        let stop = shutdown.soft().clone();
        let traced = |message: Message| {
            let span = answer::span(&message);
            handler(message).instrument(span)
        };
        bus.serve(subscription, options, stop, traced).await;
        anyhow::ensure!(shutdown.is_stopping(), "the subscription ended before the service");
        Ok(())
    }
}
