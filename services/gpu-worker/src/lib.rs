//! The gpu-worker: pulls work for one model, batches it, computes it, answers, and reports what it took. Input: its queue.
//! Output: answers and cost events; wiring only, the path of a request begins in `worker.rs`.

mod admit;
mod compute;
pub mod config;
mod credits;
mod dead;
mod encoder;
mod finish;
mod generation;
mod hands;
mod identity;
mod job;
mod metrics;
mod parts;
mod provision;
mod publish;
mod settle;
mod stats;
mod tokens;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bus::{Bus, Puller};
use engine::batch::{BatchPlanner, Limits};
use engine::generate::is_generative;
use engine::{EchoOptions, EmbeddingModel};
use moka::sync::Cache;
use process::{CancellationToken, Context, Serving};
use schemas::fleet::ModelCard;
use schemas::{streams, subjects};

use crate::compute::Device;
use crate::config::{Config, EngineKind, ModelConfig};
use crate::dead::Mover;
use crate::encoder::Encoder;
use crate::finish::Desk;
use crate::generation::Generative;
use crate::hands::Hands;
use crate::identity::Verifier;
use crate::job::Reporter;
use crate::metrics::Metrics;
use crate::parts::Parts;
use crate::provision::Provisioner;
use crate::stats::Stats;
use crate::tokens::{Texts, TokenDesk};
use crate::worker::Worker;

/// Cancellations remembered for work that is still on its way.
const MAX_CANCELLED: u64 = 10_000;
/// How long they are remembered: longer than a message is on its way, shorter than a request lives.
const CANCELLED_FOR: Duration = Duration::from_secs(60);
/// Fewest requests held at once: each lane keeps one slot, so with fewer the urgent lane would have none.
const MIN_SLOTS: u32 = 3;
/// Kind of device, until the CUDA engine joins.
const DEVICE: &str = "cpu";
/// Queue group in which workers of a model share questions about tokens.
const TOKENS_QUEUE: &str = "gpu-worker";
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
    let loading = config.clone();
    let model = tokio::task::spawn_blocking(move || load(&loading)).await??;
    let bus = Bus::connect(&config.bus, &context.instance, None)
        .await
        .context("cannot reach the message bus")?;
    let card = model.card(&config.model, context.clock.now_unix_ms() / 1_000);
    let provisioner = Provisioner::new(bus.clone(), card.clone(), config.queue.max_queued_per_tenant_lane);
    provisioner
        .provision()
        .await
        .context("cannot make the queues of the model")?;
    let verifier = Arc::new(Verifier::new(bus.kv(&streams::jwks_bucket()).await?));
    let cancels = worker::Cancels::new(
        bus.subscribe(&subjects::cancel_model(&card.slug), None).await?,
        bus.subscribe(&subjects::cancel_worker(&context.instance), None).await?,
    );
    let questions = bus.subscribe(&subjects::tokens(&card.slug), Some(TOKENS_QUEUE)).await?;
    let puller = Puller::new(&bus).await?;
    let metrics = Metrics::new(&context.registry)?;
    let stats = Arc::new(Stats::default());
    let parts = Parts {
        desk: desk(&config, &context, &metrics, &stats),
        consumers: worker::consumers(&card.slug),
        cancelled: Cache::builder()
            .max_capacity(MAX_CANCELLED)
            .time_to_live(CANCELLED_FOR)
            .build(),
        slots: model.slots(&config),
        bus,
        context,
        config,
        verifier,
        metrics,
        stats,
    };
    let stop = CancellationToken::new();
    start_tasks(&parts, provisioner, &card.name, &stop);
    let tokens = token_desk(&parts, model.texts()).run(questions, parts.context.shutdown.soft().clone());
    parts.context.tasks.spawn("tokens", tokens);
    ready.set_ready();
    tracing::info!(
        model = card.name,
        revision = card.revision,
        instance = parts.context.instance,
        "worker is ready"
    );
    let ended = match model {
        Model::Encoder(device) => {
            let hands = Hands::new(BatchPlanner::new(limits(&parts.config)));
            Worker::new(parts, device, hands).run(puller, cancels).await;
            Ok(())
        }
        Model::Generation(model) => generation::Writer::new(parts, *model).run(puller, cancels).await,
    };
    stop.cancel();
    Ok(ended?)
}

/// What runs beside the loop.
fn start_tasks(parts: &Parts, provisioner: Provisioner, model: &str, stop: &CancellationToken) {
    let Parts {
        bus, context, metrics, ..
    } = parts;
    let tasks = &context.tasks;
    let mover = Mover {
        bus: bus.clone(),
        clock: context.clock.clone(),
        metrics: metrics.clone(),
    };
    tasks.spawn(
        "signing keys",
        identity::follow(Arc::clone(&parts.verifier), stop.clone()),
    );
    tasks.spawn(
        "provisioner",
        provisioner.follow(context.health.component("bus"), stop.clone()),
    );
    // It has nothing in hand that others wait for, so it ends at the start of the drain and not after it.
    tasks.spawn("dead letters", mover.run(context.shutdown.soft().clone()));
    let (name, slots, beaten) = (model.to_owned(), parts.slots, Arc::clone(&parts.stats));
    let beat = move || Some(beaten.beat(&name, slots, DEVICE));
    let malformed = metrics.malformed.with_label_values(&["control"]);
    let orders = bus::control::run(bus.clone(), context.clone(), move || malformed.inc(), stop.clone());
    tasks.spawn("control", orders);
    tasks.spawn("beat", bus::beat::run(bus.clone(), context.clone(), beat, stop.clone()));
}

fn token_desk(parts: &Parts, texts: Texts) -> TokenDesk {
    TokenDesk {
        bus: parts.bus.clone(),
        clock: parts.context.clock.clone(),
        verifier: Arc::clone(&parts.verifier),
        model: parts.config.model.name.clone(),
        texts,
        malformed: parts.metrics.malformed.with_label_values(&["tokens"]),
    }
}

/// A loaded model of either kind.
enum Model {
    Encoder(Device),
    Generation(Box<Generative>),
}

impl Model {
    fn card(&self, config: &ModelConfig, now_s: u64) -> ModelCard {
        match self {
            Self::Encoder(device) => device.model().card(config, now_s),
            Self::Generation(model) => model.card(config, now_s),
        }
    }

    /// What knows its tokens.
    fn texts(&self) -> Texts {
        match self {
            Self::Encoder(device) => device.model().vocabulary().map_or(Texts::Nothing, Texts::Encoder),
            Self::Generation(model) => Texts::Writer(Arc::clone(&model.text)),
        }
    }

    /// Requests held at once: an encoder fills batches from what waits, a generating one holds what it can write.
    fn slots(&self, config: &Config) -> u32 {
        match self {
            Self::Encoder(_) => config.queue.slots,
            Self::Generation(_) => u32::try_from(config.generation.max_sequences)
                .unwrap_or(u32::MAX)
                .clamp(MIN_SLOTS, config.queue.slots),
        }
    }
}

fn check_slots(slots: u32) -> anyhow::Result<()> {
    anyhow::ensure!(
        slots >= MIN_SLOTS,
        "queue.slots is {slots}; set it to {MIN_SLOTS} or more, one for each lane"
    );
    Ok(())
}

fn load(config: &Config) -> anyhow::Result<Model> {
    match config.model.engine {
        EngineKind::Echo => {
            let options = EchoOptions {
                dims: config.echo.dimensions,
                max_tokens: ECHO_MAX_TOKENS,
            };
            let model = EmbeddingModel::echo(options);
            Ok(Model::Encoder(Device::echo(model, &config.echo)))
        }
        EngineKind::Model => load_model(config),
    }
}

/// Loads a model folder as what it is.
fn load_model(config: &Config) -> anyhow::Result<Model> {
    let ModelConfig { name, path, .. } = &config.model;
    let writes = is_generative(path).with_context(|| format!("cannot load model '{name}' from {}", path.display()))?;
    if writes {
        let model = Generative::load(&config.model, &config.generation)?;
        Ok(Model::Generation(Box::new(model)))
    } else {
        let encoder = Encoder::load(&config.model)?;
        Ok(Model::Encoder(Device::real(encoder)))
    }
}

fn limits(config: &Config) -> Limits {
    Limits {
        max_batch_tokens: config.batch.max_tokens,
        max_batch_items: config.batch.max_items,
        max_wait_us: config.batch.max_wait_us,
        max_lane_delay_us: config.batch.max_lane_delay_us,
        // Slots bound the requests, the message size bounds their inputs; this bound is never what refuses.
        max_pending_items: config.queue.slots as usize * schemas::http::MAX_INPUTS.max(schemas::http::MAX_PASSAGES),
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
