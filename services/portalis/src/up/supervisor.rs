//! Worker processes. Input: pools to keep, orders over the bus, heartbeats and ends of processes. Output: as many workers
//! as are wanted, restarted when they die, drained when they must go; and a status that others follow.

use std::collections::BTreeMap;
use std::time::Duration;

use bus::Bus;
use process::{Component, Context};
use schemas::fleet::{Beat, Control, ControlReply, InstanceState, PoolInfo};
use schemas::{ids, subjects, wire};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::child::Spawner;
use super::orders::{self, Asked};
use super::pool::{Action, Exit, Pool};
use super::worker::{Ended, Order, Worker, WorkerLaunch};

/// Service name in subjects and heartbeats.
pub const SERVICE: &str = "supervisor";
/// Ends of processes that wait to be noticed: more than there can be workers.
const MAX_WAITING_ENDS: usize = 4_096;
/// A heartbeat belongs to a process when it began at most this long before or after it, in milliseconds: another machine
/// may have a worker of the same number.
const START_TOLERANCE_MS: u64 = 10_000;
/// Crashes in a row, before the first worker was ready, after which the start as a whole has failed. An exit with a code
/// is the worker's own word and not tried again; a kill may be bad luck.
const MAX_KILLS_AT_START: u32 = 3;

/// What others may know.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// One entry per model.
    pub pools: Vec<PoolStatus>,
}

/// What others may know of one model.
#[derive(Debug, Clone)]
pub struct PoolStatus {
    /// Numbers.
    pub info: PoolInfo,
    /// Workers that are ready.
    pub ready: u32,
    /// Processes.
    pub pids: Vec<u32>,
    /// Why no worker starts, when none ever was ready.
    pub start_failure: Option<String>,
}

/// One model's workers.
struct Managed {
    launch: WorkerLaunch,
    pool: Pool,
    workers: BTreeMap<u32, Worker>,
    was_ready: bool,
    start_failure: Option<String>,
}

/// Keeps the workers.
pub struct Supervisor {
    bus: Bus,
    context: Context,
    spawner: Spawner,
    health: Component,
    restarts: process::prometheus::IntCounter,
    running: process::prometheus::IntGauge,
    models: BTreeMap<String, Managed>,
    status: watch::Sender<Status>,
    ends: (mpsc::Sender<Ended>, mpsc::Receiver<Ended>),
    asked: mpsc::Receiver<Asked>,
}

impl Supervisor {
    /// Listens for orders and beats; workers start with [`Supervisor::run`]. Everything ends with the context's shutdown.
    ///
    /// # Errors
    /// When the broker does not take the subscriptions.
    pub async fn new(
        bus: Bus,
        context: Context,
        spawner: Spawner,
        launches: Vec<(WorkerLaunch, u32, u32)>,
    ) -> anyhow::Result<(Self, watch::Receiver<Status>)> {
        let health = context.health.component("workers");
        let asked = orders::listen(&bus, &context).await?;
        // So that the autoscaler finds us.
        let stop = context.shutdown.soft().clone();
        context
            .tasks
            .spawn("beat", bus::beat::run(bus.clone(), context.clone(), || None, stop));
        let models = launches.into_iter().map(|(launch, min, max)| {
            let drain_ms = u64::try_from(launch.drain.as_millis()).unwrap_or(u64::MAX);
            let pool = Pool::new(&launch.model, min, max, drain_ms);
            let managed = Managed {
                launch,
                pool,
                workers: BTreeMap::new(),
                was_ready: false,
                start_failure: None,
            };
            (managed.launch.model.clone(), managed)
        });
        let (status, follower) = watch::channel(Status::default());
        let supervisor = Self {
            restarts: process::metrics::int_counter(
                &context.registry,
                "portalis_worker_restarts_total",
                "Worker processes that ended without being asked to.",
            )?,
            running: process::metrics::int_gauge(
                &context.registry,
                "portalis_worker_processes",
                "Worker processes that run.",
            )?,
            models: models.collect(),
            ends: mpsc::channel(MAX_WAITING_ENDS),
            bus,
            context,
            spawner,
            health,
            status,
            asked,
        };
        Ok((supervisor, follower))
    }

    /// Keeps the workers until the shutdown, then drains them; returns when none is left.
    ///
    /// # Errors
    /// When the broker does not take the subscription to heartbeats.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut beats = self.bus.subscribe(subjects::WORKER_BEATS, None).await?;
        let shutdown = self.context.shutdown.clone();
        loop {
            if shutdown.is_stopping() {
                self.models.values_mut().for_each(|managed| managed.pool.stop());
            }
            if shutdown.is_forced() {
                self.kill_all();
            }
            self.carry_out_plans().await;
            self.publish_status();
            let left = self.models.values().any(|managed| !managed.workers.is_empty());
            if shutdown.is_stopping() && !left {
                return Ok(());
            }
            let wake = self.next_wake();
            tokio::select! {
                biased;
                () = shutdown.stopping(), if !shutdown.is_stopping() => {}
                () = shutdown.forced(), if !shutdown.is_forced() => {}
                Some(ended) = self.ends.1.recv() => self.on_end(ended),
                Some((order, answer)) = self.asked.recv() => {
                    // Who asked may have left.
                    let _ = answer.send(self.obey(order));
                }
                beat = beats.next() => match beat {
                    Some(message) => self.on_beat(&message),
                    // The bus is closed for good: nobody beats, but workers must still be ended in order.
                    None => shutdown.start(),
                },
                () = sleep_until(wake) => {}
            }
        }
    }

    fn obey(&mut self, order: Control) -> ControlReply {
        match order {
            Control::DescribePool => {
                ControlReply::Pools(self.models.values().map(|managed| managed.pool.info()).collect())
            }
            Control::SetWorkers { model, workers } => match self.models.get_mut(&model) {
                None => ControlReply::Refused(format!("no model {model} here")),
                Some(managed) => match managed.pool.set_wanted(workers) {
                    Ok(()) => {
                        tracing::info!(model, workers, "number of workers set");
                        ControlReply::Accepted
                    }
                    Err(reason) => ControlReply::Refused(reason),
                },
            },
            Control::Drain => {
                ControlReply::Refused("a supervisor ends with its `portalis up`: send that SIGTERM".to_owned())
            }
        }
    }

    async fn carry_out_plans(&mut self) {
        let now_ms = self.now_ms();
        let models: Vec<String> = self.models.keys().cloned().collect();
        for model in models {
            let Some(managed) = self.models.get_mut(&model) else {
                continue;
            };
            for action in managed.pool.plan(now_ms) {
                match action {
                    Action::Terminate(id) => managed.order(id, Order::Terminate),
                    Action::Kill(id) => {
                        tracing::warn!(model, slot = id, "worker does not finish in time, killing it");
                        managed.order(id, Order::Kill);
                    }
                    Action::Start(id) => {
                        let started =
                            Worker::start(&managed.launch, id, &self.spawner, &self.context, &self.ends.0).await;
                        match started {
                            Ok(worker) => {
                                tracing::info!(model, slot = id, pid = worker.pid, "worker started");
                                managed.workers.insert(id, worker);
                            }
                            Err(error) => {
                                let reason = format!("{}: {error}", managed.launch.program.display());
                                managed.crashed(id, now_ms, &reason, true);
                            }
                        }
                    }
                }
            }
        }
    }

    fn on_end(&mut self, ended: Ended) {
        let now_ms = self.now_ms();
        let Some(managed) = self.models.get_mut(&ended.model) else {
            return;
        };
        managed.workers.remove(&ended.slot);
        if managed.crashed(ended.slot, now_ms, &ended.reason, ended.by_itself) {
            self.restarts.inc();
        }
    }

    fn on_beat(&mut self, message: &bus::Message) {
        let Ok(beat) = wire::decode::<Beat>(&message.payload) else {
            tracing::warn!(subject = message.subject(), "unreadable heartbeat");
            return;
        };
        let Some(seen) = &beat.worker else { return };
        let now_ms = self.now_ms();
        let Some(managed) = self.models.get_mut(&seen.model) else {
            return;
        };
        let ours = |worker: &&Worker| {
            worker.pid == seen.pid && worker.started_at_ms.abs_diff(beat.started_at_ms) <= START_TOLERANCE_MS
        };
        if let Some(worker) = managed.workers.values().find(ours)
            && beat.state == InstanceState::Ready
        {
            managed.pool.ready(worker.slot, now_ms);
            managed.was_ready = true;
            managed.start_failure = None;
        }
    }

    fn kill_all(&mut self) {
        for managed in self.models.values_mut() {
            let ids: Vec<u32> = managed.workers.keys().copied().collect();
            ids.into_iter().for_each(|id| managed.order(id, Order::Kill));
        }
    }

    fn publish_status(&self) {
        let status = Status {
            pools: self.models.values().map(Managed::status).collect(),
        };
        let short = status.pools.iter().find(|pool| pool.ready == 0 && pool.info.min > 0);
        match short {
            Some(pool) => self
                .health
                .set_unready(format!("no worker of {} is ready", pool.info.model)),
            None => self.health.set_ready(),
        }
        let running: usize = status.pools.iter().map(|pool| pool.pids.len()).sum();
        self.running.set(i64::try_from(running).unwrap_or(i64::MAX));
        self.status.send_replace(status);
    }

    fn next_wake(&self) -> Option<Instant> {
        let wake_ms = self
            .models
            .values()
            .filter_map(|managed| managed.pool.next_wake_ms())
            .min()?;
        Some(Instant::now() + Duration::from_millis(wake_ms.saturating_sub(self.now_ms())))
    }

    fn now_ms(&self) -> u64 {
        self.context.clock.monotonic_us() / 1_000
    }
}

impl Managed {
    fn order(&mut self, slot: u32, order: Order) {
        if let Some(worker) = self.workers.get(&slot) {
            worker.order(order);
        }
    }

    /// Notes the end of a process; whether it was not asked to end.
    fn crashed(&mut self, slot: u32, now_ms: u64, reason: &str, by_itself: bool) -> bool {
        let model = &self.launch.model;
        let Exit::Crash {
            was_ready,
            failures_in_row,
            backoff_ms,
        } = self.pool.exited(slot, now_ms)
        else {
            tracing::info!(model, slot, "worker ended");
            return false;
        };
        if was_ready && failures_in_row < MAX_KILLS_AT_START {
            tracing::warn!(model, slot, reason, backoff_ms, "worker died, starting another");
        } else {
            tracing::error!(
                model,
                slot,
                reason,
                failures_in_row,
                backoff_ms,
                "worker does not stay up"
            );
        }
        if !self.was_ready && (by_itself || failures_in_row >= MAX_KILLS_AT_START) {
            self.start_failure.get_or_insert_with(|| reason.to_owned());
        }
        true
    }

    fn status(&self) -> PoolStatus {
        PoolStatus {
            info: self.pool.info(),
            ready: self.pool.ready_workers(),
            pids: self.workers.values().map(|worker| worker.pid).collect(),
            start_failure: self.start_failure.clone(),
        }
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

/// File-safe name of a worker: model and slot.
#[must_use]
pub fn worker_name(model: &str, slot: u32) -> String {
    format!("gpu-worker-{}-{slot}", ids::model_slug(model))
}

#[cfg(test)]
mod tests;
