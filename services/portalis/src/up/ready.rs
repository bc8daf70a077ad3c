//! When the mesh is ready. Input: healths of the services, status of the workers, the gateway's port. Output: ready, or
//! the one thing that is in the way.

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use process::Context;
use process::health::Status as HealthStatus;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::supervisor::Status;

/// Longest start. A large model is read from a disk at 100 MB/s and more; the small default is there in a second.
const LIMIT: Duration = Duration::from_secs(30);
/// How often health is looked at; looking is cheap and the start should not wait for the look.
const POLL: Duration = Duration::from_millis(10);
/// Longest wait for one answer of the gateway.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Most bytes of that answer that are read: the status line is at its start.
const PROBE_BYTES: usize = 1_024;
/// Time after which people are told what is being waited for.
const QUIET: Duration = Duration::from_secs(2);

/// Waits until all services are healthy, each model has a ready worker, and the gateway says so over HTTP.
///
/// # Errors
/// When a model cannot be loaded, or the limit has passed: with what was missing then.
pub async fn wait(contexts: &[Context], workers: &mut watch::Receiver<Status>, http: SocketAddr) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut progress = Progress::default();
    loop {
        let missing = match missing(contexts, &workers.borrow_and_update().clone())? {
            Some(missing) => missing,
            None => match probe(http).await {
                Ok(()) => {
                    progress.end();
                    return Ok(());
                }
                Err(error) => format!("gateway ({error:#})"),
            },
        };
        if began.elapsed() >= LIMIT {
            progress.end();
            bail!("not ready after {} s: {missing}; see the logs", LIMIT.as_secs());
        }
        if began.elapsed() >= QUIET {
            progress.show(&missing);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The first thing that is missing, if any.
fn missing(contexts: &[Context], workers: &Status) -> anyhow::Result<Option<String>> {
    for pool in &workers.pools {
        if let Some(reason) = &pool.start_failure {
            return Err(anyhow!("model {} cannot be served: {reason}", pool.info.model));
        }
    }
    let unready = contexts.iter().find_map(|context| {
        let report = context.health.report();
        if report.status == HealthStatus::Ready {
            return None;
        }
        let parts = report.components.iter().filter(|part| !part.ready);
        let parts: Vec<_> = parts
            .map(|part| format!("{}: {}", part.name, part.reason.as_deref().unwrap_or("not ready")))
            .collect();
        Some(format!("{} ({})", context.service, parts.join(", ")))
    });
    let loading = workers.pools.iter().find(|pool| pool.ready == 0 && pool.info.min > 0);
    let loading = loading.map(|pool| format!("a worker of {}", pool.info.model));
    Ok(loading.or(unready))
}

/// Asks the gateway as a load balancer would.
async fn probe(address: SocketAddr) -> anyhow::Result<()> {
    let ask = async {
        let mut stream = TcpStream::connect(reachable(address)).await?;
        let request = format!("GET /v1/health/ready HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(PROBE_BYTES as u64).read_to_end(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(PROBE_TIMEOUT, ask).await.context("no answer")??;
    let text = String::from_utf8_lossy(&answer);
    let status = text.split(' ').nth(1).unwrap_or("nothing");
    if status == "200" {
        Ok(())
    } else {
        bail!("answers {status}")
    }
}

/// An address that listens everywhere is asked on this machine.
#[must_use]
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address {
        _ if !address.ip().is_unspecified() => return address,
        SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, address.port())
}

/// One line that is written over and over, only where a person looks.
#[derive(Debug, Default)]
struct Progress {
    shown: Option<String>,
}

impl Progress {
    fn show(&mut self, missing: &str) {
        if !io::stderr().is_terminal() || self.shown.as_deref() == Some(missing) {
            return;
        }
        // A terminal that is gone is no reason to stop.
        let _ = write!(io::stderr(), "\r\x1b[Kwaiting for {missing}");
        let _ = io::stderr().flush();
        self.shown = Some(missing.to_owned());
    }

    fn end(&mut self) {
        if self.shown.take().is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::fleet::PoolInfo;
    use tokio::net::TcpListener;

    use super::super::supervisor::PoolStatus;
    use super::*;

    fn pool(ready: u32, start_failure: Option<&str>) -> Status {
        let info = PoolInfo {
            model: "m".to_owned(),
            wanted: 1,
            running: 1,
            min: 1,
            max: 2,
        };
        let start_failure = start_failure.map(str::to_owned);
        Status {
            pools: vec![PoolStatus {
                info,
                ready,
                pids: vec![],
                start_failure,
            }],
        }
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let context = Context::new("auth");
        let bus = context.health.component("bus");
        let contexts = [context];
        let named = |workers: &Status| missing(&contexts, workers).unwrap();
        assert_eq!(named(&pool(0, None)).as_deref(), Some("a worker of m"));
        assert_eq!(named(&pool(1, None)).as_deref(), Some("auth (bus: starting)"));
        bus.set_ready();
        assert_eq!(named(&pool(1, None)), None);
        let broken = missing(&contexts, &pool(0, Some("config.json is no JSON"))).unwrap_err();
        assert_eq!(broken.to_string(), "model m cannot be served: config.json is no JSON");
    }

    #[tokio::test]
    async fn the_gateway_is_asked_over_http() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        for (status, good) in [("503 Service Unavailable", false), ("200 OK", true)] {
            let answering = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    assert!(stream.read_buf(&mut request).await.unwrap() > 0);
                }
                assert!(request.starts_with(b"GET /v1/health/ready"));
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            };
            let (probed, ()) = tokio::join!(probe(address), answering);
            assert_eq!(probed.is_ok(), good, "{status}");
        }
        drop(listener);
        assert!(probe(address).await.is_err());
        assert_eq!(reachable("0.0.0.0:80".parse().unwrap()).to_string(), "127.0.0.1:80");
        assert_eq!(reachable("[::]:80".parse().unwrap()).to_string(), "[::1]:80");
    }
}
