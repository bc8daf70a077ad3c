//! Reading a log in order.

use std::time::Duration;

use bus::{Bus, JetStreamError, Reader, StoredMessage};
use schemas::streams::Storage;
use testkit::NatsServer;

use crate::{LONG, connect, is_connected, is_lost, log, store};

async fn read(reader: &mut Reader, max: usize, until: u64) -> Vec<StoredMessage> {
    let mut all = Vec::new();
    while reader.last_sequence() < until {
        let batch = tokio::time::timeout(LONG, reader.next_batch(max, LONG))
            .await
            .expect("a batch")
            .unwrap();
        assert!(batch.len() <= max && !batch.is_empty());
        all.extend(batch);
    }
    all
}

fn assert_contiguous(messages: &[StoredMessage], from: u64, to: u64) {
    let sequences: Vec<u64> = messages.iter().map(|message| message.sequence).collect();
    assert_eq!(sequences, (from..=to).collect::<Vec<_>>());
    for message in messages {
        assert_eq!(message.payload, message.sequence.to_string());
    }
}

async fn store_up_to(bus: &Bus, from: u64, to: u64) {
    for number in from..=to {
        assert_eq!(store(bus, "log.a", number).await, number);
    }
}

#[tokio::test]
async fn batches_come_in_order_and_without_waiting_for_more() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    bus.ensure_stream(&log(Storage::File)).await.unwrap();
    let mut reader = bus.reader("LOG", 0);
    assert!(
        reader
            .next_batch(10, Duration::from_millis(50))
            .await
            .unwrap()
            .is_empty()
    );
    store_up_to(&bus, 1, 700).await;
    assert_contiguous(&read(&mut reader, 100, 700).await, 1, 700);
    // One message does not wait for a full batch: the wait is as long as this test's patience.
    store_up_to(&bus, 701, 701).await;
    assert_contiguous(&read(&mut reader, 100, 701).await, 701, 701);

    let mut later = bus.reader("LOG", 650);
    assert_contiguous(&read(&mut later, 7, 701).await, 651, 701);
}

#[tokio::test]
async fn a_restart_of_the_server_makes_no_gap_and_no_repeat() {
    let mut server = NatsServer::start().await;
    let bus = connect(&server).await;
    bus.ensure_stream(&log(Storage::File)).await.unwrap();
    store_up_to(&bus, 1, 50).await;
    let mut reader = bus.reader("LOG", 0);
    let mut all = read(&mut reader, 20, 40).await;

    server.kill();
    is_lost(&bus).await;
    assert!(
        reader
            .next_batch(20, Duration::from_millis(50))
            .await
            .unwrap()
            .is_empty(),
        "no error while it is away"
    );
    server.restart().await;
    is_connected(&bus).await;
    store_up_to(&bus, 51, 120).await;
    all.extend(read(&mut reader, 20, 120).await);
    assert_contiguous(&all, 1, 120);
}

#[tokio::test]
async fn a_lost_stream_is_an_error_not_silence() {
    let mut server = NatsServer::start().await;
    let bus = connect(&server).await;
    let error = bus.reader("LOG", 0).next_batch(1, LONG).await.expect_err("no stream");
    assert!(matches!(error, JetStreamError::NotFound { .. }), "{error:?}");

    bus.ensure_stream(&log(Storage::Memory)).await.unwrap();
    store_up_to(&bus, 1, 10).await;
    let mut reader = bus.reader("LOG", 0);
    read(&mut reader, 20, 10).await;
    server.restart().await;
    is_connected(&bus).await;
    bus.ensure_stream(&log(Storage::Memory)).await.unwrap();
    let error = reader.next_batch(1, LONG).await.expect_err("the stream is shorter");
    let expected = JetStreamError::WentBack {
        stream: "LOG".to_owned(),
        last_sequence: 0,
        seen_sequence: 10,
    };
    assert_eq!(error, expected);
}
