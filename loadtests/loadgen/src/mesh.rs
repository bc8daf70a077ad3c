//! The mesh under test. Input: programs, a folder. Output: every service as a process of its own, ready, with two keys.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bus::{Bus, BusConfig, Headers};
use schemas::policy::{CreateKey, KeysReply, RequestLimit};
use schemas::work::Lane;
use schemas::{subjects, wire};
use tokio::process::Command;
use tokio::time::Instant;

use crate::children::{Process, free_port};
use crate::cli::Programs;
use crate::http_client::Connection;
use crate::nats_server::{NatsServer, find_program};

/// Name of the broker among the processes.
pub const BROKER: &str = "nats-server";
/// The gateway's name.
pub const GATEWAY: &str = "gateway";
/// The worker's name.
pub const WORKER: &str = "gpu-worker";
/// Name of the model that the echo engine serves.
pub const MODEL: &str = "echo";

/// Longest wait until all services are ready.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// Time between two looks.
const READY_POLL: Duration = Duration::from_millis(20);
/// Longest wait for auth to make a key.
const KEY_TIMEOUT: Duration = Duration::from_secs(5);
/// The highest limit that auth gives, 16,667 requests a second: checked for every request, reached by none on two cores.
const LIMIT: RequestLimit = RequestLimit {
    per_minute: 1_000_000,
    burst: 1_000_000,
};

/// A service and what this benchmark sets; all other keys keep the defaults of its `default.toml`.
struct Service {
    name: &'static str,
    settings: Vec<String>,
}

/// A running mesh.
#[derive(Debug)]
pub struct Mesh {
    /// Where the gateway listens.
    pub gateway: SocketAddr,
    /// A key without a limit.
    pub key: String,
    /// A key with one.
    pub limited_key: String,
    nats: NatsServer,
    services: Vec<Process>,
    worker_ops: SocketAddr,
}

/// Where the services' programs are.
///
/// # Errors
/// When this program's own place is unknown.
pub fn bin_dir(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(named) = named {
        return Ok(named.to_owned());
    }
    let own = std::env::current_exe().context("this program does not know where it is")?;
    Ok(own.parent().context("this program has no folder")?.to_owned())
}

impl Mesh {
    /// Starts it with the echo engine and waits until every service is ready.
    ///
    /// # Errors
    /// Which service does not start, with the end of its log.
    pub async fn start(programs: &Programs, folder: &Path) -> anyhow::Result<Self> {
        let echo = vec!["model.engine=echo".to_owned(), format!("model.name={MODEL}")];
        Self::start_with(programs, folder, echo).await
    }

    /// The same with a worker of these settings.
    ///
    /// # Errors
    /// As [`Mesh::start`].
    pub async fn start_with(programs: &Programs, folder: &Path, worker: Vec<String>) -> anyhow::Result<Self> {
        let folder = folder.join("mesh");
        std::fs::create_dir_all(&folder).context("cannot make a folder")?;
        let nats = NatsServer::start(BROKER, &find_program(programs.nats_server.as_deref()), &folder).await?;
        let bin_dir = bin_dir(programs.bin_dir.as_deref())?;
        let gateway = local(free_port()?);
        let (mut services, mut ops) = (Vec::new(), Vec::new());
        for service in plan(gateway, &folder, worker) {
            let address = local(free_port()?);
            services.push(launch(&service, &bin_dir, &nats.url, address, &folder)?);
            ops.push((service.name, address));
        }
        let worker_ops = ops.iter().find(|(name, _)| *name == WORKER).context("no worker")?.1;
        let mut mesh = Self {
            gateway,
            key: String::new(),
            limited_key: String::new(),
            nats,
            services,
            worker_ops,
        };
        for (name, address) in &ops {
            mesh.wait_ready(name, *address, "/health/ready").await?;
        }
        mesh.wait_ready(GATEWAY, gateway, "/v1/health/ready").await?;
        let bus = Bus::connect(&BusConfig::for_url(&mesh.nats.url), "loadgen", None).await?;
        mesh.key = make_key(&bus, "bench", None).await?;
        mesh.limited_key = make_key(&bus, "bench-limited", Some(LIMIT)).await?;
        Ok(mesh)
    }

    async fn wait_ready(&mut self, name: &str, address: SocketAddr, path: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            for service in &mut self.services {
                service.check()?;
            }
            if matches!(get(address, path).await, Ok((200, _))) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{name} is not ready after {} s", READY_TIMEOUT.as_secs());
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    /// Names and numbers of all its processes.
    pub fn processes(&self) -> impl Iterator<Item = (&str, u32)> {
        std::iter::once(&self.nats.process)
            .chain(&self.services)
            .map(|process| (process.name.as_str(), process.pid))
    }

    /// Number of one of its processes.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn pid(&self, name: &str) -> anyhow::Result<u32> {
        let found = self.processes().find(|(known, _)| *known == name);
        found.map(|(_, pid)| pid).with_context(|| format!("no process {name}"))
    }

    /// How many requests its worker has computed so far.
    ///
    /// # Errors
    /// When the worker does not tell.
    pub async fn executions(&self) -> anyhow::Result<u64> {
        let (status, text) = get(self.worker_ops, "/metrics").await?;
        ensure!(status == 200, "the worker's metrics answer {status}");
        Ok(counter(&text, "batch_processing_requests_total", "outcome=\"done\""))
    }

    /// Ends it in order: the services while there is a broker, then the broker.
    pub async fn stop(self) {
        for service in &self.services {
            service.signal(libc::SIGTERM);
        }
        for service in self.services {
            service.stop().await;
        }
        self.nats.process.stop().await;
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn plan(gateway: SocketAddr, folder: &Path, worker: Vec<String>) -> Vec<Service> {
    let file = |name: &str| folder.join(name).display().to_string();
    let service = |name, settings| Service { name, settings };
    vec![
        service("auth", vec![format!("store.path={}", file("auth.sqlite3"))]),
        service("cache", Vec::new()),
        service("cost-accounting", vec![format!("ledger.path={}", file("ledger.db"))]),
        service("autoscaler", Vec::new()),
        service(WORKER, worker),
        service(GATEWAY, vec![format!("http.address={gateway}")]),
    ]
}

fn launch(service: &Service, bin_dir: &Path, url: &str, ops: SocketAddr, folder: &Path) -> anyhow::Result<Process> {
    let program = bin_dir.join(format!("portalis-{}", service.name));
    ensure!(
        program.is_file(),
        "{} is missing: build it with cargo build --release",
        program.display()
    );
    let mut command = Command::new(&program);
    // What somebody set in a shell must not change what is measured.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PORTALIS__")) {
        command.env_remove(name);
    }
    command
        .env("PORTALIS__BUS__URL", url)
        .env("PORTALIS__PROCESS__OPS_ADDRESS", ops.to_string());
    for setting in &service.settings {
        command.arg("--set").arg(setting);
    }
    Process::start(service.name, command, folder)
}

async fn make_key(bus: &Bus, name: &str, request_limit: Option<RequestLimit>) -> anyhow::Result<String> {
    let question = CreateKey {
        // Tenants of their own: the queue's share per tenant is not split between the rows.
        tenant: name.to_owned(),
        name: name.to_owned(),
        models: Vec::new(),
        scopes: Vec::new(),
        request_limit,
        priority_ceiling: Lane::Interactive,
        expires_at_ms: None,
    };
    let body = wire::encode(&question)?;
    let answer = bus
        .request(&subjects::keys("create"), Headers::new(), body.into(), KEY_TIMEOUT)
        .await?;
    match wire::decode(&answer.payload)? {
        KeysReply::Created { key, .. } => Ok(key),
        other => bail!("auth made no key: {other:?}"),
    }
}

/// Status and body of a GET.
///
/// # Errors
/// When there is no answer.
pub async fn get(address: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let mut connection = Connection::open(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    let exchange = connection.exchange(request.as_bytes());
    let answer = tokio::time::timeout(KEY_TIMEOUT, exchange)
        .await
        .context("no answer")??;
    Ok((answer.status, String::from_utf8_lossy(answer.body).into_owned()))
}

/// Sum of a counter's values over all series whose labels hold a text.
fn counter(metrics: &str, name: &str, label: &str) -> u64 {
    let series = metrics
        .lines()
        .filter(|line| line.starts_with(name) && line.contains(label));
    let values = series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.map(|value| value as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_summed_over_their_series() {
        let text = "# HELP a_total x\na_total{o=\"done\",w=\"1\"} 3\na_total{o=\"failed\"} 5\na_total{o=\"done\",w=\"2\"} 4\nb_total{o=\"done\"} 9\n";
        assert_eq!(counter(text, "a_total", "o=\"done\""), 7);
        assert_eq!(counter(text, "c_total", "o=\"done\""), 0);
    }
}
