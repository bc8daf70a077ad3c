//! The load generator against real servers. Input: its own program, a real broker. Output: windows with requests in them,
//! and no child that outlives its parent.

use std::process::Stdio;
use std::time::Duration;

use loadgen::cli::InputKind;
use loadgen::http_load::{self, Load, Request};
use loadgen::nats_echo::URL_VARIABLE;
use loadgen::nats_load::{self, Loop};
use loadgen::probe::Probe;
use loadgen::procfs;
use loadgen::scenario::Times;
use testkit::{NatsServer, eventually};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const TIMES: Times = Times {
    warm_up: Duration::from_millis(20),
    window: Duration::from_millis(100),
};

/// Our program with these arguments, and its first line.
#[expect(clippy::unwrap_used, reason = "a helper of tests, which fail loudly")]
async fn start(arguments: &[&str], url: Option<&str>) -> (Child, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portalis-loadgen"));
    command.args(arguments).stdout(Stdio::piped()).kill_on_drop(true);
    if let Some(url) = url {
        command.env(URL_VARIABLE, url);
    }
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    let output = child.stdout.take().unwrap();
    BufReader::new(output).read_line(&mut line).await.unwrap();
    (child, line.trim().to_owned())
}

#[tokio::test]
async fn http_load_measures_a_window_and_what_it_cost() {
    let folder = tempfile::tempdir().unwrap();
    let answer = folder.path().join("answer.json");
    std::fs::write(&answer, "{\"ok\":true}").unwrap();
    let (child, address) = start(&["serve-bare", "--answer", answer.to_str().unwrap()], None).await;
    let mut probe = Probe::new(vec![0]);
    probe.watch("bare", child.id().unwrap());
    let request = Request::embedding(&address, "key", "model");
    let load = Load {
        address: address.parse().unwrap(),
        request,
        input: InputKind::Unique,
        connections: 4,
    };
    let run = http_load::measure(&load, TIMES, &probe).await.unwrap();
    assert!(
        run.seen.latencies_ns.len() > 10 && run.seen.failures.is_empty(),
        "{:?}",
        run.seen.failures
    );
    assert!(run.cost.seconds >= 0.1);
    assert!(run.cost.cpu_ns.iter().all(|(_, ns)| *ns > 0), "{:?}", run.cost.cpu_ns);

    let nobody = Load {
        address: "127.0.0.1:1".parse().unwrap(),
        ..load
    };
    assert!(http_load::measure(&nobody, TIMES, &probe).await.is_err());
}

#[tokio::test]
async fn both_broker_loops_answer() {
    let server = NatsServer::start().await;
    let (_child, line) = start(&["serve-nats"], Some(&server.url())).await;
    assert_eq!(line, "ready");
    let client = async_nats::connect(server.url()).await.unwrap();
    for way in [Loop::Core, Loop::Queue] {
        for in_flight in [1, 32] {
            let run = nats_load::measure(&client, way, in_flight, TIMES, &Probe::new(vec![0]))
                .await
                .unwrap();
            assert!(run.seen.latencies_ns.len() > 10, "{way:?} at {in_flight}");
        }
    }
}

#[tokio::test]
async fn a_dropped_child_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    // Deaf to SIGTERM, so that only the kill ends it; the loop keeps the shell itself alive.
    command.args(["-c", "trap '' TERM; echo started; while :; do sleep 1; done"]);
    let mut process = loadgen::children::Process::start("shell", command, folder.path()).unwrap();
    assert_eq!(process.first_line().await.unwrap(), "started");
    let shell = procfs::tree_of(process.pid)[0];
    assert!(procfs::is_running(shell));
    drop(process);
    eventually("the shell has ended", Duration::from_secs(5), || async {
        !procfs::is_running(shell)
    })
    .await;
}
