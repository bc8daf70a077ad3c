//! The HTTP baseline: a bare axum server. Input: a body. Output: that body for every request whose own body was read, and
//! nothing else: no JSON is parsed, no key is checked, so it bounds what any axum server can do.

use std::io::Write;

use anyhow::Context;
use axum::Router;
use axum::http::header;
use axum::routing::post;
use axum::serve::ListenerExt;
use bytes::Bytes;
use tokio::net::TcpListener;

use crate::cli::BareArgs;

/// Serves until it is killed; tells its address in one line.
///
/// # Errors
/// When the answer cannot be read or no port can be had.
pub async fn serve(args: BareArgs) -> anyhow::Result<()> {
    let answer = std::fs::read(&args.answer).with_context(|| format!("cannot read {}", args.answer.display()))?;
    let listener = TcpListener::bind("127.0.0.1:0").await.context("no port")?;
    writeln!(std::io::stdout(), "{}", listener.local_addr()?)?;
    // As in the gateway: a small answer must not wait for the client's delayed acknowledgement.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    axum::serve(listener, router(answer.into()))
        .await
        .context("the server stopped")
}

fn router(answer: Bytes) -> Router {
    let handler = move |body: Bytes| {
        let answer = answer.clone();
        async move {
            drop(body);
            ([(header::CONTENT_TYPE, "application/json")], answer)
        }
    };
    Router::new().route("/v1/embeddings", post(handler))
}
