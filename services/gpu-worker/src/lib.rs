//! The gpu-worker: pulls work for one model, batches it, computes it, answers, and reports what it took. Input: its queue.
//! Output: answers and cost events; wiring only, the path of a request begins in `worker.rs`.

mod admit;
mod compute;
pub mod config;
mod credits;
mod dead;
mod finish;
mod hands;
mod identity;
mod job;
mod metrics;
mod provision;
mod publish;
mod stats;
mod worker;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bus::{Bus, Puller};
use engine::batch::{BatchPlanner, Limits};
use engine::{EchoOptions, EmbeddingModel, LoadOptions, Precision};
use moka::sync::Cache;
use process::{CancellationToken, Context, Serving};
use schemas::{streams, subjects};

use crate::compute::Device;
use crate::config::{Config, EngineKind, ModelConfig};
use crate::dead::Mover;
use crate::finish::Desk;
use crate::hands::Hands;
use crate::identity::Verifier;
use crate::job::Reporter;
use crate::metrics::Metrics;
use crate::provision::Provisioner;
use crate::stats::Stats;
use crate::worker::{Parts, Worker};

/// Cancellations remembered for work that is still on its way.
const MAX_CANCELLED: u64 = 10_000;
/// How long they are remembered: longer than a message is on its way, shorter than a request lives.
const CANCELLED_FOR: Duration = Duration::from_secs(60);
/// Fewest requests held at once: each lane keeps one slot, so with fewer the urgent lane would have none.
const MIN_SLOTS: u32 = 3;
/// Kind of device, until the CUDA engine joins.
const DEVICE: &str = "cpu";
/// Longest input of the echo engine, in words.
const ECHO_MAX_TOKENS: usize = 8_192;

/// The worker as a service.
pub struct GpuWorker;

impl process::Service for GpuWorker {
    const NAME: &'static str = "gpu-worker";
    const DEFAULT_CONFIG: &'static str = include_str!("../default.toml");
    type Config = Config;

    fn serve(config: Config, context: Context) -> Serving {
        Box::pin(serve(config, context))
    }
}

async fn serve(config: Config, context: Context) -> anyhow::Result<()> {
    let ready = context.health.component("model");
    check_slots(config.queue.slots)?;
    // The model first: a broken file is found before any traffic is taken.
    let echo = config.echo.clone();
    let model_config = config.model.clone();
    let device = tokio::task::spawn_blocking(move || load(&model_config, &echo)).await??;
    let bus = Bus::connect(&config.bus, &context.instance, None)
        .await
        .context("cannot reach the message bus")?;
    let card = provision::card(&config.model, &device, context.clock.now_unix_ms() / 1_000);
    let provisioner = Provisioner::new(bus.clone(), card.clone(), config.queue.max_queued_per_tenant_lane);
    provisioner
        .provision()
        .await
        .context("cannot make the queues of the model")?;
    let verifier = Arc::new(Verifier::new(bus.kv(&streams::jwks_bucket()).await?));
    let cancels = bus.subscribe(&subjects::cancel_model(&card.slug), None).await?;
    let own_cancels = bus.subscribe(&subjects::cancel_worker(&context.instance), None).await?;
    let puller = Puller::new(&bus).await?;
    let stop = CancellationToken::new();
    let metrics = Metrics::new(&context.registry)?;
    let mover = Mover {
        bus: bus.clone(),
        clock: context.clock.clone(),
        metrics: metrics.clone(),
    };
    let stats = Arc::new(Stats::default());
    let tasks = &context.tasks;
    tasks.spawn("signing keys", identity::follow(Arc::clone(&verifier), stop.clone()));
    tasks.spawn(
        "provisioner",
        provisioner.follow(context.health.component("bus"), stop.clone()),
    );
    // It has nothing in hand that others wait for, so it ends at the start of the drain and not after it.
    tasks.spawn("dead letters", mover.run(context.shutdown.soft().clone()));
    let (model, slots, beaten) = (card.name.clone(), config.queue.slots, Arc::clone(&stats));
    let beat = move || Some(beaten.beat(&model, slots, DEVICE));
    let malformed = metrics.malformed.with_label_values(&["control"]);
    let orders = bus::control::run(bus.clone(), context.clone(), move || malformed.inc(), stop.clone());
    tasks.spawn("control", orders);
    tasks.spawn("beat", bus::beat::run(bus.clone(), context.clone(), beat, stop.clone()));
    let worker = Worker::new(Parts {
        desk: desk(&config, &context, &metrics, &stats),
        hands: Hands::new(BatchPlanner::new(limits(&config))),
        consumers: worker::consumers(&card.slug),
        cancelled: Cache::builder()
            .max_capacity(MAX_CANCELLED)
            .time_to_live(CANCELLED_FOR)
            .build(),
        context: context.clone(),
        bus,
        config,
        device,
        verifier,
        metrics,
        stats,
    });
    ready.set_ready();
    tracing::info!(
        model = card.name,
        revision = card.revision,
        instance = context.instance,
        "worker is ready"
    );
    worker.run(puller, worker::Cancels::new(cancels, own_cancels)).await;
    stop.cancel();
    Ok(())
}

fn check_slots(slots: u32) -> anyhow::Result<()> {
    anyhow::ensure!(
        slots >= MIN_SLOTS,
        "queue.slots is {slots}; set it to {MIN_SLOTS} or more, one for each lane"
    );
    Ok(())
}

fn load(config: &ModelConfig, echo: &config::EchoConfig) -> anyhow::Result<Device> {
    match config.engine {
        EngineKind::Echo => {
            let options = EchoOptions {
                dims: echo.dimensions,
                max_tokens: ECHO_MAX_TOKENS,
            };
            Ok(Device::echo(EmbeddingModel::echo(options), echo))
        }
        EngineKind::Model => {
            let precision: Precision = config
                .precision
                .parse()
                .map_err(|error| anyhow::anyhow!("model.precision: {error}"))?;
            let mut options = LoadOptions {
                precision,
                ..LoadOptions::default()
            };
            if let Some(threads) = NonZeroUsize::new(config.threads) {
                options.threads = threads;
            }
            let path = &config.path;
            let model = EmbeddingModel::load(path, options)
                .with_context(|| format!("cannot load model '{}' from {}", config.name, path.display()))?;
            Ok(Device::real(model))
        }
    }
}

fn limits(config: &Config) -> Limits {
    Limits {
        max_batch_tokens: config.batch.max_tokens,
        max_batch_items: config.batch.max_items,
        max_wait_us: config.batch.max_wait_us,
        max_lane_delay_us: config.batch.max_lane_delay_us,
        // Slots bound the requests, the message size bounds their inputs; this bound is never what refuses.
        max_pending_items: config.queue.slots as usize * schemas::http::MAX_INPUTS,
    }
}

fn desk(config: &Config, context: &Context, metrics: &Metrics, stats: &Arc<Stats>) -> Desk {
    let reporter = Reporter {
        instance: context.instance.clone(),
        device: DEVICE.to_owned(),
        terms: config.device.terms,
    };
    Desk::new(
        config.model.name.clone(),
        reporter,
        context.clock.clone(),
        metrics.clone(),
        Arc::clone(stats),
    )
}
