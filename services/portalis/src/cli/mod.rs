//! Commands that ask a running mesh. Input: a command and where the mesh is. Output: a table or JSON on standard output.

mod cache;
mod dead;
mod keys;
mod ledger;
mod replay;
mod scale;
mod show;
mod status;
mod translate;
mod usage;

use std::time::Duration;

use anyhow::Context as _;
use bus::Bus;

use crate::args::{CacheCommand, Command, Mesh, ScaleCommand};
use crate::mesh::connect;

pub(crate) use ledger::LEDGER_FILE;

/// Work that was done, but not the whole of it.
#[derive(Debug)]
pub(crate) struct Incomplete(String);

impl std::fmt::Display for Incomplete {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Incomplete {}

/// Longest wait at the end for what was sent to reach the broker.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs one command.
///
/// # Errors
/// One line that says what to do.
pub fn run(command: &Command, mesh: &Mesh) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    runtime.block_on(async {
        if let Command::Ledger(command) = command {
            return ledger::run(command, mesh).await;
        }
        if let Command::Translate(args) = command {
            return translate::run(args, mesh).await;
        }
        let bus = connect(mesh).await?;
        let outcome = ask(command, mesh, &bus).await;
        bus.close(CLOSE_TIMEOUT).await;
        outcome
    })
}

async fn ask(command: &Command, mesh: &Mesh, bus: &Bus) -> anyhow::Result<()> {
    match command {
        Command::Keys(command) => keys::run(command, mesh, bus).await,
        Command::Usage(args) => usage::run(args, mesh, bus).await,
        Command::Dead(command) => dead::run(command, mesh, bus).await,
        Command::Status => status::run(mesh, bus).await,
        Command::Scale(ScaleCommand::Explain { model, limit }) => scale::explain(model, *limit, mesh, bus).await,
        Command::Cache(CacheCommand::Purge { tenant }) => cache::purge(tenant.as_deref(), mesh, bus).await,
        // Handled by the callers: one needs no mesh, one speaks HTTP, one is the mesh.
        Command::Ledger(_) | Command::Translate(_) | Command::Up(_) => Ok(()),
    }
}
