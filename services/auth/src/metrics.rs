//! Every metric of auth. Input: a registry. Output: counters with labels from closed sets.

use process::metrics::{MetricError, SECONDS_BUCKETS, histogram_vec, int_counter, int_counter_vec, int_gauge};
use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, Registry};

/// What was asked, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Who is this key?
    Resolve,
    /// Permits for a key.
    Hold,
    /// Key administration.
    Keys,
    /// Orders to this instance.
    Control,
}

/// What came of it, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Yes.
    Granted,
    /// No.
    Denied,
    /// A fault of ours.
    Failed,
    /// The message could not be read.
    Malformed,
}

/// Why a key was denied: for operators only, clients are told one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denial {
    /// The question is no question.
    Malformed,
    /// There is no such key.
    Unknown,
    /// The key is there, the secret is another.
    WrongSecret,
    /// It was disabled.
    Disabled,
    /// It was deleted.
    Deleted,
    /// Its time is over.
    Expired,
}

impl Kind {
    fn label(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Hold => "hold",
            Self::Keys => "keys",
            Self::Control => "control",
        }
    }
}

impl Outcome {
    fn label(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Denied => "denied",
            Self::Failed => "failed",
            Self::Malformed => "malformed",
        }
    }
}

impl Denial {
    /// The label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::WrongSecret => "wrong_secret",
            Self::Disabled => "disabled",
            Self::Deleted => "deleted",
            Self::Expired => "expired",
        }
    }
}

/// All of them.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    requests: IntCounterVec,
    seconds: HistogramVec,
    denials: IntCounterVec,
    /// Permits given.
    pub(crate) permits: IntCounter,
    /// Identities signed.
    pub(crate) identities: IntCounter,
    /// Changes told to everyone.
    pub(crate) revocations: IntCounter,
    /// Failures of the key store.
    pub(crate) store_errors: IntCounter,
    /// Keys whose limit is not whole.
    pub(crate) limited_keys: IntGauge,
    /// When the signing key is replaced.
    pub(crate) rotation_at: IntGauge,
}

impl Metrics {
    /// Registers all.
    ///
    /// # Errors
    /// When a name is taken already.
    pub(crate) fn new(registry: &Registry) -> Result<Self, MetricError> {
        let counter = |name, help| int_counter(registry, name, help);
        Ok(Self {
            requests: int_counter_vec(
                registry,
                "portalis_auth_requests_total",
                "Requests by what was asked and what came of it.",
                &["kind", "outcome"],
            )?,
            seconds: histogram_vec(
                registry,
                "portalis_auth_request_seconds",
                "Time from reading a request to its answer.",
                &["kind"],
                SECONDS_BUCKETS,
            )?,
            denials: int_counter_vec(
                registry,
                "portalis_auth_denials_total",
                "Denied keys by the reason that clients are not told.",
                &["reason"],
            )?,
            permits: counter("portalis_auth_permits_total", "Request permits given to gateways.")?,
            identities: counter("portalis_auth_identities_total", "Identities signed.")?,
            revocations: counter("portalis_auth_revocations_total", "Changes of keys told to everyone.")?,
            store_errors: counter("portalis_auth_store_errors_total", "Failures of the key store.")?,
            limited_keys: int_gauge(
                registry,
                "portalis_auth_limited_keys",
                "Keys whose request limit is partly used.",
            )?,
            rotation_at: int_gauge(
                registry,
                "portalis_auth_rotation_timestamp_seconds",
                "When the signing key is replaced, Unix seconds.",
            )?,
        })
    }

    /// Counts a request and its time.
    pub(crate) fn done(&self, kind: Kind, outcome: Outcome, elapsed_us: u64) {
        self.count(kind, outcome);
        self.seconds
            .with_label_values(&[kind.label()])
            .observe(elapsed_us as f64 / 1e6);
    }

    /// Counts a request alone, for those whose time nobody waits for.
    pub(crate) fn count(&self, kind: Kind, outcome: Outcome) {
        self.requests.with_label_values(&[kind.label(), outcome.label()]).inc();
    }

    /// Counts a denied key.
    pub(crate) fn denied(&self, reason: Denial) {
        self.denials.with_label_values(&[reason.label()]).inc();
    }
}
