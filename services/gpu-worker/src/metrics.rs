//! Every metric of the worker. Input: the registry of the process. Output: handles that the steps of a batch touch.

use process::metrics::{
    BATCH_SIZE_BUCKETS, MetricError, SECONDS_BUCKETS, TOKENS_BUCKETS, counter, histogram, int_counter, int_counter_vec,
    int_gauge,
};
use prometheus::{Counter, Histogram, IntCounter, IntCounterVec, IntGauge, Registry};

/// The worker's metrics.
#[derive(Clone)]
pub struct Metrics {
    /// Requests finished, by outcome: `done`, `failed`, `cancelled`, `expired`, `given_back`, `dead`, `malformed`,
    /// `unauthorized`.
    pub requests: IntCounterVec,
    /// Texts of a batch.
    pub batch_items: Histogram,
    /// Tokens of a batch.
    pub batch_tokens: Histogram,
    /// Wait from submission to the start of the first batch.
    pub queue_seconds: Histogram,
    /// Compute time of a batch.
    pub compute_seconds: Histogram,
    /// Time the device was busy.
    pub busy_seconds: Counter,
    /// The part of it that went into masks of constrained answers.
    pub masking_seconds: Counter,
    /// Tokens computed.
    pub tokens: IntCounter,
    /// Requests held.
    pub in_hand: IntGauge,
    /// Tokens waiting in the worker.
    pub waiting_tokens: IntGauge,
    /// Sequences whose blocks were taken for others; they are computed again later.
    pub preempted: IntCounter,
    /// Deliveries that were not the first.
    pub redelivered: IntCounter,
    /// Cost events that the stream has taken.
    pub cost_events: IntCounter,
    /// Tries to publish cost events that failed.
    pub cost_retries: IntCounter,
    /// Messages moved to the dead letters.
    pub dead_letters: IntCounter,
    /// Messages that could not be read, by subject family.
    pub malformed: IntCounterVec,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn new(registry: &Registry) -> Result<Self, MetricError> {
        let count = |name: &str, help: &str| int_counter(registry, name, help);
        let gauge = |name: &str, help: &str| int_gauge(registry, name, help);
        let seconds = |name: &str, help: &str| histogram(registry, name, help, SECONDS_BUCKETS);
        Ok(Self {
            requests: int_counter_vec(
                registry,
                "batch_processing_requests_total",
                "Requests finished by the worker, by outcome.",
                &["outcome"],
            )?,
            batch_items: histogram(
                registry,
                "portalis_worker_batch_items",
                "Texts of a batch.",
                BATCH_SIZE_BUCKETS,
            )?,
            batch_tokens: histogram(
                registry,
                "portalis_worker_batch_tokens",
                "Tokens of a batch.",
                TOKENS_BUCKETS,
            )?,
            queue_seconds: seconds(
                "portalis_worker_queue_wait_seconds",
                "Wait from submission to the start of the first batch.",
            )?,
            compute_seconds: seconds("portalis_worker_compute_seconds", "Compute time of a batch.")?,
            busy_seconds: counter(
                registry,
                "portalis_worker_busy_seconds_total",
                "Time the device was busy.",
            )?,
            masking_seconds: counter(
                registry,
                "portalis_worker_masking_seconds_total",
                "Time of the device's steps that went into masks of constrained answers.",
            )?,
            tokens: count("portalis_worker_tokens_total", "Tokens computed.")?,
            in_hand: gauge("portalis_worker_requests_in_hand", "Requests held.")?,
            waiting_tokens: gauge("portalis_worker_waiting_tokens", "Tokens waiting in the worker.")?,
            preempted: count(
                "portalis_worker_preempted_total",
                "Sequences whose cache blocks were taken for others and computed again later.",
            )?,
            redelivered: count(
                "portalis_worker_redelivered_total",
                "Deliveries of work that were not the first.",
            )?,
            cost_events: count(
                "portalis_worker_cost_events_total",
                "Cost events that the stream has taken.",
            )?,
            cost_retries: count(
                "portalis_worker_cost_retries_total",
                "Tries to publish cost events that failed.",
            )?,
            dead_letters: count(
                "portalis_worker_dead_letters_total",
                "Messages moved to the dead letters.",
            )?,
            malformed: int_counter_vec(
                registry,
                "portalis_worker_malformed_messages_total",
                "Messages that could not be read, by subject family.",
                &["subject"],
            )?,
        })
    }
}
