//! The whole `main` of a service: reads arguments and configuration, runs `serve` among health, metrics and signals, drains, gives the exit code.

use std::ffi::OsString;
use std::future::Future;
use std::io::{self, Write};
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use serde::de::DeserializeOwned;
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::args::Args;
use crate::config::{Loaded, ProcessConfig};
use crate::context::Context;
use crate::lifecycle::{Shutdown, Signals};
use crate::ops::{OpsError, OpsServer};
use crate::telemetry;

/// After the hard stop: time for tasks to see it and to end by themselves.
const HARD_STOP_GRACE: Duration = Duration::from_millis(500);
/// Time for blocking threads to end once nothing asynchronous runs any more; the exit does not wait longer.
const RUNTIME_STOP_LIMIT: Duration = Duration::from_millis(500);

/// One service: its name, its configuration, and what it does until it is told to stop.
pub trait Service: 'static {
    /// Its name, such as `gateway`; the binary is `portalis-<NAME>`.
    const NAME: &'static str;
    /// The text of its `default.toml`, every key of it.
    const DEFAULT_CONFIG: &'static str;
    /// Its configuration without `[process]`; put `#[serde(deny_unknown_fields)]` on it and on its sections.
    type Config: DeserializeOwned + Send + 'static;

    /// Works until `context.shutdown` stops it, finishes what is in hand, and returns.
    ///
    /// It registers a component of `context.health` first, or the service is never ready.
    /// Returning before the stop was asked for counts as a failure of the process.
    fn serve(config: Self::Config, context: Context) -> Serving;
}

/// A service at work. Boxed, so that its code is compiled once, in its own crate, and not again in every binary with it.
pub type Serving = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// Runs a service as this process, from its arguments to its exit code: 0 after a clean drain, 2 for a wrong command line, 1 otherwise.
#[must_use]
pub fn run<S: Service>() -> ExitCode {
    run_with::<S>(std::env::args_os())
}

fn run_with<S: Service>(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::parse(S::NAME, arguments) {
        Ok(args) => args,
        Err(answer) => {
            // Nobody is left to tell when the terminal is gone.
            let _ = answer.print();
            return if answer.exit_code() == 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(2)
            };
        }
    };
    match start::<S>(&args) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(io::stderr(), "portalis-{}: {error:#}", S::NAME);
            ExitCode::FAILURE
        }
    }
}

/// Everything that can fail before there is a log to write to.
fn start<S: Service>(args: &Args) -> anyhow::Result<ExitCode> {
    let loaded = args.layers()?.load::<S>()?;
    if args.print_config {
        write!(io::stdout(), "{}", loaded.redacted()?).context("cannot print the configuration")?;
        return Ok(ExitCode::SUCCESS);
    }
    telemetry::init(&loaded.process.log, loaded.process.log_format)?;
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if loaded.process.worker_threads > 0 {
        builder.worker_threads(loaded.process.worker_threads);
    }
    let runtime = builder
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let outcome = runtime.block_on(supervise::<S>(loaded));
    runtime.shutdown_timeout(RUNTIME_STOP_LIMIT);
    Ok(match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(service = S::NAME, error = format!("{error:#}"), "service failed");
            ExitCode::FAILURE
        }
    })
}

/// Puts the service between its signals and its ops server, and takes both down after it.
async fn supervise<S: Service>(loaded: Loaded<S::Config>) -> anyhow::Result<()> {
    let Loaded {
        process,
        service,
        notes,
        ..
    } = loaded;
    for note in notes {
        tracing::debug!(note, "configuration");
    }
    let context = Context::new(S::NAME);
    let signals = Signals::install().context("cannot listen for signals")?;
    let ops_stop = CancellationToken::new();
    let ops = start_ops(&process, &context, &ops_stop).await?;
    tracing::info!(
        service = S::NAME,
        instance = context.instance,
        version = env!("CARGO_PKG_VERSION"),
        "starting"
    );

    let drain = Duration::from_millis(process.drain_ms);
    let outcome = tokio::select! {
        outcome = serve_and_drain::<S>(service, &context, drain) => outcome,
        never = signals.watch(context.shutdown.clone(), drain) => match never {},
    };

    // Health and metrics stay until here, so that a drain can be watched.
    ops_stop.cancel();
    if let Some(mut ops) = ops {
        match tokio::time::timeout(HARD_STOP_GRACE, &mut ops).await {
            Ok(ended) => ended.context("the health and metrics server was cancelled")??,
            // A client holds its connection open; it is not worth more waiting.
            Err(_) => ops.abort(),
        }
    }
    outcome?;
    tracing::info!(service = S::NAME, "drained");
    Ok(())
}

type OpsTask = JoinHandle<Result<(), OpsError>>;

async fn start_ops(
    process: &ProcessConfig,
    context: &Context,
    stop: &CancellationToken,
) -> Result<Option<OpsTask>, OpsError> {
    if process.ops_address.is_empty() {
        return Ok(None);
    }
    let serving = OpsServer::bind(&process.ops_address)
        .await?
        .serve(vec![context.clone()], stop.clone());
    let shutdown = context.shutdown.clone();
    Ok(Some(tokio::spawn(async move {
        let outcome = serving.await;
        // Nobody could probe the service any more: it stops, unless it stops already.
        shutdown.start();
        outcome
    })))
}

/// Runs `serve` to its end, then waits for the tasks it left behind; the signals' watch bounds both by the hard stop.
async fn serve_and_drain<S: Service>(config: S::Config, context: &Context, drain: Duration) -> anyhow::Result<()> {
    // A task of its own, so that a panic is an outcome like any other.
    let mut serving = tokio::spawn(S::serve(config, context.clone()));
    let served = tokio::select! {
        served = &mut serving => flatten(served),
        () = forced_for(&context.shutdown, HARD_STOP_GRACE) => {
            serving.abort();
            Err(anyhow!("the service did not stop in time"))
        }
    };
    let asked = context.shutdown.is_stopping();
    context.shutdown.start();
    let joined = tokio::select! {
        joined = context.tasks.close_and_wait(drain + HARD_STOP_GRACE) => joined,
        () = forced_for(&context.shutdown, HARD_STOP_GRACE) => context.tasks.close_and_wait(Duration::ZERO).await,
    };
    served?;
    joined?;
    anyhow::ensure!(!context.tasks.failed(), "a task failed");
    anyhow::ensure!(asked, "the service returned without being asked to stop");
    anyhow::ensure!(!context.shutdown.is_forced(), "the drain was cut short");
    Ok(())
}

async fn forced_for(shutdown: &Shutdown, grace: Duration) {
    shutdown.forced().await;
    tokio::time::sleep(grace).await;
}

fn flatten(served: Result<anyhow::Result<()>, JoinError>) -> anyhow::Result<()> {
    match served {
        Ok(outcome) => outcome,
        Err(error) if error.is_panic() => Err(anyhow!("the service panicked")),
        Err(error) => Err(error).context("the service was cancelled"),
    }
}
