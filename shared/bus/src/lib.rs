//! The only user of async-nats. Input: subjects as text, payloads as bytes, streams as plain data from `schemas`.
//! Output: a connection that fails fast and heals itself, requests that do not leak, pulls with exact credits,
//! streams whose settings are proved, and buckets whose watches survive a restart of the broker.
//!
//! What the client library does badly and what stands here instead (each reproduced, see the tests):
//! its `request()` leaks one entry per unanswered call (own demultiplexer: `request.rs`); it waits silently while
//! disconnected (`connection.rs` gates every publish); `flush()` is no round trip (`Bus::round_trip`); `drain()` and
//! `unsubscribe()` lose messages under load (never used: `serve.rs`); default prefetch burns the ack wait (`pull.rs`).

pub mod beat;
mod broker_runtime;
mod config;
pub mod connected;
mod connection;
pub mod control;
mod credits;
mod cursor;
mod ensure;
mod error;
mod gather;
mod headers;
mod jetstream;
mod job;
mod kv;
mod link;
mod message;
mod pending;
mod publish;
mod pull;
mod reader;
mod request;
mod serve;
mod stored;
mod subscribe;
mod time;
mod version;

pub use broker_runtime::broker_environment;
pub use config::BusConfig;
pub use connection::Bus;
pub use credits::EndReason;
pub use error::{BusError, FullLimit, JetStreamError, KvError, PublishError};
pub use gather::{Gather, Gathering};
pub use headers::Headers;
pub use jetstream::{ConsumerInfo, StreamInfo};
pub use job::Job;
pub use kv::{Bucket, Entry, Watch, WatchEvent};
pub use link::{BusEvent, BusStats, EventHook};
pub use message::Message;
pub use publish::{PublishAck, parse_publish_ack};
pub use pull::{ConsumerRef, PullEvent, Puller};
pub use reader::Reader;
pub use serve::{ServeOptions, ServeSummary};
pub use stored::StoredMessage;
pub use subscribe::Subscription;
pub use version::{MINIMUM_SERVER_VERSION, ServerVersion};
