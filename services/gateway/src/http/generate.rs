//! Chat, plain completions and responses: the spine, one call per step. Input: an HTTP request and how to read its body. Output: a
//! whole text, a stream of events, or one failure.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use schemas::error::{ErrorCode, Failure};
use schemas::fleet::ModelCard;
use schemas::policy::Grant;

use super::form::Form;
use super::sse::{EventStream, Subject};
use super::streamable::{self, Reply};
use super::{body, finish};
use crate::Gateway;
use crate::call::Call;
use crate::lookup::Source;
use crate::permits::LimitState;
use crate::plan::Plan;

/// Tells proxies of nginx's kind to pass on what comes at once.
const NO_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// A request ready to be answered.
pub(super) struct Prepared {
    /// What to compute.
    pub(super) plan: Plan,
    /// By which model.
    pub(super) card: Arc<ModelCard>,
    /// Whether the answer comes in chunks.
    pub(super) stream: bool,
    /// How it is written.
    pub(super) form: Form,
}

/// How a body becomes a plan.
pub(super) type Prepare = fn(&Gateway, &Call, &Grant, &[u8]) -> Result<Prepared, Failure>;

/// Answers a request for text.
pub(super) async fn serve(gateway: Arc<Gateway>, request: Request, route: &'static str, prepare: Prepare) -> Response {
    let answered = |subject, request| async move {
        let mut limit = None;
        let reply = answer(subject, request, prepare, &mut limit).await;
        (reply, limit)
    };
    streamable::serve(gateway, request, route, answered).await
}

async fn answer(
    subject: Subject,
    request: Request,
    prepare: Prepare,
    limit: &mut Option<LimitState>,
) -> Result<Reply, Failure> {
    let (gateway, call) = (&subject.gateway, &subject.call);
    let (parts, body) = request.into_parts();
    let caller = gateway.authorizer.authorize(&parts.headers).await?;
    *limit = gateway.admit(&caller).await.map_err(|(failure, state)| {
        *limit = state;
        failure
    })?;
    let limit_bytes = gateway.config.http.body_limit_bytes;
    let bytes = body::read(&parts.headers, body, limit_bytes, gateway.read_timeout).await?;
    let prepared = prepare(gateway, call, &caller.grant, &bytes)?;
    if prepared.stream {
        return stream(subject, prepared, &caller.grant).await.map(Reply::Stream);
    }
    let Prepared { plan, card, form, .. } = prepared;
    let answered = gateway.answer(plan, call, &card, &caller.grant).await;
    let (answer, source) = answered.map_err(|failure| form.blame(failure))?;
    gateway.metrics.cache.with_label_values(&[source.label()]).inc();
    if source.is_free() {
        gateway.cached_usage.note(&caller.grant, &answer);
    }
    let text = answer.text().ok_or_else(finish::wrong_answer)?;
    let body = form.whole(text).map_err(|error| {
        tracing::error!(%error, "answer cannot be written");
        Failure::new(ErrorCode::Internal, "the answer could not be written")
    })?;
    Ok(Reply::Whole((finish::json_headers(source), body).into_response()))
}

/// Begins a stream. Its head waits for the first text, so that what fails before has a status of its own, but not longer
/// than a silence that would be broken by a comment.
async fn stream(subject: Subject, prepared: Prepared, grant: &Grant) -> Result<Response, Failure> {
    let gateway = Arc::clone(&subject.gateway);
    let Prepared { plan, card, form, .. } = prepared;
    let (waiter, mut reader) = gateway.begin_stream(plan, &subject.call, &card, grant).await?;
    let patience = Duration::from_millis(gateway.config.stream.keep_alive_ms);
    let first = match tokio::time::timeout(patience, reader.recv()).await {
        Ok(Some(parts)) => {
            let took_us = gateway.clock.monotonic_us().saturating_sub(subject.call.received_at_us);
            let seconds = gateway.metrics.first_text_seconds.with_label_values(&[subject.route]);
            seconds.observe(took_us as f64 / 1e6);
            parts
        }
        Ok(None) => match waiter.flight.outcome_now() {
            Some(Err(failure)) => return Err(form.blame(failure)),
            _ => Vec::new(),
        },
        Err(_) => Vec::new(),
    };
    gateway
        .metrics
        .cache
        .with_label_values(&[Source::Bypassed.label()])
        .inc();
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream; charset=utf-8"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (NO_BUFFERING, HeaderValue::from_static("no")),
        (finish::CACHE, HeaderValue::from_static(Source::Bypassed.header())),
    ];
    let events = EventStream::new(subject, waiter, reader, form, first);
    Ok((headers, Body::new(events)).into_response())
}
