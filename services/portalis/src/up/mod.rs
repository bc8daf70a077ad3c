//! `portalis up`: the whole mesh as one process tree. Input: arguments. Output: a running mesh until it is told to stop,
//! and then nothing: no process, no port.
//!
//! In order: `plan.rs` checks, `data_dir.rs` locks, `nats.rs` starts the broker, `stack.rs` the services, `supervisor.rs`
//! the workers, `ready.rs` waits, `demo_key.rs` and `banner.rs` tell. The stop goes the other way round.

mod banner;
mod child;
mod data_dir;
mod demo_key;
mod log_file;
mod nats;
mod nats_config;
mod orders;
mod plan;
mod pool;
mod ready;
mod settings;
mod stack;
mod supervisor;
mod worker;
mod worker_log;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Context as _;
use bus::{Bus, BusConfig};
use process::{Context, LogFormat, OpsServer, Shutdown, Signals};
use tokio::sync::watch;
use tokio::time::Instant;
use toml::Value;

use self::banner::{Pids, Ready};
use self::child::Spawner;
use self::data_dir::{DataDir, write_private};
use self::log_file::LogFile;
use self::nats::{NatsOptions, NatsServer};
use self::plan::{ModelPlan, Plan};
use self::settings::Settings;
use self::stack::{Ops, Stack};
use self::supervisor::{Status, Supervisor};
use self::worker::WorkerLaunch;
use self::worker_log::WorkerLogs;
use crate::args::{Mesh, UpArgs};
use crate::cli::LEDGER_FILE;
use crate::mesh::NATS_URL_FILE;

/// Time from the first signal to the second stage of the stop: above a worker's own drain, below what people wait.
const DRAIN: Duration = Duration::from_secs(30);
/// Time a worker has to finish before it is killed: its own `drain_ms` is 25 s.
const WORKER_DRAIN: Duration = Duration::from_secs(27);
/// Time for blocking threads to end once all is stopped.
const RUNTIME_STOP_LIMIT: Duration = Duration::from_millis(500);
/// Directives of the log file.
const LOG_FILE_DIRECTIVES: &str = "info,async_nats=warn";

/// Runs the mesh until it is told to stop.
///
/// # Errors
/// One line that says what to do.
pub fn run(args: &UpArgs, mesh: &Mesh) -> anyhow::Result<()> {
    let began = Instant::now();
    let data = DataDir::open(&mesh.data_dir, args.ephemeral)?;
    let plan = Plan::new(args, &data)?;
    let settings = Settings::read(args.config.as_deref())?;
    let logs = start_logs(args, &data)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let up = Up {
        args,
        mesh,
        data: &data,
        plan: &plan,
        settings: &settings,
        logs: &logs,
        began,
    };
    let outcome = runtime.block_on(up.watched());
    runtime.shutdown_timeout(RUNTIME_STOP_LIMIT);
    data.close().context("cannot remove the temporary folder")?;
    outcome
}

/// Logs go to files, so that the terminal shows what people need; with `--log` it shows the logs.
fn start_logs(args: &UpArgs, data: &DataDir) -> anyhow::Result<WorkerLogs> {
    if let Some(directives) = &args.log {
        process::telemetry::init(directives, LogFormat::Text)?;
        return Ok(WorkerLogs::Terminal);
    }
    let folder = data.private_folder("logs")?;
    let path = folder.join("portalis.log");
    let file = LogFile::begin(&path).with_context(|| format!("cannot write {}", path.display()))?;
    process::telemetry::init_to(LOG_FILE_DIRECTIVES, LogFormat::Text, false, Mutex::new(file))?;
    Ok(WorkerLogs::Folder(folder))
}

/// What is there before the services start, and after they have stopped.
struct Around<'a> {
    /// The broker, credentials included.
    url: &'a str,
    /// The broker's process, if it is ours.
    nats: Option<&'a NatsServer>,
    spawner: &'a Spawner,
    shutdown: &'a Shutdown,
}

/// What runs once the services are launched.
struct Started {
    bus: Bus,
    workers: watch::Receiver<Status>,
}

/// One run.
struct Up<'a> {
    args: &'a UpArgs,
    mesh: &'a Mesh,
    data: &'a DataDir,
    plan: &'a Plan,
    settings: &'a Settings,
    logs: &'a WorkerLogs,
    began: Instant,
}

impl Up<'_> {
    /// The run between its signals: the first one drains, the second one or the drain's deadline gives up.
    async fn watched(&self) -> anyhow::Result<()> {
        let shutdown = Shutdown::new();
        let signals = Signals::install().context("cannot listen for signals")?;
        tokio::select! {
            outcome = self.with_broker(&shutdown) => outcome,
            never = signals.watch(shutdown.clone(), DRAIN) => match never {},
        }
    }

    async fn with_broker(&self, shutdown: &Shutdown) -> anyhow::Result<()> {
        let ops = Ops::bind(self.args.ops_port).await?;
        // Lives until after the last child.
        let spawner = Spawner::start()?;
        let around = |url, nats| Around {
            url,
            nats,
            spawner: &spawner,
            shutdown,
        };
        if let Some(url) = &self.mesh.nats_url {
            return self.with_services(ops, &around(url, None)).await;
        }
        let options = NatsOptions {
            program: self.args.nats_server.clone(),
            port: (self.args.nats_port > 0).then_some(self.args.nats_port),
        };
        let nats = NatsServer::start(&options, self.data, &spawner).await?;
        let outcome = self.with_services(ops, &around(nats.url(), Some(&nats))).await;
        nats.stop().await;
        outcome
    }

    async fn with_services(&self, ops: OpsServer, around: &Around<'_>) -> anyhow::Result<()> {
        let url_file = self.data.path(NATS_URL_FILE);
        write_private(&url_file, &format!("{}\n", around.url))?;
        let mut stack = Stack::default();
        let outcome = match self.launch(&mut stack, around).await {
            Ok(started) => {
                let ops = Ops::serve(ops, stack.contexts());
                let outcome = self.serve(&mut stack, started, &ops, around).await;
                self.stop(&mut stack, around.shutdown).await;
                ops.stop().await;
                outcome
            }
            Err(error) => {
                self.stop(&mut stack, around.shutdown).await;
                Err(error)
            }
        };
        if around.nats.is_some() {
            // It leads nowhere now; a run that is killed leaves it, and then nobody answers there.
            let _ = std::fs::remove_file(&url_file);
        }
        // A service that failed in the stop has failed, too.
        outcome.and_then(|()| stack.take_failure().map_or(Ok(()), Err))
    }

    /// Starts everything at once: services and workers wait for each other by themselves.
    async fn launch(&self, stack: &mut Stack, around: &Around<'_>) -> anyhow::Result<Started> {
        let url = around.url;
        let bus_url = || ("bus.url", Value::from(url));
        let path = |name: &str| text(&self.data.path(name)).map(Value::from);
        let settings = self.settings;
        // The supervisor first: loading the models takes longest.
        let bus = Bus::connect(&BusConfig::for_url(url), "portalis-up", None).await?;
        let context = Context::new(supervisor::SERVICE);
        let launches = self.worker_launches(url)?;
        let spawner = around.spawner.clone();
        let (supervisor, workers) = Supervisor::new(bus.clone(), context.clone(), spawner, launches).await?;
        stack.run(context, supervisor.run());
        stack.launch::<auth::Auth>(settings, &[bus_url(), ("store.path", path("auth.sqlite3")?)])?;
        stack.launch::<cache::Cache>(settings, &[bus_url()])?;
        stack.launch::<cost_accounting::CostAccounting>(settings, &[bus_url(), ("ledger.path", path(LEDGER_FILE)?)])?;
        stack.launch::<autoscaler::Autoscaler>(settings, &[bus_url()])?;
        let address = Value::from(self.plan.http.to_string());
        stack.launch::<gateway::Gateway>(settings, &[bus_url(), ("http.address", address)])?;
        Ok(Started { bus, workers })
    }

    /// Waits until all is ready, tells where things are, and waits for the end.
    async fn serve(&self, stack: &mut Stack, started: Started, ops: &Ops, around: &Around<'_>) -> anyhow::Result<()> {
        let Started { bus, mut workers } = started;
        let contexts = stack.contexts();
        tokio::select! {
            biased;
            () = around.shutdown.stopping() => return Ok(()),
            error = stack.failed() => return Err(error),
            ready = ready::wait(&contexts, &mut workers, self.plan.http) => ready?,
        }
        let api_key = demo_key::obtain(&bus, &self.data.path("demo-key")).await?;
        let pools = workers.borrow().pools.clone();
        let ready = Ready {
            base_url: format!("http://{}/v1", ready::reachable(self.plan.http)),
            api_key,
            nats_url: around.url.to_owned(),
            ops_url: format!("http://{}", ops.address),
            models: self.plan.models.iter().map(|model| model.name.as_str()).collect(),
            data_dir: self.data.folder(),
            pids: Pids {
                portalis: std::process::id(),
                nats_server: around.nats.and_then(NatsServer::pid),
                workers: pools.into_iter().flat_map(|pool| pool.pids).collect(),
            },
            ready_ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        self.tell(&ready)?;
        tokio::select! {
            biased;
            () = around.shutdown.stopping() => Ok(()),
            error = stack.failed() => Err(error),
        }
    }

    fn tell(&self, ready: &Ready<'_>) -> anyhow::Result<()> {
        tracing::info!(base_url = ready.base_url, ready_ms = ready.ready_ms, "ready");
        if let Some(file) = &self.args.ready_file {
            write_private(file, &format!("{}\n", ready.json()?))?;
        }
        let logs = match self.logs {
            WorkerLogs::Terminal => None,
            WorkerLogs::Folder(folder) => Some(folder.as_path()),
        };
        let text = if self.mesh.json {
            format!("{}\n", ready.json()?)
        } else {
            ready.text(logs)
        };
        let mut out = io::stdout();
        // Nobody reads: that is no reason to stop a mesh that runs.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        Ok(())
    }

    /// Stops in the order in which work flows: nothing new comes in, what is in hand goes through.
    async fn stop(&self, stack: &mut Stack, shutdown: &Shutdown) {
        // A failure is the begin of a stop, too: the drain's deadline runs from here.
        shutdown.start();
        let forced = shutdown.hard();
        stack.stop(&["autoscaler", "gateway"], forced).await;
        stack.stop(&[supervisor::SERVICE], forced).await;
        stack.stop(&["auth", "cache"], forced).await;
        stack.stop_all(forced).await;
    }

    fn worker_launches(&self, url: &str) -> anyhow::Result<Vec<(WorkerLaunch, u32, u32)>> {
        let config = match self.settings.file_of("gpu-worker") {
            Some(content) => {
                let path = self.data.path("gpu-worker.toml");
                write_private(&path, &content)?;
                Some(path)
            }
            None => None,
        };
        let Plan {
            min_workers,
            max_workers,
            ..
        } = *self.plan;
        let launches = self.plan.models.iter().map(|model| {
            let launch = WorkerLaunch {
                model: model.name.clone(),
                program: self.plan.worker_binary.clone(),
                config: config.clone(),
                variables: self.worker_variables(model, url)?,
                logs: self.logs.clone(),
                drain: WORKER_DRAIN,
            };
            Ok((launch, min_workers, max_workers))
        });
        launches.collect()
    }

    /// By environment, because arguments can be read by every user of the machine and the URL holds a password.
    fn worker_variables(&self, model: &ModelPlan, url: &str) -> anyhow::Result<Vec<(String, String)>> {
        let (engine, path) = match &model.path {
            Some(path) => ("model", text(path)?),
            None => ("echo", String::new()),
        };
        let directives = self.args.log.clone().unwrap_or_else(|| LOG_FILE_DIRECTIVES.to_owned());
        let variables = [
            ("BUS__URL", quoted(url)),
            ("MODEL__NAME", quoted(&model.name)),
            ("MODEL__PATH", quoted(&path)),
            ("MODEL__ENGINE", quoted(engine)),
            ("MODEL__THREADS", self.plan.threads.to_string()),
            ("PROCESS__LOG", quoted(&directives)),
            ("PROCESS__LOG_FORMAT", quoted("text")),
            // Many workers on one machine: each takes a free port and logs it.
            ("PROCESS__OPS_ADDRESS", quoted("127.0.0.1:0")),
        ];
        let precision = model.precision.map(|precision| ("MODEL__PRECISION", quoted(precision)));
        Ok(variables
            .into_iter()
            .chain(precision)
            .map(|(name, value)| (format!("PORTALIS__{name}"), value))
            .collect())
    }
}

/// A text as TOML, so that one that looks like a number stays a text.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn text(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.with_context(|| format!("the path {} is not Unicode", PathBuf::from(path).display()))
}
