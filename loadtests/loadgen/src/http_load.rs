//! HTTP load in a closed loop. Input: a server, a request, connections. Output: one measured window, in which every
//! connection has exactly one request in flight.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, bail};
use tokio::task::JoinSet;

use crate::cli::InputKind;
use crate::http_client::Connection;
use crate::probe::{Cost, Probe};
use crate::scenario::Times;
use crate::window::{Recorder, Seen};

/// Digits of the input that makes a request unique.
const DIGITS: usize = 16;

/// The next input; all requests of this process have their own.
static NEXT_INPUT: AtomicU64 = AtomicU64::new(1);

/// A request whose input can be changed in place: one word, which the echo engine takes for one token.
#[derive(Debug, Clone)]
pub struct Request {
    bytes: Vec<u8>,
    input_at: usize,
}

impl Request {
    /// A request for one embedding, as an OpenAI client would send it.
    #[must_use]
    pub fn embedding(host: &str, key: &str, model: &str) -> Self {
        let model = serde_json::Value::from(model);
        let start = format!("{{\"model\":{model},\"input\":\"w");
        let body = format!("{start}{}\"}}", "0".repeat(DIGITS));
        let head = format!(
            "POST /v1/embeddings HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let input_at = head.len() + start.len();
        Self {
            bytes: [head, body].concat().into_bytes(),
            input_at,
        }
    }

    /// Gives it an input that no request had before.
    pub fn renew(&mut self) {
        let mut number = NEXT_INPUT.fetch_add(1, Ordering::Relaxed);
        for digit in self.bytes[self.input_at..self.input_at + DIGITS].iter_mut().rev() {
            *digit = b"0123456789abcdef"[(number & 15) as usize];
            number >>= 4;
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Load to put on a server.
#[derive(Debug, Clone)]
pub struct Load {
    /// Where it listens.
    pub address: SocketAddr,
    /// What is sent.
    pub request: Request,
    /// Whether each request is one of its own.
    pub input: InputKind,
    /// Connections.
    pub connections: usize,
}

/// What load brought.
#[derive(Debug, Clone)]
pub struct Run {
    /// Answers in the window.
    pub seen: Seen,
    /// What they cost.
    pub cost: Cost,
}

/// Runs load and measures one window.
///
/// # Errors
/// When a connection fails: a benchmark with a broken connection is none.
pub async fn measure(load: &Load, times: Times, probe: &Probe) -> anyhow::Result<Run> {
    let recorder = Arc::new(Recorder::new()?);
    let stop = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for _ in 0..load.connections {
        let connection = Connection::open(load.address).await;
        let connection = connection.with_context(|| format!("cannot connect to {}", load.address))?;
        let (request, input) = (load.request.clone(), load.input);
        callers.spawn(call(
            connection,
            request,
            input,
            Arc::clone(&recorder),
            Arc::clone(&stop),
        ));
    }
    let window = async {
        tokio::time::sleep(times.warm_up).await;
        let begin = probe.now()?;
        recorder.open();
        tokio::time::sleep(times.window).await;
        let seen = recorder.close();
        anyhow::Ok(Run {
            seen,
            cost: probe.since(&begin)?,
        })
    };
    let run = tokio::select! {
        run = window => run?,
        Some(ended) = callers.join_next() => {
            ended.context("a caller panicked")?.context("a connection failed")?;
            bail!("a connection ended by itself");
        }
    };
    stop.store(true, Ordering::Relaxed);
    // Answers are awaited: a connection that is cut would make the server cancel work in the next window.
    let finish = async {
        while let Some(ended) = callers.join_next().await {
            ended.context("a caller panicked")?.context("a connection failed")?;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(ANSWER_TIMEOUT, finish)
        .await
        .context("answers are still missing after the window")??;
    Ok(run)
}

/// Longest wait for the last answers: the gateway's own deadline and a little.
const ANSWER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(65);

async fn call(
    mut connection: Connection,
    mut request: Request,
    input: InputKind,
    recorder: Arc<Recorder>,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        if input == InputKind::Unique {
            request.renew();
        }
        let begun = Instant::now();
        let status = connection.exchange(request.bytes()).await?.status;
        recorder.note(status, begun.elapsed());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_whole_and_each_its_own() {
        let mut request = Request::embedding("h:1", "k", "a\"b");
        let first = request.clone();
        request.renew();
        let text = String::from_utf8(request.bytes().to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())));
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["model"], "a\"b");
        assert_eq!(body["input"].as_str().unwrap().len(), 1 + DIGITS);
        let second = request.clone();
        request.renew();
        assert!(first.bytes() != second.bytes() && second.bytes() != request.bytes());
    }
}
