//! A nats-server for a benchmark. Input: the program. Output: a server with the settings of `portalis up`, a fresh store
//! and a free port.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use async_nats::Client;
use tokio::process::Command;

use crate::children::Process;

/// Longest start: with an empty store it takes 20 ms.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How often its note of the port is looked for.
const START_POLL: Duration = Duration::from_millis(5);
/// User and password: the loopback interface of a benchmark keeps no secrets, but the check is part of what is measured.
const USER: &str = "portalis";
const PASSWORD: &str = "benchmark";

/// A running server.
#[derive(Debug)]
pub struct NatsServer {
    /// Its process.
    pub process: Process,
    /// Where clients connect, with credentials.
    pub url: String,
}

impl NatsServer {
    /// Starts one, whose files go into `folder`.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(name: &str, program: &Path, folder: &Path) -> anyhow::Result<Self> {
        let home = folder.join(name);
        std::fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
        let config = home.join("nats.conf");
        std::fs::write(&config, render(&home)).with_context(|| format!("cannot write {}", config.display()))?;
        let mut command = Command::new(program);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        command
            .arg("--config")
            .arg(&config)
            .envs(bus::broker_environment(cores));
        let mut process = Process::start(name, command, folder)
            .context("install it with `make setup`, or name one with --nats-server")?;
        let note = home.join(format!("{}_{}.ports", program_name(program), process.pid));
        let deadline = tokio::time::Instant::now() + START_TIMEOUT;
        loop {
            if let Some(port) = std::fs::read_to_string(&note).ok().as_deref().and_then(noted_port) {
                let url = format!("nats://{USER}:{PASSWORD}@127.0.0.1:{port}");
                return Ok(Self { process, url });
            }
            process.check()?;
            if tokio::time::Instant::now() > deadline {
                bail!("nats-server does not listen after {} s", START_TIMEOUT.as_secs());
            }
            tokio::time::sleep(START_POLL).await;
        }
    }
}

/// Connects the bare client; it does not read credentials out of a URL by itself.
///
/// # Errors
/// When nobody listens or the credentials are wrong.
pub async fn connect(url: &str) -> anyhow::Result<Client> {
    let rest = url.strip_prefix("nats://").unwrap_or(url);
    let options = async_nats::ConnectOptions::new();
    let connecting = match rest.rsplit_once('@') {
        None => options.connect(url).await,
        Some((credentials, address)) => {
            let (user, password) = credentials.split_once(':').context("credentials are USER:PASSWORD")?;
            let options = options.user_and_password(user.to_owned(), password.to_owned());
            options.connect(address).await
        }
    };
    connecting.context("cannot connect to the bare broker")
}

/// The named program, else the installed one, else the one that the system finds.
#[must_use]
pub fn find_program(named: Option<&Path>) -> PathBuf {
    let installed = Path::new(".portalis/bin/nats-server");
    match named {
        Some(named) => named.to_owned(),
        None if installed.is_file() => installed.to_owned(),
        None => PathBuf::from("nats-server"),
    }
}

fn program_name(program: &Path) -> String {
    program
        .file_name()
        .map_or_else(|| "nats-server".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// As `portalis up` writes it (services/portalis/src/up/nats_config.rs).
fn render(home: &Path) -> String {
    let path = |path: &Path| serde_json::Value::from(path.to_string_lossy()).to_string();
    format!(
        "server_name: \"portalis-bench\"\nhost: \"127.0.0.1\"\nport: -1\nports_file_dir: {}\nmax_payload: 8MB\n\
         write_deadline: \"10s\"\nlog_file: {}\njetstream {{\n  store_dir: {}\n}}\n\
         authorization {{\n  user: \"{USER}\"\n  password: \"{PASSWORD}\"\n}}\n",
        path(home),
        path(&home.join("nats.log")),
        path(&home.join("store")),
    )
}

/// The port in `{"nats":["nats://127.0.0.1:36855"]}`, `None` while the file is not whole.
fn noted_port(text: &str) -> Option<u16> {
    let note: serde_json::Value = serde_json::from_str(text).ok()?;
    note.get("nats")?.get(0)?.as_str()?.rsplit(':').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_read_from_the_whole_note_only() {
        assert_eq!(noted_port(r#"{"nats":["nats://127.0.0.1:36855"]}"#), Some(36855));
        assert_eq!(noted_port(r#"{"nats":["nats://127.0"#), None);
        assert_eq!(noted_port(r#"{"cluster":[]}"#), None);
    }
}
