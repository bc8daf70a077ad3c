//! Settings of the autoscaler. Input: `default.toml` and what is laid over it. Output: typed sections; the reasons of the
//! defaults stand in the file.

use bus::BusConfig;
use serde::Deserialize;

/// All settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The broker.
    pub bus: BusConfig,
    /// When the fleet changes.
    pub policy: Policy,
    /// Who changes it.
    pub actuator: ActuatorConfig,
}

/// When the fleet changes.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// All known work should be done within this time, in milliseconds.
    pub drain_target_ms: u64,
    /// A message should not wait longer than this, in milliseconds.
    pub max_queue_age_ms: u64,
    /// Shortest time between two increases, in milliseconds.
    pub up_hold_ms: u64,
    /// How long fewer workers must have sufficed before one goes, in milliseconds.
    pub idle_hold_ms: u64,
    /// A worker goes only when the others would then be busy for less than this share of the time.
    pub max_busy_after_decrease: f64,
    /// An observation older than this moves nothing, in milliseconds.
    pub stale_after_ms: u64,
}

/// Who changes the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActuatorConfig {
    /// How.
    pub kind: ActuatorKind,
    /// Only for `recommend`: fewest workers of a model; a supervisor has its own limits.
    pub min_workers: u32,
    /// Only for `recommend`: most workers of a model.
    pub max_workers: u32,
}

/// How the fleet is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActuatorKind {
    /// By orders to the supervisors of `portalis up`.
    Local,
    /// Not at all: decisions are only published.
    Recommend,
}
