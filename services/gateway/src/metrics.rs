//! Every metric of the gateway. Input: the registry of the process. Output: handles that the steps of a request touch.

use process::metrics::{MetricError, SECONDS_BUCKETS, histogram_vec, int_counter, int_counter_vec, int_gauge};
use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, Registry};

/// The gateway's metrics.
#[derive(Clone)]
pub struct Metrics {
    /// Requests by route and status class.
    pub requests: IntCounterVec,
    /// Time from the first byte of a request to its answer, by route.
    pub request_seconds: HistogramVec,
    /// Requests being answered.
    pub in_flight: IntGauge,
    /// Answers by where they came from: `local`, `shared`, `coalesced`, `miss`, `bypass`.
    pub cache: IntCounterVec,
    /// Failures by error code.
    pub failures: IntCounterVec,
    /// Work published again, by reason: `reconnect`, `no_queue`, `unacknowledged`, `lost_frame`,
    /// `silent_worker`.
    pub republished: IntCounterVec,
    /// Work given back to the queue because its worker went silent.
    pub rescued: IntCounter,
    /// Requests stopped because their client left.
    pub cancelled: IntCounter,
    /// Streamed answers being written.
    pub streams: IntGauge,
    /// Time from the first byte of a request to the first text of its streamed answer, by route.
    pub first_text_seconds: HistogramVec,
    /// Streamed answers ended because their client read too slowly.
    pub slow_readers: IntCounter,
    /// Messages that could not be read, by subject family.
    pub malformed: IntCounterVec,
    /// Keys asked of auth, by outcome.
    pub resolved: IntCounterVec,
    /// Answers that the shared tier was not given because too many were waiting.
    pub unshared: IntCounter,
    /// Reports of cached answers that the ledger stream has taken.
    pub cached_reports: IntCounter,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn new(registry: &Registry) -> Result<Self, MetricError> {
        let counter = |name: &str, help: &str| int_counter(registry, name, help);
        let counters = |name: &str, help: &str, label: &str| int_counter_vec(registry, name, help, &[label]);
        let seconds = |name: &str, help: &str| histogram_vec(registry, name, help, &["route"], SECONDS_BUCKETS);
        Ok(Self {
            requests: int_counter_vec(
                registry,
                "portalis_gateway_requests_total",
                "HTTP requests by route and status class.",
                &["route", "status"],
            )?,
            request_seconds: seconds(
                "portalis_gateway_request_duration_seconds",
                "Time from the first byte of a request to its answer.",
            )?,
            in_flight: int_gauge(
                registry,
                "portalis_gateway_requests_in_flight",
                "Requests being answered.",
            )?,
            cache: counters("tiered_cache_hits_total", "Answers by the tier they came from.", "tier")?,
            failures: counters("portalis_gateway_failures_total", "Failures by error code.", "code")?,
            republished: counters(
                "portalis_gateway_republished_total",
                "Work published again, by reason.",
                "reason",
            )?,
            rescued: counter(
                "portalis_gateway_rescued_total",
                "Work given back to the queue because its worker went silent.",
            )?,
            cancelled: counter(
                "portalis_gateway_cancelled_total",
                "Requests whose clients left before the answer.",
            )?,
            streams: int_gauge(
                registry,
                "portalis_gateway_streams_open",
                "Streamed answers being written.",
            )?,
            first_text_seconds: seconds(
                "portalis_gateway_first_text_seconds",
                "Time from the first byte of a request to the first text of its streamed answer.",
            )?,
            slow_readers: counter(
                "portalis_gateway_slow_readers_total",
                "Streamed answers ended because their client read too slowly.",
            )?,
            malformed: counters(
                "portalis_gateway_malformed_messages_total",
                "Messages that could not be read.",
                "subject",
            )?,
            resolved: counters(
                "portalis_gateway_keys_resolved_total",
                "Keys asked of auth, by outcome.",
                "outcome",
            )?,
            unshared: counter(
                "portalis_gateway_unshared_total",
                "Answers that the shared cache was not given because too many were waiting.",
            )?,
            cached_reports: counter(
                "portalis_gateway_cached_reports_total",
                "Reports of cached answers that the ledger stream has taken.",
            )?,
        })
    }
}
