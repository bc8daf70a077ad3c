//! Configuration of the gateway. Input: `default.toml` and its layers. Output: typed, checked values.

use bus::BusConfig;
use serde::{Deserialize, Serialize};

/// All sections; `default.toml` explains each key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Connection to the broker.
    pub bus: BusConfig,
    /// HTTP side.
    pub http: HttpConfig,
    /// Keys.
    pub authorize: AuthorizeConfig,
    /// Streamed answers.
    pub stream: StreamConfig,
    /// Caches.
    pub cache: CacheConfig,
    /// Work.
    pub dispatch: DispatchConfig,
    /// Translations.
    pub translation: TranslationConfig,
    /// Reports of cached answers.
    pub usage: UsageConfig,
}

/// HTTP side.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    /// Where clients connect.
    pub address: String,
    /// Largest request body in bytes.
    pub body_limit_bytes: usize,
    /// Longest time to send headers, and then a body.
    pub read_timeout_ms: u64,
    /// Longest time that a client may take nothing of an answer.
    pub write_timeout_ms: u64,
    /// Time a request may take when the client does not say.
    pub default_timeout_ms: u64,
    /// The same for requests that write text.
    pub default_generate_timeout_ms: u64,
    /// Longest time a client may ask for.
    pub max_timeout_ms: u64,
    /// Most requests answered at once.
    pub max_in_flight: usize,
}

/// Keys.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthorizeConfig {
    /// Keys kept in memory.
    pub max_keys: u64,
    /// How long an unknown key is remembered as unknown.
    pub unknown_ttl_ms: u64,
    /// How long limited keys are served without a limiter when auth is away.
    pub fail_open_ms: u64,
}

/// Streamed answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamConfig {
    /// Silence after which a comment is written, and the head of an answer whose text lets itself be waited for.
    pub keep_alive_ms: u64,
    /// Frames of one answer that may wait for its client.
    pub max_unread_frames: usize,
}

/// Caches.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheConfig {
    /// Answers kept in this process, in bytes.
    pub local_bytes: u64,
    /// How long an answer may be used.
    pub ttl_ms: u64,
    /// Longest wait for the shared tier.
    pub shared_timeout_ms: u64,
    /// Answers are collected this long before the shared tier gets them.
    pub share_interval_ms: u64,
    /// Answers of the shared tier known by fingerprint.
    pub max_known_shared: usize,
}

/// Work.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DispatchConfig {
    /// How long work may wait for a worker's return when the last one is gone.
    pub no_worker_grace_ms: u64,
    /// Longest wait for a worker to say which tokens a text is.
    pub tokens_timeout_ms: u64,
    /// Silence of the broker after which work is published again.
    pub publish_ack_timeout_ms: u64,
    /// Time between two looks at all that is in flight.
    pub rescue_interval_ms: u64,
}

/// Translations.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TranslationConfig {
    /// Longest source in bytes.
    pub max_source_bytes: usize,
    /// Most functions of one module.
    pub max_functions: usize,
    /// Most top-level statements of one module.
    pub max_statements: usize,
    /// Functions of one module asked for at once.
    pub parallel: usize,
}

/// Reports of cached answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageConfig {
    /// Cached answers are reported together this often.
    pub report_interval_ms: u64,
}
