//! Registers metrics: a registry, a name and labels in, the typed metric or a typed error out.

use prometheus::core::Collector;
use prometheus::{
    Counter, CounterVec, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

/// Upper bounds for durations in seconds: 100 µs (a hop over the broker) to 60 s (the longest deadline), about 2.5-fold apart.
pub const SECONDS_BUCKETS: &[f64] = &[
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// Upper bounds for requests in one batch: powers of two, as batches are measured.
pub const BATCH_SIZE_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// Upper bounds for tokens in one request or batch: powers of two up to the largest token budget.
pub const TOKENS_BUCKETS: &[f64] = &[
    8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0,
];

/// What the name of a metric begins with.
const PREFIX: &str = "portalis_";

/// Names that dashboards knew before this rule; they stay as they are.
const INHERITED_NAMES: [&str; 8] = [
    "llm_cost_usd_total",
    "llm_cost_per_request_usd",
    "cache_savings_usd_total",
    "model_routing_savings_usd_total",
    "worker_queue_depth",
    "tiered_cache_hits_total",
    "batch_processing_requests_total",
    "task_complexity_score",
];

/// Why a metric was not registered.
#[derive(Debug, thiserror::Error)]
pub enum MetricError {
    /// The name breaks the naming rule.
    #[error("metric `{name}` must be named {PREFIX}<noun>_<unit> in lowercase letters, digits and underscores")]
    Name {
        /// The name.
        name: String,
    },
    /// The registry has it already, or its labels are not usable.
    #[error("metric `{name}` cannot be registered")]
    Register {
        /// The name.
        name: String,
        /// What the registry said.
        #[source]
        source: prometheus::Error,
    },
}

/// A counter of whole things.
///
/// # Errors
/// As every function here: a bad name, a name taken, or unusable labels.
pub fn int_counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter, MetricError> {
    register(registry, name, IntCounter::new(name, help))
}

/// Counters of whole things by label.
///
/// # Errors
/// See [`int_counter`].
pub fn int_counter_vec(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, MetricError> {
    register(registry, name, IntCounterVec::new(Opts::new(name, help), labels))
}

/// A counter of fractions, such as seconds or dollars.
///
/// # Errors
/// See [`int_counter`].
pub fn counter(registry: &Registry, name: &str, help: &str) -> Result<Counter, MetricError> {
    register(registry, name, Counter::new(name, help))
}

/// Counters of fractions by label.
///
/// # Errors
/// See [`int_counter`].
pub fn counter_vec(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<CounterVec, MetricError> {
    register(registry, name, CounterVec::new(Opts::new(name, help), labels))
}

/// A whole number that goes up and down.
///
/// # Errors
/// See [`int_counter`].
pub fn int_gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge, MetricError> {
    register(registry, name, IntGauge::new(name, help))
}

/// Whole numbers that go up and down, by label.
///
/// # Errors
/// See [`int_counter`].
pub fn int_gauge_vec(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, MetricError> {
    register(registry, name, IntGaugeVec::new(Opts::new(name, help), labels))
}

/// A number that goes up and down.
///
/// # Errors
/// See [`int_counter`].
pub fn gauge(registry: &Registry, name: &str, help: &str) -> Result<Gauge, MetricError> {
    register(registry, name, Gauge::new(name, help))
}

/// Numbers that go up and down, by label.
///
/// # Errors
/// See [`int_counter`].
pub fn gauge_vec(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, MetricError> {
    register(registry, name, GaugeVec::new(Opts::new(name, help), labels))
}

/// A distribution with the given upper bounds.
///
/// # Errors
/// See [`int_counter`].
pub fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, MetricError> {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    register(registry, name, Histogram::with_opts(options))
}

/// Distributions by label, with the given upper bounds.
///
/// # Errors
/// See [`int_counter`].
pub fn histogram_vec(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
    buckets: &[f64],
) -> Result<HistogramVec, MetricError> {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    register(registry, name, HistogramVec::new(options, labels))
}

fn register<M>(registry: &Registry, name: &str, built: prometheus::Result<M>) -> Result<M, MetricError>
where
    M: Collector + Clone + 'static,
{
    let snake = name
        .bytes()
        .all(|letter| matches!(letter, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    if !snake || !(name.starts_with(PREFIX) || INHERITED_NAMES.contains(&name)) {
        return Err(MetricError::Name { name: name.to_owned() });
    }
    let failed = |source| MetricError::Register {
        name: name.to_owned(),
        source,
    };
    let metric = built.map_err(failed)?;
    registry.register(Box::new(metric.clone())).map_err(failed)?;
    Ok(metric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_once_under_a_proper_name() {
        let registry = Registry::new();
        let requests = int_counter_vec(&registry, "portalis_requests_total", "Requests.", &["outcome"]).unwrap();
        requests.with_label_values(&["ok"]).inc();
        let wait = histogram(&registry, "portalis_wait_seconds", "Wait.", SECONDS_BUCKETS).unwrap();
        wait.observe(0.02);
        int_gauge(&registry, "worker_queue_depth", "Inherited.").unwrap();
        let twice = int_counter_vec(&registry, "portalis_requests_total", "Requests.", &["outcome"]);
        assert!(matches!(twice, Err(MetricError::Register { name, .. }) if name == "portalis_requests_total"));
        for name in ["requests_total", "portalis_Requests", "portalis_requests-total", ""] {
            assert!(
                matches!(gauge(&registry, name, "x"), Err(MetricError::Name { .. })),
                "{name}"
            );
        }
        assert_eq!(registry.gather().len(), 3);
    }

    #[test]
    fn buckets_rise() {
        for buckets in [SECONDS_BUCKETS, BATCH_SIZE_BUCKETS, TOKENS_BUCKETS] {
            assert!(buckets.is_sorted_by(|low, high| low < high));
        }
    }
}
