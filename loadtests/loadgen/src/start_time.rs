//! `portalis-loadgen start-time`. Input: the `portalis` program and installed models. Output: times from start to ready,
//! and whether anything is left after an interrupt.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::children::{Process, free_port};
use crate::cli::StartTimeArgs;
use crate::mesh::{bin_dir, get};
use crate::procfs::{self, ProcessId};
use crate::window::median;

/// Longest start that is wanted.
const WANTED_S: f64 = 3.0;
/// Time between two looks; part of the error of a measurement.
const POLL: Duration = Duration::from_millis(2);
/// Longest stop: above the stack's own drain of 30 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(40);

/// The part of what `portalis up` tells that is needed here.
#[derive(Debug, Deserialize)]
struct Ready {
    nats_url: String,
    ops_url: String,
    ready_ms: u64,
}

/// One start and stop.
#[derive(Debug)]
struct Outcome {
    ready_s: f64,
    told_s: f64,
    stop_s: f64,
    left: Vec<String>,
}

/// Measures starts and stops and prints them.
///
/// # Errors
/// When the mesh does not start, or leaves something behind.
pub async fn run(args: StartTimeArgs) -> anyhow::Result<()> {
    let program = bin_dir(args.bin_dir.as_deref())?.join("portalis");
    ensure!(
        program.is_file(),
        "{} is missing: build it with cargo build --release -p portalis",
        program.display()
    );
    ensure!(args.runs > 0, "--runs is 1 or more");
    let mut outcomes = Vec::new();
    for number in 1..=args.runs {
        let outcome = once(&program, &args).await.with_context(|| format!("run {number}"))?;
        let (ready_s, stop_s) = (outcome.ready_s, outcome.stop_s);
        eprintln!("run {number}: ready after {ready_s:.2} s, ended {stop_s:.2} s after the interrupt");
        outcomes.push(outcome);
    }
    let over = |value: fn(&Outcome) -> f64| outcomes.iter().map(value).collect::<Vec<f64>>();
    let ready = over(|outcome| outcome.ready_s);
    let slowest = ready.iter().copied().fold(0.0, f64::max);
    let left: Vec<&String> = outcomes.iter().flat_map(|outcome| &outcome.left).collect();
    let (ready_median, told, stop) = (
        median(&ready),
        median(&over(|outcome| outcome.told_s)),
        median(&over(|outcome| outcome.stop_s)),
    );
    if args.json {
        let report = json!({
            "runs": args.runs, "ready_s": ready_median, "ready_slowest_s": slowest, "told_s": told, "stop_s": stop,
            "left": left,
        });
        println!("{report}");
    } else {
        let verdict = |met: bool| if met { "met" } else { "**missed**" };
        println!("| what | target | measured, {} runs | |\n|---|---|---|---|", args.runs);
        println!(
            "| start of `portalis up` to ready | ≤ {WANTED_S:.0} s | {ready_median:.2} s median, {slowest:.2} s slowest \
             (it says {told:.2} s) | {} |",
            verdict(slowest <= WANTED_S)
        );
        println!("| interrupt to end | | {stop:.2} s median | |");
        println!(
            "| processes and ports left | none | {} | {} |",
            left.len(),
            verdict(left.is_empty())
        );
    }
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

async fn once(program: &Path, args: &StartTimeArgs) -> anyhow::Result<Outcome> {
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let ready_file = folder.path().join("ready.json");
    let port = free_port()?;
    let mut command = Command::new(program);
    command
        .arg("--data-dir")
        .arg(&args.data_dir)
        .args(["up", "--ephemeral", "--ops-port", "0", "--port"]);
    command
        .arg(port.to_string())
        .arg("--ready-file")
        .arg(&ready_file)
        .args(&args.up);
    let begun = Instant::now();
    let mut stack = Process::start("portalis", command, folder.path())?;
    let http = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let ready: Ready = loop {
        stack.check()?;
        // Ready is what a client sees, and only then what the program says.
        let told = std::fs::read_to_string(&ready_file)
            .ok()
            .and_then(|text| serde_json::from_str(&text).ok());
        if let Some(ready) = told
            && matches!(get(http, "/v1/health/ready").await, Ok((200, _)))
        {
            break ready;
        }
        if begun.elapsed().as_secs_f64() > args.limit {
            bail!("not ready after {} s", args.limit);
        }
        tokio::time::sleep(POLL).await;
    };
    let ready_s = begun.elapsed().as_secs_f64();
    let processes = procfs::tree_of(stack.pid);
    ensure!(
        processes.len() > 1,
        "the mesh has no children: nothing can be said about what it leaves"
    );
    let interrupted = Instant::now();
    stack.signal(libc::SIGINT);
    let status = stack.wait(STOP_TIMEOUT).await?;
    let stop_s = interrupted.elapsed().as_secs_f64();
    let mut left = left_processes(&processes);
    for (name, address) in [
        ("HTTP", Some(http)),
        ("NATS", port_of(&ready.nats_url)),
        ("metrics", port_of(&ready.ops_url)),
    ] {
        let address = address.with_context(|| format!("the mesh tells no {name} port"))?;
        if TcpStream::connect(address).await.is_ok() {
            left.push(format!("{name} port {}", address.port()));
        }
    }
    if !status.success() {
        left.push(format!("exit status {status}"));
    }
    Ok(Outcome {
        ready_s,
        told_s: ready.ready_ms as f64 / 1e3,
        stop_s,
        left,
    })
}

fn left_processes(processes: &[ProcessId]) -> Vec<String> {
    let running = processes.iter().filter(|process| procfs::is_running(**process));
    running.map(|process| format!("process {}", process.pid)).collect()
}

/// The local address in a URL; credentials are skipped.
fn port_of(url: &str) -> Option<SocketAddr> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split('/').next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    host.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_found_behind_credentials() {
        assert_eq!(port_of("nats://a:b@127.0.0.1:4222").unwrap().port(), 4222);
        assert_eq!(port_of("http://127.0.0.1:9464/x").unwrap().port(), 9464);
        assert_eq!(port_of("nonsense"), None);
    }
}
