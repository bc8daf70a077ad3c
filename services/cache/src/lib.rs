//! cache: the shared second tier of answers. Input: gets, puts and purges over the bus. Output: answers, and word to the
//! gateways of what is here.
//!
//! A message's way: `lookup.rs` reads it, `store.rs` keeps or finds (`tenant.rs` counts), `announce.rs` tells gateways.

mod announce;
mod config;
mod lookup;
mod metrics;
mod store;
mod tenant;

use std::future::{Future, ready};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bus::{Bus, Message, ServeOptions, Subscription};
use process::{CancellationToken, Context};
use schemas::subjects;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

pub use crate::config::{AnnounceConfig, Config, ConfigError, ShardsConfig, StoreConfig};
use crate::lookup::{Answer, Desk};
use crate::metrics::{Kind, Metrics};
use crate::store::Store;

/// Longest wait at the end for what was sent to reach the broker.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// The service.
#[derive(Debug)]
pub struct Cache;

impl process::Service for Cache {
    const NAME: &'static str = "cache";
    const DEFAULT_CONFIG: &'static str = include_str!("../default.toml");
    type Config = Config;

    fn serve(config: Config, context: Context) -> process::Serving {
        Box::pin(serve(config, context))
    }
}

async fn serve(config: Config, context: Context) -> anyhow::Result<()> {
    config.check()?;
    let health = context.health.component("bus");
    let metrics = Metrics::new(&context.registry)?;
    let bus = Bus::connect(&config.bus, &context.instance, None).await?;
    let clock = context.clock.clone();
    let store = Arc::new(Store::new(config.store.clone(), clock, metrics.clone()));
    let (announcer, announcements) = announce::announcer(&config.announce, &metrics);
    let desk = Desk {
        store: Arc::clone(&store),
        announcer,
        metrics,
    };
    let tasks = &context.tasks;
    let announcing = announcements.run(bus.clone(), context.shutdown.clone());
    let mut running = vec![tasks.spawn("announce", announcing)];
    running.extend(answer_all(&bus, &desk, &config, &context).await?);
    let interval = config.store.sweep_interval();
    running.push(tasks.spawn("sweep", sweep(store, interval, context.clone())));
    let following = bus::connected::follow(bus.clone(), health, context.shutdown.soft().clone());
    running.push(tasks.spawn("connection", following));
    // The last beat says that we drain, so this one ends after the others.
    let ended = CancellationToken::new();
    let beating = bus::beat::run(bus.clone(), context.clone(), || None, ended.clone());
    let beating = tasks.spawn("beat", beating);

    context.shutdown.stopping().await;
    for task in running {
        // A task that panicked is reported by the context, which owns it.
        let _ = task.await;
    }
    ended.cancel();
    let _ = beating.await;
    bus.close(CLOSE_LIMIT).await;
    Ok(())
}

/// Listens on every subject of the tier until the stop; when this returns, the broker knows all subscriptions.
async fn answer_all(bus: &Bus, desk: &Desk, config: &Config, context: &Context) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let mut running = Vec::new();
    for shard in &config.shards.serve {
        // One of the instances that serve a shard takes each message of it.
        let group = format!("cache-{shard}");
        let gets = subscribe(bus, &subjects::cache_get(*shard), Some(&group)).await?;
        let puts = subscribe(bus, &subjects::cache_put(*shard), Some(&group)).await?;
        let of = desk.clone();
        let getting = answer(bus, context, gets, move |message| of.get(&message));
        running.push(context.tasks.spawn(format!("get-{shard}"), getting));
        let of = desk.clone();
        let putting = answer(bus, context, puts, move |message| {
            of.put(&message);
            None
        });
        running.push(context.tasks.spawn(format!("put-{shard}"), putting));
    }
    // Each instance forgets, and each says what it holds: no group.
    let purges = subscribe(bus, subjects::CACHE_PURGE, None).await?;
    let indexes = subscribe(bus, subjects::CACHE_INDEX, None).await?;
    let orders = bus::control::listen(bus, context).await;
    let orders = orders.context("cannot listen for orders")?;
    let (purger, index, metrics) = (desk.clone(), desk.clone(), desk.metrics.clone());
    let purging = answer(bus, context, purges, move |message| {
        purger.purge(&message);
        None
    });
    let indexing = answer(bus, context, indexes, move |message| index.index(&message));
    let malformed = move || metrics.count_malformed(Kind::Control);
    let obeying = orders.obey(malformed, context.shutdown.soft().clone());
    running.push(context.tasks.spawn("purge", purging));
    running.push(context.tasks.spawn("index", indexing));
    running.push(context.tasks.spawn("control", obeying));
    Ok(running)
}

async fn subscribe(bus: &Bus, subject: &str, group: Option<&str>) -> anyhow::Result<Subscription> {
    let subscribed = bus.subscribe(subject, group).await;
    subscribed.with_context(|| format!("cannot listen on {subject}"))
}

/// Answers one subscription until the stop. Handlers never wait, so one at a time is as fast as many.
fn answer<H>(
    bus: &Bus,
    context: &Context,
    subscription: Subscription,
    handler: H,
) -> impl Future<Output = anyhow::Result<()>> + Send + use<H>
where
    H: Fn(Message) -> Answer + Send + Sync + 'static,
{
    let (bus, shutdown) = (bus.clone(), context.shutdown.clone());
    async move {
        let stop = shutdown.soft().clone();
        let handler = |message| ready(handler(message));
        bus.serve(subscription, ServeOptions::default(), stop, handler).await;
        anyhow::ensure!(shutdown.is_stopping(), "the subscription ended before the service");
        Ok(())
    }
}

/// Frees what has expired although nobody asks for it, until the stop.
async fn sweep(store: Arc<Store>, interval: Duration, context: Context) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => store.sweep(),
            () = context.shutdown.stopping() => return Ok(()),
        }
    }
}
