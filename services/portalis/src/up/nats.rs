//! Our nats-server. Input: where it is installed, where its data goes. Output: a running server that comes back on the
//! same port when it dies, and ends when it is told to.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use bus::{MINIMUM_SERVER_VERSION, ServerVersion, broker_environment};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::child::{OnOrphaned, Process, Spawner};
use super::data_dir::{DataDir, random_secret, write_private};
use super::nats_config::NatsConfig;
use super::pool::backoff_ms;

/// Longest wait for `--version`: it prints one line.
const VERSION_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest start: recovery of a large store takes seconds, an empty one 20 ms.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How often the server's note of its port is looked for.
const START_POLL: Duration = Duration::from_millis(5);
/// Longest orderly end before SIGKILL: it closes its files within milliseconds.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// A server that ran this long has not died of how it was started: the pauses begin anew.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);

/// How to start it.
#[derive(Debug, Clone)]
pub struct NatsOptions {
    /// The program named on the command line.
    pub program: Option<PathBuf>,
    /// Its port, `None` = any free one.
    pub port: Option<u16>,
}

/// A running server.
#[derive(Debug)]
pub struct NatsServer {
    url: String,
    pid: watch::Receiver<Option<u32>>,
    stop: CancellationToken,
    keeper: JoinHandle<()>,
}

impl NatsServer {
    /// Finds, checks and starts it; when this returns it takes connections.
    ///
    /// # Errors
    /// Says what to do: no program, too old, port taken, broken store.
    pub async fn start(options: &NatsOptions, data: &DataDir, spawner: &Spawner) -> anyhow::Result<Self> {
        let program = find_program(options.program.as_deref(), &data.installed("bin/nats-server"));
        check_version(&program).await?;
        let launch = Launch {
            program,
            folder: data.private_folder("nats")?,
            log_file: data.private_folder("logs")?.join("nats.log"),
            password: random_secret()?,
            spawner: spawner.clone(),
        };
        let (process, port) = launch.start(options.port).await?;
        let url = launch.config(Some(port)).url(port);
        let (pid_sender, pid) = watch::channel(Some(process.pid()));
        let stop = CancellationToken::new();
        let keeper = tokio::spawn(keep(launch, process, port, pid_sender, stop.clone()));
        Ok(Self { url, pid, stop, keeper })
    }

    /// Where clients connect, with credentials.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its process, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        *self.pid.borrow()
    }

    /// Ends it, within a few seconds.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.keeper.await {
            tracing::error!(%error, "keeper of nats-server failed");
        }
    }
}

/// Everything a start needs.
#[derive(Debug)]
struct Launch {
    program: PathBuf,
    folder: PathBuf,
    log_file: PathBuf,
    password: String,
    spawner: Spawner,
}

impl Launch {
    fn config(&self, port: Option<u16>) -> NatsConfig<'_> {
        NatsConfig {
            port,
            password: &self.password,
            folder: &self.folder,
            log_file: &self.log_file,
        }
    }

    /// Starts it and waits until it has noted its port, which it does once it listens.
    async fn start(&self, port: Option<u16>) -> anyhow::Result<(Process, u16)> {
        remove_notes(&self.folder).context("cannot remove old notes of nats-server")?;
        let file = self.folder.join("nats.conf");
        write_private(&file, &self.config(port).render())?;
        let mut command = Command::new(&self.program);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        command.arg("--config").arg(&file).envs(broker_environment(cores));
        let spawned = self.spawner.spawn(command, OnOrphaned::Terminate).await;
        let mut process = spawned.with_context(|| format!("cannot start {}", self.program.display()))?;
        let note = self.folder.join(format!("nats-server_{}.ports", process.pid()));
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(port) = fs::read_to_string(&note).ok().as_deref().and_then(noted_port) {
                return Ok((process, port));
            }
            tokio::select! {
                ended = process.wait() => {
                    let status = ended.context("cannot wait for nats-server")?;
                    bail!("nats-server ended at once ({status}): {}", self.reason(port));
                }
                () = tokio::time::sleep(START_POLL) => {}
            }
            if Instant::now() > deadline {
                bail!(
                    "nats-server does not listen after {} s: see {}",
                    START_TIMEOUT.as_secs(),
                    self.log_file.display()
                );
            }
        }
    }

    /// The last complaint in its log, and what to do about it.
    fn reason(&self, port: Option<u16>) -> String {
        let log = fs::read_to_string(&self.log_file).unwrap_or_default();
        let complaint = log
            .lines()
            .rev()
            .find(|line| line.contains("[FTL]") || line.contains("[ERR]"));
        match (complaint, port) {
            (Some(line), Some(port)) if line.contains("address already in use") => {
                format!("port {port} is in use, choose another with --nats-port")
            }
            (Some(line), _) => {
                let text = line.split_once("] ").map_or(line, |(_, text)| text);
                format!("{text}; see {}", self.log_file.display())
            }
            (None, _) => format!("see {}", self.log_file.display()),
        }
    }
}

/// Starts the server again whenever it dies, on the port that all services know, until the stop.
async fn keep(launch: Launch, process: Process, port: u16, pid: watch::Sender<Option<u32>>, stop: CancellationToken) {
    let mut running = Some((process, Instant::now()));
    let mut failures = 0;
    loop {
        if let Some((mut process, since)) = running.take() {
            tokio::select! {
                biased;
                () = stop.cancelled() => return end(process).await,
                ended = process.wait() => tracing::error!(status = ?ended, "nats-server died, starting it again"),
            }
            pid.send_replace(None);
            failures = if since.elapsed() >= HEALTHY_AFTER {
                1
            } else {
                failures + 1
            };
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(backoff_ms(failures))) => {}
        }
        // Not interrupted by the stop: a server that has just started must be ended in order, too.
        match launch.start(Some(port)).await {
            Ok((process, _)) => {
                pid.send_replace(Some(process.pid()));
                running = Some((process, Instant::now()));
            }
            Err(error) => {
                failures += 1;
                tracing::error!(error = format!("{error:#}"), failures, "nats-server does not start");
            }
        }
    }
}

async fn end(mut process: Process) {
    process.terminate();
    if tokio::time::timeout(STOP_TIMEOUT, process.wait()).await.is_err() {
        tracing::warn!("nats-server does not end, killing it");
        process.kill();
        // It cannot ignore that.
        let _ = process.wait().await;
    }
}

/// The named program, else the installed one, else the one that the system finds.
fn find_program(named: Option<&Path>, installed: &Path) -> PathBuf {
    match named {
        Some(named) => named.to_owned(),
        None if installed.is_file() => installed.to_owned(),
        None => PathBuf::from("nats-server"),
    }
}

async fn check_version(program: &Path) -> anyhow::Result<()> {
    const HELP: &str = "install it with `make setup`, or name one with --nats-server";
    let mut command = Command::new(program);
    let output = command.arg("--version").kill_on_drop(true).output();
    let output = match tokio::time::timeout(VERSION_TIMEOUT, output).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            bail!("no nats-server at {}: {HELP}", program.display());
        }
        Ok(Err(error)) => {
            return Err(error).with_context(|| format!("cannot run {}: {HELP}", program.display()));
        }
        Err(_) => bail!("{} --version does not end: {HELP}", program.display()),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    match text.split_whitespace().find_map(ServerVersion::parse) {
        Some(version) if version >= MINIMUM_SERVER_VERSION => Ok(()),
        Some(version) => {
            bail!(
                "{} is version {version}, {MINIMUM_SERVER_VERSION} or newer is needed: {HELP}",
                program.display()
            )
        }
        None => bail!("{} is no nats-server: {HELP}", program.display()),
    }
}

/// The port in `{"nats":["nats://127.0.0.1:36855"]}`, `None` while the file is not whole.
fn noted_port(text: &str) -> Option<u16> {
    let note: serde_json::Value = serde_json::from_str(text).ok()?;
    note.get("nats")?.get(0)?.as_str()?.rsplit(':').next()?.parse().ok()
}

/// A server that was killed leaves its note, and a later process may have its number.
fn remove_notes(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "ports") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read_when_they_are_whole() {
        assert_eq!(noted_port(r#"{"nats":["nats://127.0.0.1:36855"]}"#), Some(36_855));
        for bad in ["", r#"{"nats":["nats://127.0"#, "{}", r#"{"nats":[]}"#] {
            assert_eq!(noted_port(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn programs_that_are_no_nats_server_are_refused_in_one_line() {
        for (program, expected) in [
            ("/no/such/nats-server", "no nats-server at /no/such/nats-server"),
            ("/bin/true", "/bin/true is no nats-server"),
        ] {
            let text = format!("{:#}", check_version(Path::new(program)).await.unwrap_err());
            assert!(
                text.starts_with(expected) && text.contains("--nats-server") && !text.contains('\n'),
                "{text}"
            );
        }
    }

    #[test]
    fn the_named_program_comes_first() {
        let here = std::env::current_exe().unwrap();
        let nowhere = Path::new("/no/such");
        assert_eq!(find_program(Some(nowhere), &here), nowhere);
        assert_eq!(find_program(None, &here), here);
        assert_eq!(find_program(None, nowhere), Path::new("nats-server"));
    }
}
