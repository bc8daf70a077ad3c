//! The frame of calls whose answer may be a stream. Input: an HTTP request and what answers it. Output: its answer with the
//! common headers; a whole answer closes its call here, a stream closes it when it ends.

use std::sync::Arc;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use schemas::error::Failure;

use super::error::HttpError;
use super::finish;
use super::sse::Subject;
use crate::Gateway;
use crate::call::Call;
use crate::permits::LimitState;

/// What a client is answered.
pub(super) enum Reply {
    /// All of it.
    Whole(Response),
    /// A stream, which closes its call when it ends.
    Stream(Response),
}

/// Begins a call, lets it be answered, and finishes the answer; the limit's state is told on failures, too.
pub(super) async fn serve<A, F>(gateway: Arc<Gateway>, request: Request, route: &'static str, answer: A) -> Response
where
    A: FnOnce(Subject, Request) -> F,
    F: Future<Output = (Result<Reply, Failure>, Option<LimitState>)>,
{
    let config = &gateway.config.http;
    let begun = Call::begin(
        request.headers(),
        &gateway.clock,
        config.default_generate_timeout_ms,
        config.max_timeout_ms,
    );
    let begun = begun.and_then(|call| Ok((call, gateway.take_place()?)));
    let (call, place) = match begun {
        Ok(begun) => begun,
        Err(failure) => return finish::stamp_new(HttpError(failure).into_response()).await,
    };
    let subject = Subject {
        gateway: Arc::clone(&gateway),
        call: call.clone(),
        route,
        _place: place,
    };
    let (reply, limit) = answer(subject, request).await;
    let reply = reply.unwrap_or_else(|failure| {
        let code = failure.code.as_str();
        gateway.metrics.failures.with_label_values(&[code]).inc();
        Reply::Whole(HttpError(failure).into_response())
    });
    let (mut response, closed) = match reply {
        Reply::Whole(response) => (response, true),
        Reply::Stream(response) => (response, false),
    };
    finish::stamp(&mut response, &call);
    if let Some(state) = &limit {
        finish::limits(response.headers_mut(), state);
    }
    if closed {
        finish::close(&gateway, route, &call, response.status().as_u16());
    }
    response
}
