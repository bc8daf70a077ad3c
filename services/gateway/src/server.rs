//! Connections. Input: a listener and the router. Output: HTTP/1.1 served with deadlines on headers, no delay on small
//! writes, and a drain that finishes what is in hand.

use std::io;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use process::CancellationToken;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Pause after a failure to accept, e.g. when file descriptors have run out: they come back as connections end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How connections are served.
#[derive(Debug, Clone, Copy)]
pub struct ServerOptions {
    /// Longest time to send the headers of a request.
    pub header_timeout: Duration,
    /// Most connections at once; more wait in the system's queue.
    pub max_connections: usize,
}

/// Serves until `soft`, then finishes what is in hand until `hard`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    options: ServerOptions,
    soft: CancellationToken,
    hard: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = soft.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < options.max_connections => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, router.clone(), options, soft.clone()));
                }
                Err(error) => pause(&error).await,
            },
        }
    }
    drop(listener);
    tokio::select! {
        () = async { while connections.join_next().await.is_some() {} } => {}
        () = hard.cancelled() => {
            tracing::warn!(connections = connections.len(), "connections cut off, the drain took too long");
            connections.shutdown().await;
        }
    }
}

async fn pause(error: &io::Error) {
    tracing::warn!(%error, "connection not accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

async fn connection(stream: TcpStream, router: Router, options: ServerOptions, soft: CancellationToken) {
    // Without it a streamed answer waits 40 ms for the client's delayed acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "connection without TCP_NODELAY");
    }
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(options.header_timeout)
        .pipeline_flush(true);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let mut draining = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            () = soft.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
