//! Workers as processes of their own. Input: settings. Output: a process that can be killed, frozen and drained, with its
//! metrics and its log.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use testkit::eventually;

use super::http::{Client, Request};
use super::{DEADLINE, free_address};

/// Name under which tests serve the echo engine.
pub(crate) const ECHO: &str = "echo";
/// Name under which tests serve the real model.
pub(crate) const MINILM: &str = "all-minilm-l6-v2";

/// Name under which tests serve the small model that translates.
pub(crate) const TRANSLATOR: &str = "nano-translator";

/// A tiny cross-encoder with random weights, and the name under which tests serve it.
pub(crate) const RANKER: &str = "rank_bert";
/// A tiny nomic encoder with random weights and prompts for both sides of a search.
pub(crate) const NOMIC: &str = "embed_nomic";

/// Name under which tests serve the same model with a chat template that knows functions.
pub(crate) const CALLER: &str = "nano-caller";

/// What a worker is told.
#[derive(Debug, Clone)]
pub(crate) struct WorkerSpec {
    pub(crate) model: String,
    settings: Vec<String>,
}

impl WorkerSpec {
    /// A worker with the echo engine.
    pub(crate) fn echo(settings: &[&str]) -> Self {
        Self::echo_named(ECHO, settings)
    }

    pub(crate) fn echo_named(model: &str, settings: &[&str]) -> Self {
        let first = [format!("model.name={model}"), "model.engine=echo".to_owned()];
        let rest = settings.iter().map(|setting| (*setting).to_owned());
        Self {
            model: model.to_owned(),
            settings: first.into_iter().chain(rest).collect(),
        }
    }

    /// A worker with the small model that translates Python to Rust.
    pub(crate) fn translator() -> Self {
        Self::folder(TRANSLATOR, &repository().join("models").join(TRANSLATOR))
    }

    /// A worker with a tiny encoder of the engine's own tests.
    pub(crate) fn encoder(name: &str) -> Self {
        Self::folder(name, &encoder_dir(name))
    }

    fn folder(model: &str, path: &Path) -> Self {
        let path = format!("model.path={}", path.display());
        let settings = [format!("model.name={model}"), path, "model.threads=1".to_owned()];
        Self {
            model: model.to_owned(),
            settings: settings.into(),
        }
    }

    /// A worker with the same model and a chat template of Hermes' kind; its folder is made in `folder`, which has to stay.
    pub(crate) fn caller(folder: &Path) -> Self {
        let made = folder.join(CALLER);
        let source = repository().join("models").join(TRANSLATOR);
        std::fs::create_dir_all(&made).unwrap();
        for file in [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ] {
            std::fs::copy(source.join(file), made.join(file)).unwrap();
        }
        // It goes before the template in the configuration.
        let template = repository().join("shared/engine/tests/fixtures/chat/hermes.jinja");
        std::fs::copy(template, made.join("chat_template.jinja")).unwrap();
        Self::folder(CALLER, &made)
    }

    /// A worker with the real model.
    pub(crate) fn minilm() -> Self {
        Self::folder(MINILM, &model_dir())
    }
}

/// Folder of a tiny encoder, with what it computes beside it.
pub(crate) fn encoder_dir(name: &str) -> PathBuf {
    repository().join("shared/engine/tests/fixtures/encoders").join(name)
}

/// Folder of the real model.
pub(crate) fn model_dir() -> PathBuf {
    let folder = std::env::var_os("PORTALIS_TEST_MODEL_DIR")
        .map_or_else(|| repository().join(".portalis/models").join(MINILM), PathBuf::from);
    assert!(
        folder.join("config.json").is_file(),
        "no model in {}: run scripts/setup.sh, or set PORTALIS_TEST_MODEL_DIR",
        folder.display()
    );
    folder
}

/// Root of the source tree.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap()
        .to_owned()
}

/// A worker process; dropping it kills it.
#[derive(Debug)]
pub(crate) struct Worker {
    child: Child,
    ops: SocketAddr,
    log: PathBuf,
}

impl Worker {
    /// Starts a worker; it is not ready yet.
    pub(crate) fn spawn(spec: &WorkerSpec, url: &str, folder: &Path) -> Self {
        let ops = free_address();
        let log = folder.join(format!("worker-{}-{}.log", spec.model, ops));
        let file = File::create(&log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-gpu-worker"));
        let always = [
            format!("bus.url={url}"),
            format!("process.ops_address={ops}"),
            "process.log=info,gpu_worker=debug".to_owned(),
            "process.worker_threads=1".to_owned(),
            // Short, because a drain waits for them.
            "queue.pull_expires_ms=500".to_owned(),
            "queue.pull_heartbeat_ms=200".to_owned(),
        ];
        for setting in always.iter().chain(&spec.settings) {
            command.args(["--set", setting]);
        }
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        die_with_us(&mut command);
        let child = command.spawn().unwrap();
        Self { child, ops, log }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: libc::c_int) {
        send_signal(self.pid(), signal);
    }

    /// SIGKILL: no goodbye to anybody.
    pub(crate) fn kill(&mut self) {
        // The only errors are "already dead" ones.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// How it has ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        eventually("the worker has ended", DEADLINE, || {
            let ended = self.child.try_wait().unwrap().is_some();
            std::future::ready(ended)
        })
        .await;
        self.child.wait().unwrap()
    }

    /// SIGTERM, and what came of it.
    pub(crate) async fn drain(&mut self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        self.exit().await
    }

    /// The sum of a metric over the series whose labels include this text; 0 while there is none.
    pub(crate) async fn metric(&self, name: &str, label: &str) -> f64 {
        let client = Client {
            address: self.ops,
            key: None,
        };
        match client.try_send(&Request::get("/metrics")).await {
            Ok(page) => sum(&page.text(), name, label),
            Err(_) => 0.0,
        }
    }

    /// Requests in its hands.
    pub(crate) async fn in_hand(&self) -> f64 {
        self.metric("portalis_worker_requests_in_hand", "").await
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(15)..].join("\n");
            eprintln!("--- worker {}:\n{last}", self.pid());
        }
    }
}

/// Sends a signal to a child of ours that has not been waited for.
pub(crate) fn send_signal(pid: u32, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(pid).unwrap();
    // SAFETY: a plain system call; the child has not been waited for, so the id is still its own.
    let sent = unsafe { libc::kill(pid, signal) };
    assert_eq!(sent, 0, "signal {signal} to {pid}");
}

/// A test run that is killed leaves no process behind.
pub(crate) fn die_with_us(command: &mut Command) {
    // SAFETY: between fork and exec only `prctl` is called, which is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
}

/// The sum of a metric's series in Prometheus' text whose labels include this text.
pub(crate) fn sum(page: &str, name: &str, label: &str) -> f64 {
    let series = page.lines().filter(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
    });
    series
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}
