//! One call. Input: request headers and the clock. Output: id, trace, deadline and cache wishes that every later step uses.

use axum::http::{HeaderMap, header};
use process::{Clock, TraceContext};
use schemas::error::{ErrorCode, Failure};
use schemas::ids::RequestId;

/// Headers with which a client bounds its wait, in milliseconds: ours, and the one of other servers. The first counts.
const TIMEOUT_HEADERS: [&str; 2] = ["x-portalis-timeout-ms", "x-request-timeout-ms"];

/// What is known of a call before its body is read.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its id, answered as `x-request-id`.
    pub request_id: RequestId,
    /// Its trace, continued from the client's `traceparent`.
    pub trace: TraceContext,
    /// When it arrived, Unix milliseconds.
    pub received_at_ms: u64,
    /// When it arrived, monotonic microseconds.
    pub received_at_us: u64,
    /// When nobody waits any more, Unix milliseconds.
    pub deadline_ms: u64,
    /// What the client said about caches.
    pub cache: CacheWish,
}

/// What a client said in `Cache-Control`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheWish {
    /// `no-cache` or `no-store`: compute, do not answer from the cache or from another's request.
    pub fresh: bool,
    /// `no-store`: do not keep the answer.
    pub forget: bool,
}

impl Call {
    /// Begins a call.
    ///
    /// # Errors
    /// `invalid_field` when the timeout header is not a whole number of milliseconds from 1 to the limit.
    pub fn begin(headers: &HeaderMap, clock: &Clock, default_ms: u64, most_ms: u64) -> Result<Self, Failure> {
        let received_at_ms = clock.now_unix_ms();
        let traceparent = headers.get("traceparent").and_then(|value| value.to_str().ok());
        Ok(Self {
            request_id: RequestId::new(),
            trace: TraceContext::continue_from(traceparent),
            received_at_ms,
            received_at_us: clock.monotonic_us(),
            deadline_ms: received_at_ms + timeout_ms(headers, default_ms, most_ms)?,
            cache: cache_wish(headers),
        })
    }
}

fn timeout_ms(headers: &HeaderMap, default_ms: u64, most_ms: u64) -> Result<u64, Failure> {
    let sent = TIMEOUT_HEADERS
        .into_iter()
        .find_map(|name| Some((name, headers.get(name)?)));
    let Some((name, value)) = sent else {
        return Ok(default_ms);
    };
    let parsed = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    parsed.filter(|ms| (1..=most_ms).contains(ms)).ok_or_else(|| {
        let message = format!("header '{name}' must be a whole number of milliseconds from 1 to {most_ms}");
        Failure::new(ErrorCode::InvalidField, message).param(name)
    })
}

fn cache_wish(headers: &HeaderMap) -> CacheWish {
    let mut wish = CacheWish::default();
    for value in headers.get_all(header::CACHE_CONTROL) {
        for directive in value.to_str().unwrap_or_default().split(',') {
            let directive = directive.trim();
            if directive.eq_ignore_ascii_case("no-store") {
                wish = CacheWish {
                    fresh: true,
                    forget: true,
                };
            } else if directive.eq_ignore_ascii_case("no-cache") {
                wish.fresh = true;
            }
        }
    }
    wish
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn begin(name: &'static str, value: &'static str) -> Result<Call, Failure> {
        let pair = (HeaderName::from_static(name), HeaderValue::from_static(value));
        Call::begin(&HeaderMap::from_iter([pair]), &Clock::real(), 60_000, 600_000)
    }

    #[test]
    fn deadlines_and_wishes() {
        let call = begin("x-portalis-timeout-ms", "250").unwrap();
        assert_eq!(call.deadline_ms - call.received_at_ms, 250);
        for name in TIMEOUT_HEADERS {
            for bad in ["0", "600001", "-1", "1.5", "soon", ""] {
                let failure = begin(name, bad).unwrap_err();
                assert_eq!(failure.param.as_deref(), Some(name), "{bad}");
            }
        }
        let call = begin("x-request-timeout-ms", "70").unwrap();
        assert_eq!(call.deadline_ms - call.received_at_ms, 70);
        let wish = |value| begin("cache-control", value).unwrap().cache;
        assert_eq!(
            wish("max-age=0, No-Cache"),
            CacheWish {
                fresh: true,
                forget: false
            }
        );
        assert_eq!(
            wish("no-store"),
            CacheWish {
                fresh: true,
                forget: true
            }
        );
        assert_eq!(wish("public"), CacheWish::default());
    }

    #[test]
    fn the_clients_trace_goes_on() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let call = begin("traceparent", parent).unwrap();
        assert_eq!(call.trace.trace_id_hex(), "0af7651916cd43dd8448eb211c80319c");
        assert_ne!(call.trace.to_string(), parent, "a new span of the same trace");
    }
}
