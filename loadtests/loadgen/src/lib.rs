//! The load generator. Input: a command. Output: measurements of the mesh and of its baselines, taken in one run.
//! Wiring only: `bench.rs` measures the mesh, `http_tool.rs` any server, `start_time.rs` the start and the end of the stack,
//! `streams.rs` how even streams of text are.

pub mod bare;
pub mod bench;
pub mod children;
pub mod cli;
pub mod date;
pub mod http_client;
pub mod http_load;
pub mod http_tool;
pub mod mesh;
pub mod nats_echo;
pub mod nats_load;
pub mod nats_server;
pub mod probe;
pub mod procfs;
pub mod report;
pub mod scenario;
pub mod start_time;
pub mod streams;
pub mod targets;
pub mod window;

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Cli, Command};

/// Runs one command. Single-threaded on purpose: the load generator shares its cores with what it measures, and children
/// die with the thread that started them, which is therefore the main one.
///
/// # Errors
/// What went wrong, with what to do.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::ServeBare(args) => in_threads(bare::serve(args)),
        Command::ServeNats => alone(nats_echo::serve()),
        Command::Bench(args) => alone(until_signal(bench::run(args))),
        Command::Http(args) => alone(until_signal(http_tool::run(args))),
        Command::Streams(args) => alone(until_signal(streams::run(args))),
        Command::StartTime(args) => alone(until_signal(start_time::run(args))),
    }
}

fn alone<F: Future<Output = anyhow::Result<()>>>(work: F) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(work)
}

/// As the gateway runs: one thread per core.
fn in_threads<F: Future<Output = anyhow::Result<()>>>(work: F) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(work)
}

/// Dropping the work ends its children and removes its files, so a signal needs no more than that.
async fn until_signal<F: Future<Output = anyhow::Result<()>>>(work: F) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    tokio::select! {
        done = work => done,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}
