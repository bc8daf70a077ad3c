//! A real nats-server. Input: options. Output: a running server on a port of its own with a store of its own, gone when
//! the test is over, however it ends.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A server that is not up by then is broken; a loaded machine needs seconds, an idle one 20 ms.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// A server that does not stop by then is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// How often a condition is looked at.
const EVERY: Duration = Duration::from_millis(2);

/// How to run the server.
#[derive(Debug, Clone)]
pub struct NatsOptions {
    /// JetStream, with its store in a temporary folder.
    pub jetstream: bool,
    /// Name and password that clients need; [`NatsServer::url`] holds them then.
    pub user_password: Option<(String, String)>,
    /// More of nats-server's configuration file.
    pub config: String,
}

impl Default for NatsOptions {
    fn default() -> Self {
        Self {
            jetstream: true,
            user_password: None,
            config: String::new(),
        }
    }
}

/// A running nats-server. Dropping it kills it and removes its store; it also dies with the thread that started it.
#[derive(Debug)]
pub struct NatsServer {
    program: PathBuf,
    options: NatsOptions,
    folder: TempDir,
    port: u16,
    child: Option<Child>,
}

impl NatsServer {
    /// Starts a server with JetStream and waits until it answers.
    pub async fn start() -> Self {
        Self::start_with(NatsOptions::default()).await
    }

    /// Starts a server and waits until it answers.
    ///
    /// The binary is `$PORTALIS_NATS_SERVER`, else `.portalis/bin/nats-server` of the workspace, else `nats-server` on
    /// `PATH`.
    pub async fn start_with(options: NatsOptions) -> Self {
        let folder = match tempfile::Builder::new().prefix("nats-").tempdir() {
            Ok(folder) => folder,
            Err(error) => crate::fail(&format!("cannot make a temporary folder: {error}")),
        };
        let mut server = Self {
            program: find_program(),
            options,
            folder,
            port: 0,
            child: None,
        };
        if let Err(why) = server.run().await {
            crate::fail(&why);
        }
        server
    }

    /// Where clients connect, with credentials if they need any.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.options.user_password {
            Some((user, password)) => format!("nats://{user}:{password}@127.0.0.1:{}", self.port),
            None => format!("nats://127.0.0.1:{}", self.port),
        }
    }

    /// Its port; stays the same over [`NatsServer::restart`].
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Folder of its store.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// What it has written to its log.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Kills it with SIGKILL: no goodbye to anybody.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // The only errors are "already dead" ones.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on the same port with the same store, killing it first if it runs.
    pub async fn restart(&mut self) {
        self.kill();
        let ends_at = Instant::now() + START_DEADLINE;
        // Somebody may hold the port for a moment: it was free for everybody.
        while let Err(why) = self.run().await {
            self.kill();
            if Instant::now() >= ends_at {
                crate::fail(&why);
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Stops it with SIGTERM, as an operator does.
    pub async fn stop(&mut self) {
        let Some(child) = &mut self.child else { return };
        if let Ok(pid) = libc::pid_t::try_from(child.id()) {
            // SAFETY: plain system call on a child of ours that has not been waited for, so the id is still its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        let ends_at = Instant::now() + STOP_DEADLINE;
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < ends_at {
            tokio::time::sleep(EVERY).await;
        }
        self.kill();
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    async fn run(&mut self) -> Result<(), String> {
        let child = self
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", self.program.display()))?;
        let ports = self.folder.path().join(format!("nats-server_{}.ports", child.id()));
        self.child = Some(child);
        let ends_at = Instant::now() + START_DEADLINE;
        loop {
            if let Some(port) = read_port(&ports)
                && answers(port)
            {
                self.port = port;
                return Ok(());
            }
            let exited = self.child.as_mut().map(Child::try_wait);
            if let Some(Ok(Some(status))) = exited {
                return Err(format!("nats-server ended at once ({status}): {}", self.log()));
            }
            if Instant::now() >= ends_at {
                return Err(format!(
                    "nats-server does not answer after {START_DEADLINE:?}: {}",
                    self.log()
                ));
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Started on the calling thread: the death signal below is bound to it, and a test's thread lives as long as the test.
    fn spawn(&self) -> std::io::Result<Child> {
        let config = self.folder.path().join("nats.conf");
        std::fs::write(&config, &self.options.config)?;
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = Command::new(&self.program);
        // -1: the server takes a free port and writes it to a file.
        let port = if self.port == 0 {
            "-1".to_owned()
        } else {
            self.port.to_string()
        };
        command
            .arg("--config")
            .arg(&config)
            .args(["--addr", "127.0.0.1", "--port", &port, "--ports_file_dir"])
            .arg(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if self.options.jetstream {
            command.arg("--jetstream").arg("--store_dir").arg(self.store());
        }
        if let Some((user, password)) = &self.options.user_password {
            command.args(["--user", user, "--pass", password]);
        }
        // SAFETY: between fork and exec only `prctl` is called, which is async-signal-safe and touches no memory of ours.
        unsafe {
            command.pre_exec(|| {
                // A test run that is killed leaves no server behind.
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0 {
                    Ok(())
                } else {
                    Err(std::io::Error::last_os_error())
                }
            });
        }
        command.spawn()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Reads `{"nats":["nats://127.0.0.1:36855"]}`.
fn read_port(path: &Path) -> Option<u16> {
    let text = std::fs::read_to_string(path).ok()?;
    let ports: serde_json::Value = serde_json::from_str(&text).ok()?;
    ports.get("nats")?.get(0)?.as_str()?.rsplit(':').next()?.parse().ok()
}

/// Whether the server greets.
fn answers(port: u16) -> bool {
    let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    if stream.set_read_timeout(Some(START_DEADLINE)).is_err() {
        return false;
    }
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).is_ok() && line.starts_with("INFO ")
}

fn find_program() -> PathBuf {
    if let Some(named) = std::env::var_os("PORTALIS_NATS_SERVER").map(PathBuf::from) {
        if named.is_file() {
            return named;
        }
        crate::fail(&format!(
            "PORTALIS_NATS_SERVER names {}, which is no file",
            named.display()
        ));
    }
    let start = std::env::var_os("CARGO_MANIFEST_DIR")
        .map(PathBuf::from)
        .or_else(|| std::env::current_dir().ok());
    let installed = start
        .iter()
        .flat_map(|folder| folder.ancestors())
        .map(|root| root.join(".portalis/bin/nats-server"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<PathBuf> = std::env::split_paths(&path)
        .map(|folder| folder.join("nats-server"))
        .collect();
    match installed.chain(on_path).find(|program| program.is_file()) {
        Some(program) => program,
        None => crate::fail(
            "no nats-server found: `make test` installs it into .portalis/bin, or set PORTALIS_NATS_SERVER to its path",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_lives_dies_and_comes_back_on_its_port() {
        let mut server = NatsServer::start().await;
        let port = server.port();
        assert!(answers(port));
        let other = NatsServer::start().await;
        assert_ne!(other.port(), port);
        server.kill();
        assert!(!answers(port));
        server.restart().await;
        assert_eq!(server.port(), port);
        assert!(answers(port));
        server.stop().await;
        assert!(!answers(port));
        assert!(server.log().contains("Server Exiting"));
    }

    #[tokio::test]
    async fn nothing_is_left_behind() {
        let server = NatsServer::start().await;
        let (pid, folder) = (server.pid().unwrap(), server.folder.path().to_owned());
        drop(server);
        assert!(!folder.exists());
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
