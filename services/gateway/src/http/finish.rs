//! The end of every answer. Input: a response and what is known of the call. Output: common headers, metrics, one log line.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;
use schemas::error::{ErrorCode, Failure};
use schemas::ids::RequestId;

use crate::Gateway;
use crate::call::Call;
use crate::lookup::Source;
use crate::permits::LimitState;

/// Where an answer came from.
pub(super) const CACHE: HeaderName = HeaderName::from_static("x-portalis-cache");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit-requests");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining-requests");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset-requests");

/// Adds the request's id.
pub(super) fn stamp(response: &mut Response, call: &Call) {
    if let Ok(value) = HeaderValue::from_str(&call.request_id.to_string()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
}

/// Gives an answer that is not about work an id, if it has none.
pub(super) async fn stamp_new(mut response: Response) -> Response {
    if !response.headers().contains_key(REQUEST_ID)
        && let Ok(value) = HeaderValue::from_str(&RequestId::new().to_string())
    {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// Adds the limit's state, in OpenAI's headers.
pub(super) fn limits(headers: &mut HeaderMap, state: &LimitState) {
    headers.insert(LIMIT, HeaderValue::from(state.limit));
    headers.insert(REMAINING, HeaderValue::from(state.remaining));
    if let Ok(value) = HeaderValue::from_str(&duration_text(state.reset_ms)) {
        headers.insert(RESET, value);
    }
}

/// A duration as OpenAI writes it: `6m0s`, `1.5s`, `20ms`.
fn duration_text(milliseconds: u64) -> String {
    let (minutes, rest) = (milliseconds / 60_000, milliseconds % 60_000);
    match (minutes, rest) {
        (0, rest) if rest < 1_000 => format!("{rest}ms"),
        (0, rest) if rest % 1_000 == 0 => format!("{}s", rest / 1_000),
        (0, rest) => format!("{}.{:03}s", rest / 1_000, rest % 1_000),
        (minutes, rest) => format!("{minutes}m{}s", rest / 1_000),
    }
}

/// Headers that say where an answer came from.
pub(super) fn headers_of(source: Source) -> [(HeaderName, HeaderValue); 1] {
    [(CACHE, HeaderValue::from_static(source.header()))]
}

/// Headers of an answer in JSON.
pub(super) fn json_headers(source: Source) -> [(HeaderName, HeaderValue); 2] {
    [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (CACHE, HeaderValue::from_static(source.header())),
    ]
}

/// The failure when an answer is not of the kind that was asked for, which its flight has made sure of.
pub(super) fn wrong_answer() -> Failure {
    Failure::new(ErrorCode::Internal, "the answer is of another kind than was asked for")
}

/// Counts and logs a call that is over.
pub(super) fn close(gateway: &Gateway, route: &'static str, call: &Call, status: u16) {
    let class = match status / 100 {
        2 => "2xx",
        4 => "4xx",
        _ => "5xx",
    };
    let took_us = gateway.clock.monotonic_us().saturating_sub(call.received_at_us);
    gateway.metrics.requests.with_label_values(&[route, class]).inc();
    gateway
        .metrics
        .request_seconds
        .with_label_values(&[route])
        .observe(took_us as f64 / 1e6);
    tracing::debug!(
        request_id = %call.request_id,
        trace_id = call.trace.trace_id_hex(),
        route,
        status,
        took_us,
        "request answered"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_openai_writes_them() {
        for (ms, text) in [
            (0, "0ms"),
            (20, "20ms"),
            (1_000, "1s"),
            (1_500, "1.500s"),
            (360_000, "6m0s"),
            (61_000, "1m1s"),
        ] {
            assert_eq!(duration_text(ms), text);
        }
    }
}
