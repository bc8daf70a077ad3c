//! Configuration of the worker. Input: `default.toml` and its layers. Output: typed, checked values.

use std::path::PathBuf;

use bus::BusConfig;
use schemas::cost::DeviceTerms;
use serde::{Deserialize, Serialize};

/// All sections; `default.toml` explains each key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Connection to the broker.
    pub bus: BusConfig,
    /// The model.
    pub model: ModelConfig,
    /// Batching.
    pub batch: BatchConfig,
    /// How much is held.
    pub queue: QueueConfig,
    /// Generation of text.
    pub generation: GenerationConfig,
    /// What it runs on.
    pub device: DeviceConfig,
    /// The echo engine.
    pub echo: EchoConfig,
}

/// The model.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Name under which clients ask for it.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// What computes.
    pub engine: EngineKind,
    /// Number format of the weights: `f32`, `bf16`, `int8` or `int4`.
    pub precision: String,
    /// Threads that compute; 0 = one per core.
    pub threads: usize,
}

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// The model.
    Model,
    /// Vectors made from the token ids, at once.
    Echo,
}

/// Batching.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchConfig {
    /// Most tokens of a batch.
    pub max_tokens: usize,
    /// Most texts of a batch.
    pub max_items: usize,
    /// Longest time a text waits for others.
    pub max_wait_us: u64,
    /// After this time waiting work goes before more urgent lanes.
    pub max_lane_delay_us: u64,
}

/// How much is held.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueConfig {
    /// Requests held at once.
    pub slots: u32,
    /// Nothing more is pulled while this many tokens wait.
    pub max_waiting_tokens: usize,
    /// Time a pull stays open.
    pub pull_expires_ms: u64,
    /// Time between two signs of life of an open pull.
    pub pull_heartbeat_ms: u64,
    /// Most queued messages of one tenant on one lane of this model.
    pub max_queued_per_tenant_lane: i64,
}

/// Generation of text.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerationConfig {
    /// Answers written at once.
    pub max_sequences: usize,
    /// Most tokens of a step.
    pub max_step_tokens: usize,
    /// Memory of the key-value cache, in MiB.
    pub kv_cache_mib: u64,
}

/// What it runs on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    /// Terms on which it is had.
    pub terms: DeviceTerms,
}

/// The echo engine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EchoConfig {
    /// Length of its vectors.
    pub dimensions: usize,
    /// Simulated device time of each batch.
    pub batch_us: u64,
    /// The text that aborts the process.
    pub abort_on: String,
}
