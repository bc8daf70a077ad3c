//! `portalis up` as a person runs it: one command, a mesh, and nothing left of it afterwards.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use serde_json::Value;
use testkit::eventually;

use crate::mesh::DEADLINE;
use crate::mesh::http::Client;
use crate::mesh::worker::{MINILM, die_with_us, model_dir, repository, send_signal};

/// The nats-server of the tests.
fn nats_server() -> PathBuf {
    let named = std::env::var_os("PORTALIS_NATS_SERVER");
    named.map_or_else(|| repository().join(".portalis/bin/nats-server"), PathBuf::from)
}

/// The program with what it needs; arguments are added.
fn portalis(folder: &Path, server: &Path, arguments: &[&str]) -> Command {
    let worker = env!("CARGO_BIN_EXE_mesh-gpu-worker");
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-portalis"));
    command.args(["up", "--ops-port", "0", "--worker-binary", worker, "--nats-server"]);
    command.arg(server).arg("--data-dir").arg(folder).args(arguments);
    command.stdin(Stdio::null());
    die_with_us(&mut command);
    command
}

/// A running `portalis up` with the processes it has told of; dropping it kills it.
struct Up {
    child: Child,
    output: PathBuf,
    /// What it says to programs.
    ready: Value,
}

impl Up {
    async fn start(folder: &Path, arguments: &[&str]) -> Self {
        let (ready, output) = (folder.join("ready.json"), folder.join("output"));
        let _ = std::fs::remove_file(&ready);
        let file = std::fs::File::create(&output).unwrap();
        let mut command = portalis(folder, &nats_server(), arguments);
        command.arg("--ready-file").arg(&ready);
        // A group of its own, as a terminal gives it: Ctrl-C reaches the whole group.
        command.process_group(0).stdout(file.try_clone().unwrap()).stderr(file);
        let mut up = Self {
            child: command.spawn().unwrap(),
            output,
            ready: Value::Null,
        };
        eventually("portalis up is ready", DEADLINE, || {
            let ended = up.child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", up.text());
            let text = std::fs::read_to_string(&ready).unwrap_or_default();
            up.ready = serde_json::from_str(&text).unwrap_or_default();
            std::future::ready(up.ready.is_object())
        })
        .await;
        up
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    fn told(&self, name: &str) -> &str {
        self.ready[name]
            .as_str()
            .unwrap_or_else(|| panic!("no {name}: {}", self.ready))
    }

    fn address(&self) -> SocketAddr {
        let authority = self
            .told("base_url")
            .trim_start_matches("http://")
            .trim_end_matches("/v1");
        authority.parse().unwrap()
    }

    fn client(&self) -> Client {
        Client {
            address: self.address(),
            key: Some(self.told("api_key").to_owned()),
        }
    }

    fn workers(&self) -> Vec<u32> {
        serde_json::from_value(self.ready["pids"]["workers"].clone()).unwrap()
    }

    /// Every process it has told of.
    fn pids(&self) -> Vec<u32> {
        let server = self.ready["pids"]["nats_server"].as_u64().unwrap();
        self.workers()
            .into_iter()
            .chain([u32::try_from(server).unwrap(), self.child.id()])
            .collect()
    }

    /// Ctrl-C, and what came of it.
    async fn interrupt(&mut self) -> ExitStatus {
        let group = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: a plain system call; the child leads its group and has not been waited for.
        assert_eq!(unsafe { libc::killpg(group, libc::SIGINT) }, 0);
        self.exit().await
    }

    async fn exit(&mut self) -> ExitStatus {
        eventually("portalis up has ended", DEADLINE, || {
            std::future::ready(self.child.try_wait().unwrap().is_some())
        })
        .await;
        self.child.wait().unwrap()
    }

    /// Nothing of it is left: no process, no open port.
    async fn is_gone(&self) {
        let alive = |pid: &u32| Path::new(&format!("/proc/{pid}")).exists();
        eventually("no process is left", DEADLINE, || {
            std::future::ready(!self.pids().iter().any(alive))
        })
        .await;
        let nats = self
            .told("nats_url")
            .rsplit('@')
            .next()
            .unwrap()
            .trim_start_matches("nats://");
        let ops = self.told("ops_url").trim_start_matches("http://");
        for address in [self.address(), nats.parse().unwrap(), ops.parse().unwrap()] {
            assert!(TcpStream::connect(address).is_err(), "{address} is still open");
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Its children die with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- portalis up:\n{}", self.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_command_gives_a_mesh_and_an_interrupt_leaves_nothing() {
    let folder = tempfile::Builder::new().prefix("up-").tempdir().unwrap();
    let model = format!("{MINILM}={}", model_dir().display());
    let arguments = ["--port", "0", "--model", &model];
    let mut up = Up::start(folder.path(), &arguments).await;
    let text = up.text();
    for told in [up.told("base_url"), up.told("api_key"), "curl ", "/embeddings"] {
        assert!(text.contains(told), "{told:?} is not in:\n{text}");
    }
    let answer = up.client().embed(MINILM, "Hello, mesh").await.ok();
    assert_eq!(answer.vectors()[0].len(), 384);

    let key = folder.path().join("demo-key");
    assert_eq!(std::fs::read_to_string(&key).unwrap().trim(), up.told("api_key"));
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let status = up.interrupt().await;
    assert!(status.success(), "{status}: {}", up.text());
    up.is_gone().await;

    // What was there before is there again.
    let first_key = up.told("api_key").to_owned();
    let mut again = Up::start(folder.path(), &arguments).await;
    assert_eq!(again.told("api_key"), first_key);
    let usage = again.client().get("/v1/usage").await.ok().json();
    assert_eq!(usage["computed"], 1, "the ledger is kept: {usage}");
    assert!(again.interrupt().await.success());
    again.is_gone().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ephemeral_mesh_replaces_dead_workers_keeps_nothing_and_dies_whole() {
    let folder = tempfile::Builder::new().prefix("up-").tempdir().unwrap();
    let arguments = ["--port", "0", "--ephemeral", "--no-default-model", "--echo", "echo"];
    let mut up = Up::start(folder.path(), &arguments).await;
    let data = PathBuf::from(up.told("data_dir"));
    assert!(
        data.join("demo-key").is_file() && data != folder.path(),
        "{}",
        data.display()
    );
    let client = up.client();
    client.embed("echo", "before").await.ok();
    for pid in up.workers() {
        send_signal(pid, libc::SIGKILL);
    }
    client.embed("echo", "after").await.ok();
    assert!(up.interrupt().await.success(), "{}", up.text());
    up.is_gone().await;
    assert!(!data.exists(), "{} is left", data.display());

    // kill -9 cannot be handled, but takes everything along.
    let mut killed = Up::start(folder.path(), &arguments).await;
    killed.child.kill().unwrap();
    killed.exit().await;
    killed.is_gone().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_work_is_told_in_one_line() {
    let folder = tempfile::Builder::new().prefix("up-").tempdir().unwrap();
    let broken = folder.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    for file in std::fs::read_dir(model_dir()).unwrap() {
        let file = file.unwrap();
        if file.path().is_file() {
            std::fs::copy(file.path(), broken.join(file.file_name())).unwrap();
        }
    }
    std::fs::write(broken.join("config.json"), "{}").unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (broken, missing) = (
        format!("m={}", broken.display()),
        format!("m={}/missing", folder.path().display()),
    );
    let echo = ["--ephemeral", "--no-default-model", "--echo", "echo"];
    let with = |more: &[&str]| -> Vec<String> { echo.iter().chain(more).map(ToString::to_string).collect() };
    let (server, nowhere) = (nats_server(), PathBuf::from("/nowhere/nats-server"));
    let default = || ["--ephemeral", "--port", "0"].map(str::to_owned).to_vec();
    let cases: Vec<(&Path, Vec<String>, &str)> = vec![
        (&server, with(&["--port", &port]), &port),
        (&server, with(&["--port", "0", "--model", &missing]), "missing"),
        (&server, with(&["--port", "0", "--model", &broken]), "model m"),
        (&server, default(), "no model in"),
        (&nowhere, with(&["--port", "0"]), "/nowhere/nats-server"),
    ];
    for (server, arguments, wanted) in cases {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut command = tokio::process::Command::from(portalis(folder.path(), server, &arguments));
        let output = tokio::time::timeout(DEADLINE, command.output()).await.unwrap().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
        assert_eq!(text.trim_end().lines().count(), 1, "{arguments:?}: {text}");
        assert!(
            text.starts_with("error: ") && text.contains(wanted),
            "{arguments:?}: {text}"
        );
        assert!(
            !text.contains("panicked") && output.stdout.is_empty(),
            "{arguments:?}: {text}"
        );
    }
}
