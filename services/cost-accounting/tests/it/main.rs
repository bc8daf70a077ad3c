//! The service against a real nats-server. Input: facts, broken messages, kills and restarts. Output: exact sums.
#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

#[path = "../../src/example.rs"]
mod example;
mod kill;
mod mesh;

use bus::Headers;
use schemas::cost::{CostBatch, CostEvent, CostKind, UsageReport};
use schemas::{headers, wire};

use crate::example::event;
use crate::mesh::{DEADLINE, Mesh, SUBJECT, batch};

fn tenant(name: &str, number: u64) -> CostEvent {
    CostEvent {
        tenant: name.to_owned(),
        ..event(number)
    }
}

#[tokio::test]
async fn facts_are_booked_once_and_answered_over_the_bus() {
    let mesh = Mesh::start().await;
    let cached = CostEvent {
        event_id: "cached-1".to_owned(),
        kind: CostKind::Cached,
        requests: 3,
        input_tokens: 30,
        compute_ns: 0,
        device: String::new(),
        ..event(9)
    };
    mesh.publish(SUBJECT, batch(&[event(1), event(2), cached])).await;
    // Outside the broker's duplicate window the same facts come as a new message.
    mesh.publish(SUBJECT, batch(&[event(2), event(3)])).await;
    let json = serde_json::to_vec(&CostBatch {
        events: vec![event(4), event(1)],
    })
    .unwrap();
    let as_json = Headers::new().with(headers::CONTENT_TYPE, "application/json");
    mesh.publish_with(SUBJECT, as_json, json).await;
    let usage = mesh.usage_when(|usage| usage.computed == 4).await;
    let expected = UsageReport {
        requests: 7,
        computed: 4,
        cached: 3,
        input_tokens: 70,
        compute_ns: 4_000,
        cost: schemas::money::NanoUsd(800),
        saved: schemas::money::NanoUsd(600),
        as_of_ms: usage.as_of_ms,
        ..UsageReport::default()
    };
    assert_eq!(usage, expected);
    // With nothing left in the stream, the answer is as of now.
    let now_ms = mesh.context.clock.now_unix_ms();
    mesh.usage_when(|usage| usage.as_of_ms >= now_ms).await;
    let only_other_key = mesh.ask(Some("another")).await;
    assert_eq!(only_other_key.requests, 0);
    let metrics = mesh.metrics();
    for line in [
        "portalis_ledger_duplicates_total{service=\"cost-accounting\"} 2",
        "llm_cost_usd_total{service=\"cost-accounting\"} 0.0000008",
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
    mesh.drain().await;
}

#[tokio::test]
async fn broken_messages_and_foreign_tenants_are_set_aside() {
    let mesh = Mesh::start().await;
    mesh.publish(SUBJECT, vec![0xc1, 1, 2]).await;
    mesh.publish(SUBJECT, Vec::new()).await;
    mesh.publish(SUBJECT, batch(&[tenant("thief", 1), event(2)])).await;
    mesh.publish("portalis.v1.cost.thief.m", batch(&[event(3)])).await;
    mesh.publish(SUBJECT, batch(&[event(4)])).await;
    mesh.usage_when(|usage| usage.computed == 2).await;
    let metrics = mesh.metrics();
    for (reason, count) in [("undecodable", 2), ("tenant", 2)] {
        let line = format!("portalis_ledger_rejected_total{{reason=\"{reason}\",service=\"cost-accounting\"}} {count}");
        assert!(metrics.contains(&line), "{line} in\n{metrics}");
    }
    let garbage = mesh
        .bus
        .request(
            schemas::subjects::USAGE_GET,
            Headers::new(),
            vec![0xc1].into(),
            DEADLINE,
        )
        .await;
    let failure: schemas::error::Failure = wire::decode(&garbage.unwrap().payload).unwrap();
    assert_eq!(failure.code, schemas::error::ErrorCode::InvalidField);
    let report = mesh.drain().await;
    assert_eq!((report.journal_rows, report.rejected_rows), (2, 4));
}

#[tokio::test]
async fn the_broker_may_be_killed_while_facts_are_read() {
    let mut mesh = Mesh::start().await;
    for round in 0..4 {
        for number in round * 10..round * 10 + 10 {
            mesh.publish(SUBJECT, batch(&[event(number), event(number / 2)])).await;
        }
        mesh.server.restart().await;
        mesh.reconnected().await;
    }
    mesh.usage_when(|usage| usage.computed == 40).await;
    assert_eq!(mesh.drain().await.journal_rows, 40);
}

#[tokio::test]
async fn a_stream_that_was_replaced_is_read_from_its_start() {
    let mesh = Mesh::start().await;
    mesh.publish(SUBJECT, batch(&[event(1)])).await;
    mesh.publish(SUBJECT, batch(&[event(2)])).await;
    mesh.usage_when(|usage| usage.computed == 2).await;
    let spec = schemas::streams::cost();
    mesh.bus.delete_stream(&spec.name).await.unwrap();
    mesh.bus.ensure_stream(&spec).await.unwrap();
    // As many messages as were read before, so that only the stream's age tells them apart.
    mesh.publish(SUBJECT, batch(&[event(2), event(3)])).await;
    mesh.publish(SUBJECT, batch(&[event(4)])).await;
    mesh.publish(SUBJECT, batch(&[event(5)])).await;
    mesh.usage_when(|usage| usage.computed == 5).await;
    assert_eq!(mesh.drain().await.journal_rows, 5);
}

#[tokio::test]
async fn messages_that_expired_unread_are_counted_as_lost() {
    let mesh = Mesh::start().await;
    mesh.publish(SUBJECT, batch(&[event(1)])).await;
    mesh.usage_when(|usage| usage.computed == 1).await;
    let mesh = mesh.stop_service().await;
    for number in 2..6 {
        mesh.publish(SUBJECT, batch(&[event(number)])).await;
    }
    mesh.purge_below(5).await;
    let mesh = mesh.start_service().await;
    mesh.usage_when(|usage| usage.computed == 2).await;
    let line = "portalis_ledger_lost_messages_total{service=\"cost-accounting\"} 3";
    assert!(mesh.metrics().contains(line), "{}", mesh.metrics());
    mesh.drain().await;
}

#[tokio::test]
async fn an_instance_beats_and_says_when_it_drains() {
    let mesh = Mesh::start().await;
    let mut beats = mesh
        .bus
        .subscribe("portalis.v1.beat.cost-accounting.*", None)
        .await
        .unwrap();
    let mut states = Vec::new();
    let mut next = async || {
        let beat = tokio::time::timeout(DEADLINE, beats.next()).await.unwrap().unwrap();
        wire::decode::<schemas::fleet::Beat>(&beat.payload).unwrap()
    };
    states.push(next().await.state);
    mesh.context.shutdown.start();
    while states.last() != Some(&schemas::fleet::InstanceState::Draining) {
        states.push(next().await.state);
    }
    assert_eq!(states[0], schemas::fleet::InstanceState::Ready);
    mesh.drain().await;
}
