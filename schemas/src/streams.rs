//! Streams, consumers and buckets as plain data. Input: model slugs. Output: what `bus` asks the broker for.
//! The figures and the traps behind them: docs/adr/0002-jetstream-on-the-hot-path.md.

use serde::{Deserialize, Serialize};

use crate::subjects;
use crate::work::Lane;

/// What removes a message from a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Retention {
    /// Removed when acknowledged.
    WorkQueue,
    /// Removed by age or size only.
    Limits,
}

/// Where a stream lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Storage {
    /// In memory: fast; the gateway that holds the request sends it again after a broker restart.
    Memory,
    /// In files: survives a broker restart.
    File,
}

/// A stream as asked for; `bus` compares the broker's echo with it field by field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamSpec {
    /// Name.
    pub name: String,
    /// Subjects it takes.
    pub subjects: Vec<String>,
    /// What removes a message.
    pub retention: Retention,
    /// Where it lives.
    pub storage: Storage,
    /// Copies in a cluster.
    pub replicas: usize,
    /// Most messages, `None` = no limit.
    pub max_messages: Option<i64>,
    /// Most messages on one subject, `None` = no limit.
    pub max_messages_per_subject: Option<i64>,
    /// Refuse new messages when full (else the oldest go).
    pub discard_new: bool,
    /// The same for one subject.
    pub discard_new_per_subject: bool,
    /// Most bytes, `None` = no limit.
    pub max_bytes: Option<i64>,
    /// Oldest message kept, in milliseconds, `None` = for ever.
    pub max_age_ms: Option<u64>,
    /// How long a message id is remembered, in milliseconds.
    pub duplicate_window_ms: u64,
    /// Largest message, in bytes, `None` = the server's limit.
    pub max_message_bytes: Option<i32>,
    /// Whether `Nats-TTL` is honoured.
    pub allow_message_ttl: bool,
    /// Whether single messages can never be deleted.
    pub deny_delete: bool,
    /// Whether files are compressed (S2).
    pub compression: bool,
}

/// How a consumer is told that a message is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ack {
    /// Each message by itself.
    Explicit,
    /// Never: the reader keeps the sequence.
    None,
}

/// A durable pull consumer as asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerSpec {
    /// Stream it reads.
    pub stream: String,
    /// Durable name.
    pub name: String,
    /// Subjects it takes.
    pub filter_subjects: Vec<String>,
    /// How messages are acknowledged.
    pub ack: Ack,
    /// Silence after which a message is given to somebody else, in milliseconds.
    pub ack_wait_ms: u64,
    /// Most deliveries of one message, `None` = no limit.
    pub max_deliver: Option<i64>,
    /// Most unacknowledged messages of all workers together.
    pub max_ack_pending: i64,
    /// Most waiting pulls of all workers together.
    pub max_waiting: i64,
    /// Keep the consumer's state in memory.
    pub memory: bool,
    /// First sequence to deliver, `None` = all.
    pub deliver_from_sequence: Option<u64>,
    /// Idle time after which the broker drops the consumer, `None` = never.
    pub inactive_threshold_ms: Option<u64>,
}

/// A key-value bucket as asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketSpec {
    /// Name.
    pub name: String,
    /// Values kept per key.
    pub history: u8,
    /// Where it lives.
    pub storage: Storage,
    /// Copies in a cluster.
    pub replicas: usize,
    /// Age after which a value goes, in milliseconds, `None` = never.
    pub max_age_ms: Option<u64>,
    /// Most bytes, `None` = no limit.
    pub max_bytes: Option<i64>,
}

/// Most unfinished messages of one tenant on one lane of one model: one tenant can put at most this much ahead of another.
/// A message counts until it is acknowledged, after its bill, so the figure is twice what 256 waiting clients need.
pub const MAX_QUEUED_PER_TENANT_LANE: i64 = 512;
/// Deliveries of one work message before it is dead: two workers may die of bad luck, three died of the message.
pub const MAX_WORK_DELIVERIES: i64 = 3;
/// Silence after which the broker gives work to another worker, in milliseconds. Workers sign every quarter of it;
/// a dead worker's work is given back sooner, by the gateway.
pub const WORK_ACK_WAIT_MS: u64 = 20_000;
/// Largest work message in bytes: the gateway's body limit of 2 MiB and its framing.
pub const MAX_WORK_BYTES: i32 = 3 * 1024 * 1024;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;
const MIB: i64 = 1024 * 1024;

/// The queue of one model, named `WORK_<slug>`.
#[must_use]
pub fn work(slug: &str, max_queued_per_tenant_lane: i64) -> StreamSpec {
    StreamSpec {
        name: work_stream_name(slug),
        subjects: vec![subjects::work_all(slug)],
        retention: Retention::WorkQueue,
        storage: Storage::Memory,
        replicas: 1,
        max_messages: Some(65_536),
        max_messages_per_subject: Some(max_queued_per_tenant_lane),
        discard_new: true,
        discard_new_per_subject: true,
        max_bytes: Some(256 * MIB),
        // No request lives longer than the largest deadline a gateway grants.
        max_age_ms: Some(10 * MINUTE_MS),
        // The same work is published again within seconds, when its acknowledgement is lost; ids that are remembered
        // longer cost the broker memory and time for every message.
        duplicate_window_ms: MINUTE_MS / 2,
        max_message_bytes: Some(MAX_WORK_BYTES),
        allow_message_ttl: true,
        deny_delete: false,
        compression: false,
    }
}

/// Name of a model's work stream.
#[must_use]
pub fn work_stream_name(slug: &str) -> String {
    format!("WORK_{slug}")
}

/// Name of a lane's consumer on every work stream.
#[must_use]
pub fn lane_consumer_name(lane: Lane) -> &'static str {
    lane.as_str()
}

/// The consumer of one lane of a model's queue.
#[must_use]
pub fn work_lane(slug: &str, lane: Lane) -> ConsumerSpec {
    ConsumerSpec {
        stream: work_stream_name(slug),
        name: lane_consumer_name(lane).to_owned(),
        filter_subjects: vec![subjects::work_lane_all(slug, lane)],
        ack: Ack::Explicit,
        ack_wait_ms: WORK_ACK_WAIT_MS,
        max_deliver: Some(MAX_WORK_DELIVERIES),
        max_ack_pending: 20_000,
        max_waiting: 4_096,
        memory: true,
        deliver_from_sequence: None,
        inactive_threshold_ms: None,
    }
}

/// Every priced fact, kept 30 days; the ledger reads it by sequence.
#[must_use]
pub fn cost() -> StreamSpec {
    StreamSpec {
        name: "COST".to_owned(),
        subjects: vec![subjects::COST_ALL.to_owned()],
        retention: Retention::Limits,
        storage: Storage::File,
        replicas: 1,
        max_messages: None,
        max_messages_per_subject: None,
        discard_new: true,
        discard_new_per_subject: false,
        max_bytes: None,
        max_age_ms: Some(30 * DAY_MS),
        duplicate_window_ms: HOUR_MS,
        max_message_bytes: None,
        allow_message_ttl: false,
        deny_delete: true,
        compression: false,
    }
}

/// Dead letters with their reasons, kept 7 days.
#[must_use]
pub fn dead() -> StreamSpec {
    StreamSpec {
        name: "DEAD".to_owned(),
        subjects: vec![subjects::DEAD_ALL.to_owned()],
        max_age_ms: Some(7 * DAY_MS),
        max_bytes: Some(512 * MIB),
        discard_new: false,
        deny_delete: false,
        duplicate_window_ms: HOUR_MS,
        ..cost()
    }
}

/// The broker's notes that a work message was delivered too often, kept until a worker has moved the message.
#[must_use]
pub fn advisories() -> StreamSpec {
    StreamSpec {
        name: "ADVISORIES".to_owned(),
        subjects: vec![subjects::MAX_DELIVERIES_ADVISORIES.to_owned()],
        retention: Retention::WorkQueue,
        max_age_ms: Some(DAY_MS),
        max_bytes: Some(16 * MIB),
        max_messages: Some(100_000),
        discard_new: false,
        deny_delete: false,
        duplicate_window_ms: 2 * MINUTE_MS,
        ..cost()
    }
}

/// The one consumer of [`advisories`], shared by all workers.
#[must_use]
pub fn dead_letter_mover() -> ConsumerSpec {
    ConsumerSpec {
        stream: "ADVISORIES".to_owned(),
        name: "dead_letter_mover".to_owned(),
        filter_subjects: vec![subjects::MAX_DELIVERIES_ADVISORIES.to_owned()],
        ack: Ack::Explicit,
        ack_wait_ms: 10_000,
        max_deliver: None,
        max_ack_pending: 1_000,
        max_waiting: 512,
        memory: false,
        deliver_from_sequence: None,
        inactive_threshold_ms: None,
    }
}

/// What the fleet decided and why, kept 7 days.
#[must_use]
pub fn events() -> StreamSpec {
    StreamSpec {
        name: "EVENTS".to_owned(),
        subjects: vec![subjects::SCALE_ALL.to_owned()],
        max_age_ms: Some(7 * DAY_MS),
        max_bytes: Some(256 * MIB),
        discard_new: false,
        deny_delete: false,
        ..cost()
    }
}

/// Public halves of auth's signing keys, by key id.
#[must_use]
pub fn jwks_bucket() -> BucketSpec {
    BucketSpec {
        name: "JWKS".to_owned(),
        history: 1,
        storage: Storage::File,
        replicas: 1,
        max_age_ms: None,
        max_bytes: Some(MIB),
    }
}

/// Model cards by slug: what the mesh can serve, whether or not a worker is up.
#[must_use]
pub fn models_bucket() -> BucketSpec {
    BucketSpec {
        name: "MODELS".to_owned(),
        max_bytes: Some(16 * MIB),
        ..jwks_bucket()
    }
}
