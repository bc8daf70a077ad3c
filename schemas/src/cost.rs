//! Priced facts. Input: what workers ran and gateways answered from the cache. Output: bodies of
//! `portalis.v1.cost.<tenant>.<model>` and of `portalis.v1.usage.get`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::event_id;
use crate::money::NanoUsd;

/// Facts of one tenant and model that were published together. One message holds many events because a batch
/// finishes many requests at once; each event is booked by its own id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CostBatch {
    /// The facts.
    pub events: Vec<CostEvent>,
}

/// One fact, booked exactly once by `event_id`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CostEvent {
    /// Unique key in the ledger, deterministic: see [`computed_event_id`], [`waste_event_id`], [`cached_event_id`].
    pub event_id: String,
    /// What kind of fact.
    pub kind: CostKind,
    /// The tenant who pays.
    pub tenant: String,
    /// The key that asked.
    pub key_id: String,
    /// The model's true name.
    pub model: String,
    /// What was done: `embed`, `rank`, `generate`.
    pub operation: String,
    /// The request, or for cached answers the gateway's report.
    pub request_id: String,
    /// Requests this stands for: 1 when computed, a count when cached, 0 when waste.
    pub requests: u64,
    /// Tokens in, special tokens included.
    pub input_tokens: u64,
    /// Tokens out.
    #[serde(default)]
    pub output_tokens: u64,
    /// Share of the device's busy time in nanoseconds; the shares of a batch sum to its time exactly.
    pub compute_ns: u64,
    /// Wait before its first batch, in microseconds.
    #[serde(default)]
    pub queue_us: u64,
    /// Delivery attempt, from 1.
    pub attempt: u32,
    /// Kind of device: `cpu`, or a GPU's name.
    pub device: String,
    /// Terms of the device.
    pub terms: DeviceTerms,
    /// Who reports it.
    pub reporter: String,
    /// When it happened, Unix milliseconds.
    pub occurred_at_ms: u64,
}

/// What kind of fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CostKind {
    /// A request was computed and answered.
    Computed,
    /// A request was stopped because its client left; it pays for what ran.
    Cancelled,
    /// Requests were answered from the cache or by somebody else's identical request.
    Cached,
    /// Device time that nobody pays for: an attempt that was given up or done twice.
    Waste,
    /// A kind newer than this program; kept, never priced.
    #[serde(other)]
    Unknown,
}

impl CostKind {
    /// The kind's name in the ledger.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Computed => "computed",
            Self::Cancelled => "cancelled",
            Self::Cached => "cached",
            Self::Waste => "waste",
            Self::Unknown => "unknown",
        }
    }
}

/// Terms on which a device is had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceTerms {
    /// Paid by the hour, ours until given back.
    #[default]
    OnDemand,
    /// Cheaper, may be taken away.
    Spot,
    /// Terms newer than this program; priced as on-demand.
    #[serde(other)]
    Unknown,
}

/// Id of the fact that a request was computed: the same for every attempt, so a tenant pays once.
#[must_use]
pub fn computed_event_id(request_id: &str) -> String {
    event_id(&[b"computed", request_id.as_bytes()])
}

/// Id of the fact that an attempt was wasted.
#[must_use]
pub fn waste_event_id(request_id: &str, attempt: u32, reporter: &str) -> String {
    event_id(&[
        b"waste",
        request_id.as_bytes(),
        &attempt.to_le_bytes(),
        reporter.as_bytes(),
    ])
}

/// Id of one report of cached answers: the gateway instance and its running number.
#[must_use]
pub fn cached_event_id(gateway: &str, report: u64) -> String {
    event_id(&[b"cached", gateway.as_bytes(), &report.to_le_bytes()])
}

/// Gateway or CLI → cost-accounting. Body of `portalis.v1.usage.get`. The identity header says whose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UsageGet {
    /// Only this key, `None` = the whole tenant.
    pub key_id: Option<String>,
    /// The tenant.
    pub tenant: String,
    /// From this Unix second (rounded down to the hour).
    #[serde(default)]
    pub start_s: Option<u64>,
    /// Up to this Unix second (rounded up to the hour).
    #[serde(default)]
    pub end_s: Option<u64>,
}

/// cost-accounting → asker.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct UsageReport {
    /// Requests answered: computed and cached.
    pub requests: u64,
    /// Requests computed, those whose client left included.
    pub computed: u64,
    /// Requests answered without computing.
    pub cached: u64,
    /// Requests for which no price was found; their cost is missing from `cost`, not zero.
    #[serde(default)]
    pub unpriced: u64,
    /// Tokens in.
    pub input_tokens: u64,
    /// Tokens out.
    pub output_tokens: u64,
    /// Device time, nanoseconds.
    pub compute_ns: u64,
    /// What it cost.
    pub cost: NanoUsd,
    /// What the cached answers would have cost.
    pub saved: NanoUsd,
    /// Device time of given-up attempts that nobody pays for, nanoseconds.
    #[serde(default)]
    pub wasted_ns: u64,
    /// The ledger holds everything published before this, Unix milliseconds.
    pub as_of_ms: u64,
}
