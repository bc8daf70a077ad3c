//! The bus against a real nats-server, one server per test.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod connection;
mod kv;
mod pull;
mod reader;
mod request;
mod service;
mod streams;

use std::time::Duration;

use bus::{Bus, BusConfig, Headers};
use bytes::Bytes;
use schemas::streams::{Ack, BucketSpec, ConsumerSpec, Retention, Storage, StreamSpec};
use testkit::NatsServer;

/// Limit for a broken build, not a measurement.
const LONG: Duration = Duration::from_secs(30);

async fn connect(server: &NatsServer) -> Bus {
    Bus::connect(&BusConfig::for_url(&server.url()), "test", None)
        .await
        .unwrap()
}

async fn is_connected(bus: &Bus) {
    let mut connected = bus.connected();
    tokio::time::timeout(LONG, connected.wait_for(|up| *up))
        .await
        .expect("connected again")
        .unwrap();
    bus.round_trip(LONG).await.unwrap();
}

async fn is_lost(bus: &Bus) {
    let mut connected = bus.connected();
    tokio::time::timeout(LONG, connected.wait_for(|up| !*up))
        .await
        .expect("loss noticed")
        .unwrap();
}

/// A queue over `work.>`.
fn queue(name: &str, storage: Storage) -> StreamSpec {
    StreamSpec {
        name: name.to_owned(),
        subjects: vec!["work.>".to_owned()],
        retention: Retention::WorkQueue,
        storage,
        replicas: 1,
        max_messages: Some(10_000),
        max_messages_per_subject: Some(1_000),
        discard_new: true,
        discard_new_per_subject: true,
        max_bytes: Some(64 * 1024 * 1024),
        max_age_ms: Some(600_000),
        duplicate_window_ms: 120_000,
        max_message_bytes: Some(1_024),
        allow_message_ttl: true,
        deny_delete: false,
        compression: false,
    }
}

/// A log over `log.>`.
fn log(storage: Storage) -> StreamSpec {
    StreamSpec {
        subjects: vec!["log.>".to_owned()],
        retention: Retention::Limits,
        max_messages_per_subject: None,
        discard_new_per_subject: false,
        max_message_bytes: None,
        allow_message_ttl: false,
        ..queue("LOG", storage)
    }
}

fn consumer(stream: &str, name: &str) -> ConsumerSpec {
    ConsumerSpec {
        stream: stream.to_owned(),
        name: name.to_owned(),
        filter_subjects: vec!["work.>".to_owned()],
        ack: Ack::Explicit,
        ack_wait_ms: 60_000,
        max_deliver: Some(5),
        max_ack_pending: 1_000,
        max_waiting: 512,
        memory: false,
        deliver_from_sequence: None,
        inactive_threshold_ms: None,
    }
}

fn bucket(name: &str) -> BucketSpec {
    BucketSpec {
        name: name.to_owned(),
        history: 1,
        storage: Storage::File,
        replicas: 1,
        max_age_ms: None,
        max_bytes: None,
    }
}

async fn store(bus: &Bus, subject: &str, text: impl ToString) -> u64 {
    let payload = Bytes::from(text.to_string());
    bus.publish_acked(subject, Headers::new(), payload, LONG)
        .await
        .unwrap()
        .sequence
}
