//! Books every priced fact exactly once and says what was used. Input: the COST stream, a price file, questions for
//! usage. Output: a ledger in SQLite, roll-ups, usage reports, metrics.
//!
//! Reading order: `consume.rs` (the loop) → `collect.rs` (messages to a batch) → `book.rs` (a fact to money) ←
//! `prices.rs`; `ledger.rs` (one transaction); aside `answer.rs` → `usage.rs`, and `verify.rs` for the command line.

pub mod answer;
pub mod book;
pub mod collect;
pub mod config;
pub mod consume;
#[cfg(test)]
mod example;
pub mod ledger;
pub mod metrics;
pub mod prices;
pub mod usage;
mod verify;

use std::time::Duration;

use anyhow::Context as _;
use bus::{Bus, ServeOptions};
use process::{Component, Context};
use schemas::subjects;

pub use crate::verify::{Difference, RollupKey, VerifyReport, verify};

use crate::answer::Answerer;
use crate::book::Booker;
use crate::config::Config;
use crate::consume::{Consumer, Progress};
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::prices::Prices;
use crate::usage::UsageStore;

/// Questions for usage answered at once; each takes one of two connections, the rest of the time is the bus.
const USAGE_CONCURRENCY: usize = 8;
/// Longest wait at the end for the last message to reach the broker.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The ledger as a service.
#[derive(Debug)]
pub struct CostAccounting;

impl process::Service for CostAccounting {
    const NAME: &'static str = "cost-accounting";
    const DEFAULT_CONFIG: &'static str = include_str!("../default.toml");
    type Config = Config;

    fn serve(config: Config, context: Context) -> process::Serving {
        Box::pin(serve(config, context))
    }
}

async fn serve(config: Config, context: Context) -> anyhow::Result<()> {
    let (bus_health, ledger_health) = (context.health.component("bus"), context.health.component("ledger"));
    let metrics = Metrics::register(&context.registry)?;
    let prices = Prices::load(&config.prices.path).context("cannot use the price file")?;
    let ledger = Ledger::open(&config.ledger.path).await?;
    let store = UsageStore::open(&config.ledger.path).await?;
    let bus = Bus::connect(&config.bus, &context.instance, None)
        .await
        .context("cannot reach the broker")?;
    let progress = Progress::default();
    let answerer = Answerer {
        store: store.clone(),
        progress: progress.clone(),
        metrics: metrics.clone(),
    };
    let consumer = Consumer {
        bus: bus.clone(),
        ledger,
        booker: Booker::new(prices),
        metrics,
        options: config.booking,
        clock: context.clock.clone(),
        component: ledger_health,
        progress,
    };
    run(&bus, &context, (consumer, answerer, bus_health)).await?;
    store.close().await;
    bus.close(CLOSE_TIMEOUT).await;
    Ok(())
}

/// Runs the parts until the stop and waits for each to end.
async fn run(
    bus: &Bus,
    context: &Context,
    (consumer, answerer, bus_health): (Consumer, Answerer, Component),
) -> anyhow::Result<()> {
    let stop = context.shutdown.soft().clone();
    let questions = bus.subscribe(subjects::USAGE_GET, Some(context.service)).await?;
    let booking = context.tasks.spawn("book", {
        let stop = stop.clone();
        async move { Ok(consumer.run(stop).await?) }
    });
    let following = bus::connected::follow(bus.clone(), bus_health, stop.clone());
    let following = context.tasks.spawn("connection", following);
    let beat = bus::beat::run(bus.clone(), context.clone(), || None, stop.clone());
    let beating = context.tasks.spawn("beat", beat);
    let malformed = answerer.metrics.rejected.with_label_values(&["malformed_order"]);
    let orders = bus::control::run(bus.clone(), context.clone(), move || malformed.inc(), stop.clone());
    let obeying = context.tasks.spawn("control", orders);
    let options = ServeOptions {
        concurrency: USAGE_CONCURRENCY,
        ..ServeOptions::default()
    };
    bus.serve(questions, options, stop, |question| answerer.answer(question))
        .await;
    for task in [booking, following, beating, obeying] {
        // A task that failed has said so and is remembered by its owner.
        let _ = task.await;
    }
    Ok(())
}
