//! What services say about themselves and what the fleet decides. Input: state of a process. Output: bodies of
//! `portalis.v1.beat.*`, `portalis.v1.control.*`, `portalis.v1.scale.*` and of the `MODELS` bucket.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::generate::is_zero;

/// Time between heartbeats, in milliseconds.
pub const BEAT_INTERVAL_MS: u64 = 1_000;
/// Missed heartbeats after which a worker counts as gone.
pub const MISSED_BEATS: u64 = 3;

/// One heartbeat. Body of `portalis.v1.beat.<service>.<instance>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Beat {
    /// The service, e.g. `gpu-worker`.
    pub service: String,
    /// The instance, unique per start.
    pub instance: String,
    /// Program version.
    pub version: String,
    /// When it started, Unix milliseconds.
    pub started_at_ms: u64,
    /// What it is doing.
    pub state: InstanceState,
    /// Only workers: what they serve and how busy they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerBeat>,
}

/// What an instance is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// Loading; takes no work.
    Starting,
    /// At work.
    Ready,
    /// Finishing what it has; takes no more.
    Draining,
    /// A state newer than this program; counts as not ready.
    #[serde(other)]
    Unknown,
}

/// How busy a worker is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerBeat {
    /// The model's true name.
    pub model: String,
    /// Requests it can hold.
    pub slots: u32,
    /// Requests it holds.
    pub in_hand: u32,
    /// Tokens waiting in it.
    pub waiting_tokens: u64,
    /// Requests finished since its start.
    pub finished_total: u64,
    /// Tokens computed since its start.
    pub tokens_total: u64,
    /// Device busy time since its start, nanoseconds.
    pub busy_ns_total: u64,
    /// Running mean of a batch's compute time, microseconds.
    pub batch_us: u64,
    /// Kind of device: `cpu`, or a GPU's name.
    pub device: String,
    /// Process id on its host, for the local supervisor.
    pub pid: u32,
}

/// What a model is. Value in the `MODELS` bucket under its slug, written by the first worker that loads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelCard {
    /// Its true name, as clients write it.
    pub name: String,
    /// Its token in subjects.
    pub slug: String,
    /// What it does.
    pub operations: Vec<Operation>,
    /// Architecture family: `bert`, `nomic_bert`, `llama`, `echo`.
    pub family: String,
    /// Length of its vectors; 0 for models that make none.
    pub dimensions: u32,
    /// Most tokens of one input, special tokens included.
    pub max_tokens: u32,
    /// Most tokens of prompt and answer together; 0 for models that write nothing.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_context: u32,
    /// Identifies the weights; part of the cache key.
    pub revision: String,
    /// Number format it computes in: `f32`, `bf16`, `int8`.
    pub precision: String,
    /// Number of weights.
    pub parameters: u64,
    /// Whether shorter vectors may be asked for (Matryoshka).
    #[serde(default)]
    pub variable_dimensions: bool,
    /// Whether `input_type` is needed.
    #[serde(default)]
    pub asymmetric: bool,
    /// When the card was first written, Unix seconds.
    pub created_s: u64,
}

/// What a model does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Embeds texts.
    Embed,
    /// Writes text.
    Generate,
    /// Says how well passages answer a query.
    Rank,
    /// Something newer than this program.
    #[serde(other)]
    Unknown,
}

/// autoscaler or CLI → a service. Body of `portalis.v1.control.<service>.<instance>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// Finish what is in hand, take no more, exit.
    Drain,
    /// Local supervisor: run this many workers of a model.
    SetWorkers {
        /// The model's true name.
        model: String,
        /// How many.
        workers: u32,
    },
    /// Local supervisor: which models and how many workers may it run?
    DescribePool,
}

/// The answer to [`Control`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ControlReply {
    /// Done, or under way.
    Accepted,
    /// The pools of a supervisor.
    Pools(Vec<PoolInfo>),
    /// Refused, with the reason.
    Refused(String),
}

/// Workers of one model under one supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoolInfo {
    /// The model's true name.
    pub model: String,
    /// Workers asked for.
    pub wanted: u32,
    /// Workers running.
    pub running: u32,
    /// Fewest allowed.
    pub min: u32,
    /// Most allowed.
    pub max: u32,
}

/// One decision of the autoscaler. Body of `portalis.v1.scale.<model>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScaleDecision {
    /// The model's true name.
    pub model: String,
    /// Workers before.
    pub from: u32,
    /// Workers after.
    pub to: u32,
    /// Why, from a closed set.
    pub reason: ScaleReason,
    /// What was seen.
    pub observed: ScaleInputs,
    /// When, Unix milliseconds.
    pub decided_at_ms: u64,
}

/// Why the fleet changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScaleReason {
    /// Fewer run than must.
    BelowMinimum,
    /// More run than may.
    AboveMaximum,
    /// Work waits longer than it should.
    QueueTooOld,
    /// More work waits than the workers clear in time.
    Backlog,
    /// The workers are idle.
    Idle,
    /// A reason newer than this program.
    #[serde(other)]
    Unknown,
}

/// What a decision was made from.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ScaleInputs {
    /// Messages waiting in the queue.
    pub queued: u64,
    /// Messages in workers' hands.
    pub in_hand: u64,
    /// Age of the oldest waiting message, milliseconds.
    pub oldest_ms: u64,
    /// Workers that are ready.
    pub ready_workers: u32,
    /// Workers that are starting.
    pub starting_workers: u32,
    /// Share of the time the workers were busy, 0 to 1.
    pub busy: f64,
}
