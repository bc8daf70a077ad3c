//! `portalis-loadgen bench`. Input: a scenario. Output: the mesh and its baselines, measured in turn in one run, as tables
//! with ratios. In order: start everything, measure all rows again and again, count executions, stop, report.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, ensure};
use async_nats::Client;
use serde::Serialize;
use tokio::process::Command;

use crate::children::Process;
use crate::cli::{BenchArgs, InputKind};
use crate::date::utc_date;
use crate::http_client::Connection;
use crate::http_load::{self, Load, Request, Run};
use crate::mesh::{self, GATEWAY, MODEL, Mesh};
use crate::nats_echo::URL_VARIABLE;
use crate::nats_load::{self, Loop};
use crate::nats_server::{self, NatsServer, find_program};
use crate::probe::Probe;
use crate::procfs;
use crate::report::{self, Identical, Idle, Report, Row};
use crate::scenario::Scenario;
use crate::window::median;

/// Time for the services' starting work to end before they count as idle.
const SETTLE: Duration = Duration::from_secs(1);
/// Window in which the idle mesh is measured.
const IDLE: Duration = Duration::from_secs(2);

/// What a row measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An axum server that does nothing.
    Bare,
    /// Request and reply over the bare broker.
    Core,
    /// A queue on the bare broker.
    Queue,
    /// The mesh; each request is computed.
    Mesh,
    /// The same with a key that has a limit.
    MeshLimited,
    /// The mesh; each request is answered by the gateway's own cache.
    Hit,
}

impl Kind {
    /// Its name in the tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare axum",
            Self::Core => "NATS core request-reply",
            Self::Queue => "JetStream memory loop",
            Self::Mesh => "mesh, computed",
            Self::MeshLimited => "mesh, computed, key with limit",
            Self::Hit => "mesh, cached hit",
        }
    }

    /// Whether the mesh is what works.
    #[must_use]
    pub fn is_mesh(self) -> bool {
        matches!(self, Self::Mesh | Self::MeshLimited | Self::Hit)
    }
}

/// Everything that runs.
struct Stage {
    mesh: Mesh,
    bare: Process,
    bare_address: std::net::SocketAddr,
    nats: NatsServer,
    echo: Process,
    client: Client,
    probe: Probe,
    idle: Idle,
}

/// Runs the benchmark and prints its report.
///
/// # Errors
/// When something does not start or an answer is missing.
pub async fn run(args: BenchArgs) -> anyhow::Result<()> {
    let scenario = match &args.scenario {
        Some(path) => Scenario::read(path)?,
        None if args.quick => Scenario::quick()?,
        None => Scenario::full()?,
    };
    let cpus = procfs::keep_to_cores(scenario.cores).context("cannot keep to some cores")?;
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let began = Instant::now();
    let stage = Stage::start(&args, cpus.clone(), folder.path()).await?;
    let rows = rows(&scenario, args.only.as_deref());
    let mut runs: Vec<Vec<Run>> = rows.iter().map(|_| Vec::new()).collect();
    for round in 1..=scenario.repetitions {
        eprintln!("round {round} of {}", scenario.repetitions);
        for ((kind, connections), runs) in rows.iter().zip(&mut runs) {
            let run = stage.measure(*kind, *connections, &scenario).await;
            runs.push(run.with_context(|| format!("{} at {connections}", kind.name()))?);
        }
    }
    let identical = stage.identical(&scenario).await?;
    let rss_after_bytes = procfs::resident_bytes(stage.mesh.pid(GATEWAY)?)?;
    let idle = stage.idle.clone();
    stage.stop().await;
    let report = Report {
        date: utc_date(SystemTime::now()),
        machine: procfs::machine(),
        cores: cpus.len(),
        seconds: began.elapsed().as_secs_f64(),
        rows: rows
            .iter()
            .zip(&runs)
            .map(|((kind, connections), runs)| row(*kind, *connections, runs))
            .collect(),
        scenario,
        idle,
        rss_after_bytes,
        identical,
        command: command_line(&args),
    };
    publish(&args, &report)
}

fn command_line(args: &BenchArgs) -> String {
    let scenario = args
        .scenario
        .as_ref()
        .map(|path| format!("--scenario {}", path.display()));
    let only = args.only.as_ref().map(|text| format!("--only {text:?}"));
    let quick = args.quick.then(|| "--quick".to_owned());
    let parts: Vec<String> = [quick, scenario, only].into_iter().flatten().collect();
    if parts.is_empty() {
        "make bench".to_owned()
    } else {
        format!("make bench ARGS='{}'", parts.join(" "))
    }
}

fn publish(args: &BenchArgs, report: &Report) -> anyhow::Result<()> {
    let text = report::markdown(report);
    println!("{text}");
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(report)?;
        std::fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    if args.write {
        let folder = PathBuf::from("docs/benchmarks");
        ensure!(
            folder.is_dir(),
            "--write works in the repository's root: there is no docs/benchmarks here"
        );
        let path = folder.join(format!("{}-mesh.md", report.date));
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("written to {}", path.display());
    }
    Ok(())
}

fn rows(scenario: &Scenario, only: Option<&str>) -> Vec<(Kind, usize)> {
    let mut rows = Vec::new();
    for kind in [
        Kind::Bare,
        Kind::Core,
        Kind::Queue,
        Kind::Mesh,
        Kind::MeshLimited,
        Kind::Hit,
    ] {
        let connections = if kind == Kind::Hit {
            &scenario.hit_connections
        } else {
            &scenario.connections
        };
        rows.extend(connections.iter().map(|connections| (kind, *connections)));
    }
    rows.retain(|(kind, _)| only.is_none_or(|text| kind.name().contains(text)));
    rows
}

impl Stage {
    async fn start(args: &BenchArgs, cpus: Vec<usize>, folder: &Path) -> anyhow::Result<Self> {
        let mesh = Mesh::start(&args.programs, folder).await?;
        let mut probe = Probe::new(cpus);
        mesh.processes().for_each(|(name, pid)| probe.watch(name, pid));
        tokio::time::sleep(SETTLE).await;
        let rss_bytes = procfs::resident_bytes(mesh.pid(GATEWAY)?)?;
        let before = probe.now()?;
        tokio::time::sleep(IDLE).await;
        let cost = probe.since(&before)?;
        let cores = cost
            .cpu_ns
            .iter()
            .map(|(name, ns)| (name.clone(), *ns as f64 / 1e9 / cost.seconds))
            .collect();
        let idle = Idle {
            gateway_rss_bytes: rss_bytes,
            cores,
        };
        let answer = folder.join("answer.json");
        std::fs::write(&answer, one_answer(&mesh).await?).context("cannot write the answer")?;
        let own = std::env::current_exe().context("this program does not know where it is")?;
        let mut command = Command::new(&own);
        command.arg("serve-bare").arg("--answer").arg(&answer);
        let mut bare = Process::start("bare axum", command, folder)?;
        let bare_address = bare
            .first_line()
            .await?
            .parse()
            .context("the bare server tells no address")?;
        let nats = NatsServer::start(
            "nats-server, bare",
            &find_program(args.programs.nats_server.as_deref()),
            folder,
        )
        .await?;
        let mut command = Command::new(&own);
        command.arg("serve-nats").env(URL_VARIABLE, &nats.url);
        let mut echo = Process::start("echo on NATS", command, folder)?;
        echo.first_line().await?;
        let client = nats_server::connect(&nats.url).await?;
        for process in [&bare, &nats.process, &echo] {
            probe.watch(&process.name, process.pid);
        }
        Ok(Self {
            mesh,
            bare,
            bare_address,
            nats,
            echo,
            client,
            probe,
            idle,
        })
    }

    async fn measure(&self, kind: Kind, connections: usize, scenario: &Scenario) -> anyhow::Result<Run> {
        let times = scenario.times();
        let (address, key, input) = match kind {
            Kind::Core => {
                return nats_load::measure(&self.client, Loop::Core, connections, times, &self.probe).await;
            }
            Kind::Queue => {
                return nats_load::measure(&self.client, Loop::Queue, connections, times, &self.probe).await;
            }
            // The same bytes as the mesh gets.
            Kind::Bare => (self.bare_address, &self.mesh.key, InputKind::Unique),
            Kind::Mesh => (self.mesh.gateway, &self.mesh.key, InputKind::Unique),
            Kind::MeshLimited => (self.mesh.gateway, &self.mesh.limited_key, InputKind::Unique),
            Kind::Hit => (self.mesh.gateway, &self.mesh.key, InputKind::Same),
        };
        let request = Request::embedding(&self.mesh.gateway.to_string(), key, MODEL);
        http_load::measure(
            &Load {
                address,
                request,
                input,
                connections,
            },
            times,
            &self.probe,
        )
        .await
    }

    /// Sends identical requests at once, in rounds, and counts what was computed.
    async fn identical(&self, scenario: &Scenario) -> anyhow::Result<Identical> {
        let mut connections = Vec::new();
        for _ in 0..scenario.identical {
            connections.push(Connection::open(self.mesh.gateway).await?);
        }
        let mut request = Request::embedding(&self.mesh.gateway.to_string(), &self.mesh.key, MODEL);
        let mut executions = Vec::new();
        let mut sources: BTreeMap<String, u64> = BTreeMap::new();
        for _ in 0..scenario.identical_rounds {
            request.renew();
            let before = self.mesh.executions().await?;
            for connection in &mut connections {
                connection.send(request.bytes()).await?;
            }
            for connection in &mut connections {
                let answer = connection.receive().await?;
                ensure!(
                    answer.status == 200,
                    "one of the identical requests got status {}",
                    answer.status
                );
                let source = answer.header("x-portalis-cache").unwrap_or("none").to_owned();
                *sources.entry(source).or_default() += 1;
            }
            executions.push(self.mesh.executions().await? - before);
        }
        Ok(Identical {
            at_once: scenario.identical,
            executions,
            sources,
        })
    }

    async fn stop(self) {
        self.bare.stop().await;
        self.echo.stop().await;
        self.nats.process.stop().await;
        self.mesh.stop().await;
    }
}

/// The mesh's answer to one request; the bare server gives the same.
async fn one_answer(mesh: &Mesh) -> anyhow::Result<Vec<u8>> {
    let mut request = Request::embedding(&mesh.gateway.to_string(), &mesh.key, mesh::MODEL);
    request.renew();
    let mut connection = Connection::open(mesh.gateway).await?;
    let answer = connection.exchange(request.bytes()).await?;
    ensure!(
        answer.status == 200,
        "the mesh answers {}: {}",
        answer.status,
        String::from_utf8_lossy(answer.body)
    );
    Ok(answer.body.to_vec())
}

/// The medians over all rounds.
fn row(kind: Kind, connections: usize, runs: &[Run]) -> Row {
    let over = |value: &dyn Fn(&Run) -> f64| median(&runs.iter().map(value).collect::<Vec<f64>>());
    let requests = |run: &Run| run.seen.latencies_ns.len() as f64;
    let quantile = |run: &Run, at: f64| run.seen.latencies_ns.value_at_quantile(at) as f64 / 1e3;
    let names = runs.first().map(|run| run.cost.cpu_ns.as_slice()).unwrap_or_default();
    let cpu = |place: usize| over(&|run| run.cost.cpu_ns[place].1 as f64 / 1e3 / requests(run));
    let mut failures: BTreeMap<u16, u64> = BTreeMap::new();
    for (status, count) in runs.iter().flat_map(|run| &run.seen.failures) {
        *failures.entry(*status).or_default() += count;
    }
    let rates: Vec<f64> = runs.iter().map(|run| requests(run) / run.cost.seconds).collect();
    let spread = rates.iter().fold((f64::MAX, 0.0_f64), |(low, high), rate| {
        (low.min(*rate), high.max(*rate))
    });
    Row {
        kind,
        connections,
        requests: runs.iter().map(|run| run.seen.latencies_ns.len()).sum(),
        per_second: median(&rates),
        per_second_range: spread,
        p50_us: over(&|run| quantile(run, 0.5)),
        p99_us: over(&|run| quantile(run, 0.99)),
        cpu_us: names
            .iter()
            .enumerate()
            .map(|(place, (name, _))| (name.clone(), cpu(place)))
            .collect(),
        foreign_cores: over(&|run| run.cost.foreign_cores),
        foreign_cores_max: runs.iter().map(|run| run.cost.foreign_cores).fold(0.0, f64::max),
        failures,
    }
}
