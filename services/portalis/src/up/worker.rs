//! One worker process. Input: what it should serve, and orders. Output: the process, and at its end why it ended.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use process::Context;
use tokio::process::Command;
use tokio::sync::mpsc;

use super::child::{OnOrphaned, Process, Spawner};
use super::supervisor::worker_name;
use super::worker_log::{WorkerLogs, copy, reason};

/// Orders that a worker's keeper may have waiting: terminate and kill, perhaps twice.
const MAX_WAITING_ORDERS: usize = 4;
/// A worker that has ended has closed its output, unless it left a child that holds it: then nobody waits longer.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(1);

/// How to start the workers of one model.
#[derive(Debug, Clone)]
pub struct WorkerLaunch {
    /// The model's true name.
    pub model: String,
    /// The program.
    pub program: PathBuf,
    /// Its configuration file, if there is one.
    pub config: Option<PathBuf>,
    /// Its configuration as variables, secrets among them.
    pub variables: Vec<(String, String)>,
    /// Where its output goes.
    pub logs: WorkerLogs,
    /// Time it may take to finish what it has.
    pub drain: Duration,
}

/// What to do to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Finish and end.
    Terminate,
    /// End.
    Kill,
}

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    /// Its place in the pool.
    pub slot: u32,
    /// Its process.
    pub pid: u32,
    /// When it was started, Unix milliseconds.
    pub started_at_ms: u64,
    orders: mpsc::Sender<Order>,
}

/// A worker's end.
#[derive(Debug)]
pub struct Ended {
    /// The model's true name.
    pub model: String,
    /// Its place in the pool.
    pub slot: u32,
    /// Why, for people.
    pub reason: String,
    /// Whether it ended by an exit code of its own, not by a signal.
    pub by_itself: bool,
}

impl Worker {
    /// Starts it; its end is told to `ends`.
    ///
    /// # Errors
    /// What the system said.
    pub async fn start(
        launch: &WorkerLaunch,
        slot: u32,
        spawner: &Spawner,
        context: &Context,
        ends: &mpsc::Sender<Ended>,
    ) -> io::Result<Self> {
        let mut command = Command::new(&launch.program);
        if let Some(config) = &launch.config {
            command.arg("--config").arg(config);
        }
        command.envs(launch.variables.iter().map(|(name, value)| (name, value)));
        let started_at_ms = context.clock.now_unix_ms();
        // The broker goes with us, so nothing that it has in hand can be finished: no time for a drain.
        let process = spawner.spawn(command, OnOrphaned::Kill).await?;
        let (orders, queue) = mpsc::channel(MAX_WAITING_ORDERS);
        let pid = process.pid();
        let (model, logs, ends) = (launch.model.clone(), launch.logs.clone(), ends.clone());
        context.tasks.spawn(worker_name(&model, slot), async move {
            let (reason, by_itself) = keep(process, queue, &logs, &worker_name(&model, slot)).await;
            // The supervisor is gone only when all of its workers are.
            let _ = ends
                .send(Ended {
                    model,
                    slot,
                    reason,
                    by_itself,
                })
                .await;
            Ok(())
        });
        Ok(Self {
            slot,
            pid,
            started_at_ms,
            orders,
        })
    }

    /// Tells it something.
    pub fn order(&self, order: Order) {
        // Full means that it has been told already, closed that it has ended.
        let _ = self.orders.try_send(order);
    }
}

/// Waits for the end of a process, passing orders on.
async fn keep(
    mut process: Process,
    mut orders: mpsc::Receiver<Order>,
    logs: &WorkerLogs,
    name: &str,
) -> (String, bool) {
    let output = process.take_stderr();
    let copying = async {
        match output {
            Some(output) => copy(output, logs, name).await,
            None => Vec::new(),
        }
    };
    tokio::pin!(copying);
    let mut kept = None;
    let status = loop {
        tokio::select! {
            status = process.wait() => break status,
            all = &mut copying, if kept.is_none() => kept = Some(all),
            Some(order) = orders.recv() => match order {
                Order::Terminate => process.terminate(),
                Order::Kill => process.kill(),
            },
        }
    };
    let kept = match kept {
        Some(kept) => kept,
        None => tokio::time::timeout(OUTPUT_TIMEOUT, copying).await.unwrap_or_default(),
    };
    let by_itself = matches!(&status, Ok(status) if status.code().is_some());
    let said = if by_itself { reason(&kept) } else { None };
    (said.unwrap_or_else(|| describe(&status)), by_itself)
}

fn describe(status: &io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => match (status.signal(), status.code()) {
            (Some(signal), _) => format!("killed by signal {signal}"),
            (None, Some(code)) => format!("exit code {code}"),
            (None, None) => "ended".to_owned(),
        },
        Err(error) => format!("cannot be waited for: {error}"),
    }
}
