//! Every metric of the cache. Input: what happens. Output: counters and gauges in the registry.

use process::metrics::{MetricError, int_counter, int_counter_vec, int_gauge};
use prometheus::{IntCounter, IntCounterVec, IntGauge, Registry};

/// Subjects whose messages are read; label of [`Metrics::malformed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Get,
    Put,
    Purge,
    Index,
    Control,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Purge => "purge",
            Self::Index => "index",
            Self::Control => "control",
        }
    }
}

/// The metrics; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// Look-ups by `result`: hit, miss.
    pub(crate) lookups: IntCounterVec,
    /// Puts by `result`: stored, or why not.
    pub(crate) puts: IntCounterVec,
    /// Answers that left by `cause`.
    pub(crate) removals: IntCounterVec,
    /// Messages that could not be read, by `subject`.
    pub(crate) malformed: IntCounterVec,
    /// Purges carried out.
    pub(crate) purges: IntCounter,
    /// Fingerprints told to gateways.
    pub(crate) announced: IntCounter,
    /// Fingerprints not told: too many waited, or the broker was away.
    pub(crate) unannounced: IntCounter,
    /// Answers held.
    pub(crate) entries: IntGauge,
    /// Bytes they take.
    pub(crate) bytes: IntGauge,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, MetricError> {
        let metrics = Self {
            lookups: int_counter_vec(
                registry,
                "portalis_cache_lookups_total",
                "Look-ups in the shared tier by result: hit or miss.",
                &["result"],
            )?,
            puts: int_counter_vec(
                registry,
                "portalis_cache_puts_total",
                "Answers offered to the shared tier by result: stored, or why not.",
                &["result"],
            )?,
            removals: int_counter_vec(
                registry,
                "portalis_cache_removals_total",
                "Answers that left the shared tier by cause: expired, removed, replaced or size.",
                &["cause"],
            )?,
            malformed: int_counter_vec(
                registry,
                "portalis_cache_malformed_messages_total",
                "Messages that could not be read, by subject.",
                &["subject"],
            )?,
            purges: int_counter(registry, "portalis_cache_purges_total", "Purges carried out.")?,
            announced: int_counter(
                registry,
                "portalis_cache_announced_fingerprints_total",
                "Answers that gateways were told of.",
            )?,
            unannounced: int_counter(
                registry,
                "portalis_cache_unannounced_fingerprints_total",
                "Answers that gateways were not told of: too many waited, or the broker was away.",
            )?,
            entries: int_gauge(registry, "portalis_cache_entries", "Answers held.")?,
            bytes: int_gauge(registry, "portalis_cache_bytes", "Bytes that the answers held take.")?,
        };
        // Shown from the start, so that a rate can be taken of the first event.
        for result in ["hit", "miss"] {
            metrics.lookups.with_label_values(&[result]);
        }
        metrics.puts.with_label_values(&["stored"]);
        Ok(metrics)
    }

    pub(crate) fn count_malformed(&self, kind: Kind) {
        self.malformed.with_label_values(&[kind.as_str()]).inc();
    }
}
