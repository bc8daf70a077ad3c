//! Every metric of cost-accounting. Input: a registry. Output: typed counters; money counts only what was committed.

use process::metrics::{MetricError, SECONDS_BUCKETS, counter, histogram, int_counter, int_counter_vec, int_gauge};
use prometheus::{Counter, Histogram, IntCounter, IntCounterVec, IntGauge, Registry};
use schemas::money::NanoUsd;

use crate::ledger::Booked;

/// Facts in one transaction, up to four times the default limit.
const EVENTS_BUCKETS: &[f64] = &[1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0];

/// The metrics; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    events: IntCounterVec,
    duplicates: IntCounter,
    unpriced: IntCounter,
    compute_seconds: Counter,
    wasted_seconds: Counter,
    cost_usd: Counter,
    saved_usd: Counter,
    /// What could not be booked, by reason.
    pub rejected: IntCounterVec,
    /// Messages that were gone before they were read.
    pub lost_messages: IntCounter,
    /// Times the stream was read from its start because it was replaced.
    pub start_overs: IntCounter,
    /// Messages in the stream that are not booked yet.
    pub lag_messages: IntGauge,
    /// Time of one transaction.
    pub booking_seconds: Histogram,
    /// Facts of one transaction.
    pub batch_events: Histogram,
    /// Transactions that failed and were tried again.
    pub failures: IntCounter,
    /// Questions for usage, by outcome.
    pub usage_requests: IntCounterVec,
}

impl Metrics {
    /// Registers all of them.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(registry: &Registry) -> Result<Self, MetricError> {
        let count = |name, help| int_counter(registry, name, help);
        let sum = |name, help| counter(registry, name, help);
        let counts = |name, help, label| int_counter_vec(registry, name, help, &[label]);
        Ok(Self {
            events: counts("portalis_ledger_events_total", "Facts booked, by kind.", "kind")?,
            duplicates: count(
                "portalis_ledger_duplicates_total",
                "Facts that came again and changed nothing.",
            )?,
            unpriced: count(
                "portalis_ledger_unpriced_requests_total",
                "Requests booked without a price.",
            )?,
            compute_seconds: sum(
                "portalis_ledger_compute_seconds_total",
                "Device time booked to tenants.",
            )?,
            wasted_seconds: sum(
                "portalis_ledger_wasted_seconds_total",
                "Device time that nobody pays for.",
            )?,
            cost_usd: sum("llm_cost_usd_total", "Dollars charged.")?,
            saved_usd: sum(
                "cache_savings_usd_total",
                "Dollars that cached answers would have cost.",
            )?,
            rejected: counts(
                "portalis_ledger_rejected_total",
                "Messages and facts that could not be booked, by reason.",
                "reason",
            )?,
            lost_messages: count(
                "portalis_ledger_lost_messages_total",
                "Messages that were gone from the stream before they were read.",
            )?,
            start_overs: count(
                "portalis_ledger_start_overs_total",
                "Times the stream was read from its start because it had been replaced.",
            )?,
            lag_messages: int_gauge(
                registry,
                "portalis_ledger_lag_messages",
                "Messages of the stream that are not booked yet.",
            )?,
            booking_seconds: histogram(
                registry,
                "portalis_ledger_booking_seconds",
                "Time of one booking transaction.",
                SECONDS_BUCKETS,
            )?,
            batch_events: histogram(
                registry,
                "portalis_ledger_batch_events",
                "Facts of one booking transaction.",
                EVENTS_BUCKETS,
            )?,
            failures: count(
                "portalis_ledger_failures_total",
                "Booking transactions that failed and were tried again.",
            )?,
            usage_requests: counts(
                "portalis_usage_requests_total",
                "Questions for usage, by outcome.",
                "outcome",
            )?,
        })
    }

    /// Counts what a transaction really changed.
    pub fn booked(&self, booked: &Booked) {
        self.duplicates.inc_by(booked.duplicates);
        for sums in &booked.kinds {
            self.events.with_label_values(&[sums.kind.as_str()]).inc_by(sums.events);
            self.unpriced.inc_by(sums.unpriced);
            let seconds = if sums.kind == "waste" {
                &self.wasted_seconds
            } else {
                &self.compute_seconds
            };
            seconds.inc_by(sums.compute_ns as f64 / 1e9);
            // A counter of dollars is for dashboards; money itself stays in the ledger as integers.
            self.cost_usd.inc_by(NanoUsd(sums.cost_nano_usd).as_usd());
            self.saved_usd.inc_by(NanoUsd(sums.saved_nano_usd).as_usd());
        }
    }
}
