//! `portalis-loadgen streams`. Input: a model folder. Output: how even many streams of text are while a long prompt joins them: the median time
//! between two tokens, the longest stall, and whether it is within its bound. Everything runs as `bench` runs it, with a worker that really writes.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cli::StreamsArgs;
use crate::http_client::Connection;
use crate::mesh::Mesh;
use crate::procfs;
use crate::window::median;

/// Name under which the model is served.
const MODEL: &str = "writer";
/// What begins every event that is not the last.
const EVENT: &[u8] = b"data: {";
/// Tokens that every stream has written before the long prompt joins, so that all of them run.
const SETTLED_TOKENS: usize = 60;
/// Token ids of prompts: behind the special ones, within the smallest vocabularies.
const TOKEN_IDS: std::ops::Range<u32> = 100..1_100;
/// Tokens of a stream's own prompt.
const OWN_PROMPT_TOKENS: usize = 16;
/// Longest wait for anything: a broken build, not a measurement.
const PATIENCE: Duration = Duration::from_secs(120);

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Streams that were read.
    pub streams: usize,
    /// Tokens of the prompt that joined.
    pub prompt_tokens: usize,
    /// Tokens that all streams wrote in the window.
    pub tokens: usize,
    /// Time between two tokens of a stream before the prompt joined, in milliseconds: the median.
    pub median_before_ms: f64,
    /// The same while it was read.
    pub median_during_ms: f64,
    /// The longest time that a stream waited for its next token while the prompt was read, in milliseconds.
    pub longest_stall_ms: f64,
    /// The longest before it joined, in milliseconds.
    pub longest_before_ms: f64,
    /// From the long prompt's request to its first token, in milliseconds.
    pub joined_ms: f64,
    /// The stall over the median before.
    pub ratio: f64,
    /// Most that the ratio may be.
    pub most: f64,
}

/// Measures and prints.
///
/// # Errors
/// When something does not start or answer, or the longest stall is over its bound.
pub async fn run(args: StreamsArgs) -> anyhow::Result<()> {
    ensure!(
        args.streams > 0 && args.prompt_tokens > 0,
        "--streams and --prompt-tokens are 1 or more"
    );
    procfs::keep_to_cores(args.cores).context("cannot keep to some cores")?;
    let path = std::path::absolute(&args.model).context("--model names no folder")?;
    ensure!(path.join("config.json").is_file(), "{} holds no model", path.display());
    let mut settings = vec![
        "model.engine=model".to_owned(),
        format!("model.name={MODEL}"),
        format!("model.path={}", path.display()),
    ];
    settings.extend(args.set.iter().cloned());
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let mesh = Mesh::start_with(&args.programs, folder.path(), settings).await?;
    let measured = measure(&mesh, &args).await;
    mesh.stop().await;
    let report = measured?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report, &args.model);
    }
    ensure!(
        report.ratio <= report.most,
        "a stream stalled for {:.1} times the median, at most {:.1} are allowed",
        report.ratio,
        report.most
    );
    Ok(())
}

fn print(report: &Report, model: &Path) {
    let passed = if report.ratio <= report.most { "pass" } else { "FAIL" };
    println!(
        "{} streams of {}, a prompt of {} tokens joins ({}):",
        report.streams,
        model.display(),
        report.prompt_tokens,
        procfs::machine()
    );
    println!(
        "  time between tokens before   {:8.1} ms median, {:.1} ms longest",
        report.median_before_ms, report.longest_before_ms
    );
    println!(
        "  time between tokens meanwhile{:8.1} ms median, {:.1} ms longest",
        report.median_during_ms, report.longest_stall_ms
    );
    println!("  first token of the prompt    {:8.1} ms", report.joined_ms);
    println!(
        "  longest stall / median before {:7.2}, at most {:.1}: {passed}",
        report.ratio, report.most
    );
}

async fn measure(mesh: &Mesh, args: &StreamsArgs) -> anyhow::Result<Report> {
    let (over, until_over) = watch::channel(false);
    let settled = Arc::new(AtomicUsize::new(0));
    let mut streams = JoinSet::new();
    for place in 0..args.streams {
        let body = json!({
            "model": MODEL, "prompt": prompt(place as u32 + 1, OWN_PROMPT_TOKENS), "stream": true, "ignore_eos": true, "logprobs": 0,
            "max_tokens": args.max_tokens, "temperature": 1, "seed": place,
        });
        let request = request(mesh, &body.to_string());
        streams.spawn(read(mesh.gateway, request, Arc::clone(&settled), until_over.clone()));
    }
    wait_until_settled(&settled, args.streams, &mut streams).await?;
    // A window before anything joins, as long as the bound is easy to see in.
    tokio::time::sleep(Duration::from_secs_f64(args.before_seconds)).await;
    let joins = Instant::now();
    let body = json!({ "model": MODEL, "prompt": prompt(0, args.prompt_tokens), "max_tokens": 1, "ignore_eos": true, "temperature": 0 });
    let mut connection = Connection::open(mesh.gateway).await?;
    let request = request(mesh, &body.to_string());
    let answer = tokio::time::timeout(PATIENCE, connection.exchange(&request));
    let answer = answer.await.context("the long prompt is not answered")??;
    ensure!(
        answer.status == 200,
        "the long prompt is answered {}: {}",
        answer.status,
        String::from_utf8_lossy(answer.body)
    );
    let joined = Instant::now();
    // What the last step of the prompt held up shows in the next token.
    tokio::time::sleep(Duration::from_secs(1)).await;
    over.send_replace(true);
    let mut arrivals = Vec::new();
    while let Some(stream) = streams.join_next().await {
        arrivals.push(stream.context("a reader panicked")??);
    }
    if let Some(path) = &args.gaps {
        write_gaps(&arrivals, joins, path)?;
    }
    report(&arrivals, (joins, joined), args)
}

/// Every gap, for whoever looks for the cause of one.
fn write_gaps(arrivals: &[Vec<Instant>], joins: Instant, path: &Path) -> anyhow::Result<()> {
    let mut lines = String::from("stream,ended_s,gap_ms\n");
    for (number, stream) in arrivals.iter().enumerate() {
        for pair in stream.windows(2) {
            let ended_s = match pair[1].checked_duration_since(joins) {
                Some(after) => after.as_secs_f64(),
                None => -(joins - pair[1]).as_secs_f64(),
            };
            let gap_ms = (pair[1] - pair[0]).as_secs_f64() * 1e3;
            lines.push_str(&format!("{number},{ended_s:.4},{gap_ms:.3}\n"));
        }
    }
    std::fs::write(path, lines).with_context(|| format!("cannot write {}", path.display()))
}

/// Waits until every stream runs.
async fn wait_until_settled(
    settled: &AtomicUsize,
    wanted: usize,
    streams: &mut JoinSet<anyhow::Result<Vec<Instant>>>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while settled.load(Ordering::Relaxed) < wanted {
        if let Some(ended) = streams.try_join_next() {
            ended.context("a reader panicked")?.context("a stream failed")?;
            bail!("a stream ended before all had begun: raise --max-tokens");
        }
        ensure!(Instant::now() < deadline, "the streams do not begin");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Token ids that differ from place to place; which ones does not matter, so they come from a generator of Lehmer's kind.
fn prompt(place: u32, tokens: usize) -> Vec<u32> {
    let span = TOKEN_IDS.end - TOKEN_IDS.start;
    let mut state = u64::from(place) * 7_919 + 1;
    let next = std::iter::repeat_with(move || {
        state = state * 48_271 % 0x7fff_ffff;
        TOKEN_IDS.start + (state % u64::from(span)) as u32
    });
    next.take(tokens).collect()
}

fn request(mesh: &Mesh, body: &str) -> Vec<u8> {
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        mesh.gateway,
        mesh.key,
        body.len()
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

/// Reads a stream to the end of the measurement; gives the time of each of its tokens.
async fn read(
    address: SocketAddr,
    request: Vec<u8>,
    settled: Arc<AtomicUsize>,
    mut over: watch::Receiver<bool>,
) -> anyhow::Result<Vec<Instant>> {
    let mut connection = TcpStream::connect(address).await.context("cannot connect")?;
    connection.set_nodelay(true)?;
    connection.write_all(&request).await?;
    let mut arrivals = Vec::new();
    let mut events = Events::default();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = tokio::select! {
            count = connection.read(&mut buffer) => count?,
            _ = over.wait_for(|over| *over) => return Ok(arrivals),
        };
        let now = Instant::now();
        ensure!(count > 0, "the stream was cut");
        let seen = events.push(&buffer[..count])?;
        let had = arrivals.len();
        arrivals.extend(std::iter::repeat_n(now, seen));
        if had < SETTLED_TOKENS && arrivals.len() >= SETTLED_TOKENS {
            settled.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Counts events in a stream of bytes, wherever it is cut; chunk sizes between them do not matter.
#[derive(Debug, Default)]
struct Events {
    /// The end of what was read, too short for a whole mark; before the first event the head.
    rest: Vec<u8>,
    has_begun: bool,
}

impl Events {
    fn push(&mut self, bytes: &[u8]) -> anyhow::Result<usize> {
        self.rest.extend_from_slice(bytes);
        if !self.has_begun {
            const EXPECTED: &[u8] = b"HTTP/1.1 200";
            if self.rest.len() < EXPECTED.len() {
                return Ok(0);
            }
            let shown = String::from_utf8_lossy(&self.rest);
            ensure!(self.rest.starts_with(EXPECTED), "a stream is answered: {shown}");
            self.has_begun = true;
        }
        ensure!(
            !self.rest.windows(9).any(|window| window == b"\"error\":{"),
            "a stream ends with an error: {}",
            String::from_utf8_lossy(&self.rest)
        );
        let found = self.rest.windows(EVENT.len()).filter(|window| *window == EVENT).count();
        let kept = self.rest.len().min(EVENT.len() - 1);
        self.rest.drain(..self.rest.len() - kept);
        Ok(found)
    }
}

fn report(
    arrivals: &[Vec<Instant>],
    (joins, joined): (Instant, Instant),
    args: &StreamsArgs,
) -> anyhow::Result<Report> {
    let (mut before, mut during) = (Vec::new(), Vec::new());
    for stream in arrivals {
        // The first tokens came while others still began.
        for pair in stream.get(SETTLED_TOKENS - 1..).unwrap_or_default().windows(2) {
            let gap_ms = (pair[1] - pair[0]).as_secs_f64() * 1e3;
            if pair[1] < joins {
                before.push(gap_ms);
            } else if pair[0] < joined {
                during.push(gap_ms);
            }
        }
    }
    ensure!(
        !before.is_empty() && !during.is_empty(),
        "the streams ended too early: raise --max-tokens"
    );
    let longest = |gaps: &[f64]| gaps.iter().copied().fold(0.0, f64::max);
    let median_before_ms = median(&before);
    let longest_stall_ms = longest(&during);
    Ok(Report {
        streams: arrivals.len(),
        prompt_tokens: args.prompt_tokens,
        tokens: before.len() + during.len(),
        median_before_ms,
        median_during_ms: median(&during),
        longest_stall_ms,
        longest_before_ms: longest(&before),
        joined_ms: (joined - joins).as_secs_f64() * 1e3,
        ratio: longest_stall_ms / median_before_ms,
        most: args.most,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_wherever_the_bytes_are_cut() {
        let bytes = b"HTTP/1.1 200 OK\r\n\r\n5\r\ndata: {\"a\":1}\n\n\r\n: keep-alive\n\ndata: {}\n\ndata: [DONE]\n\n";
        for step in 1..bytes.len() {
            let mut events = Events::default();
            let found: usize = bytes.chunks(step).map(|chunk| events.push(chunk).unwrap()).sum();
            assert_eq!(found, 2, "by {step}");
        }
        assert!(Events::default().push(b"HTTP/1.1 503 Service").is_err());
        assert!(
            Events::default()
                .push(b"HTTP/1.1 200 OK\r\n\r\ndata: {\"error\":{}}")
                .is_err()
        );
    }

    #[test]
    fn the_longest_gap_that_touches_the_join_is_the_stall() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let stream: Vec<Instant> = (0..SETTLED_TOKENS as u64 + 20).map(|token| at(token * 10)).collect();
        let mut stalled = stream.clone();
        let join = SETTLED_TOKENS + 9;
        for time in &mut stalled[join..] {
            *time += Duration::from_millis(25);
        }
        let joins = stream[join] - Duration::from_millis(5);
        let args = StreamsArgs {
            prompt_tokens: 900,
            most: 3.0,
            ..StreamsArgs::for_test()
        };
        let report = report(&[stream, stalled], (joins, joins + Duration::from_millis(20)), &args).unwrap();
        assert_eq!(
            (report.median_before_ms, report.longest_stall_ms, report.ratio),
            (10.0, 35.0, 3.5)
        );
        assert!(prompt(1, 900).iter().all(|id| TOKEN_IDS.contains(id)) && prompt(1, 9) != prompt(2, 9));
    }
}
