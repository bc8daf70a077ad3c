//! Connecting, losing the connection, coming back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bus::{Bus, BusConfig, BusError, BusEvent, Headers};
use bytes::Bytes;
use testkit::{NatsOptions, NatsServer, eventually};

use crate::{LONG, connect, is_connected, is_lost};

async fn refused(url: &str) -> BusError {
    let config = BusConfig {
        connect_timeout_ms: 500,
        ..BusConfig::for_url(url)
    };
    Bus::connect(&config, "test", None).await.expect_err("must be refused")
}

#[tokio::test]
async fn trouble_at_the_start_is_named() {
    let options = NatsOptions {
        jetstream: false,
        ..NatsOptions::default()
    };
    let without = NatsServer::start_with(options).await;
    assert!(matches!(refused(&without.url()).await, BusError::NoJetStream { .. }));

    let credentials = Some(("me".to_owned(), "s3cret".to_owned()));
    let guarded = NatsServer::start_with(NatsOptions {
        user_password: credentials,
        ..NatsOptions::default()
    })
    .await;
    let stranger = refused(&format!("nats://127.0.0.1:{}", guarded.port())).await;
    assert!(matches!(stranger, BusError::Unauthorized { .. }), "{stranger}");
    connect(&guarded).await.round_trip(LONG).await.unwrap();

    let url = without.url();
    drop(without);
    let nobody = refused(&url).await;
    assert!(matches!(nobody, BusError::Connect { .. }), "{nobody}");
    assert!(!nobody.to_string().contains("s3cret"));
}

#[tokio::test]
async fn connecting_waits_for_a_server_that_comes_up() {
    let mut server = NatsServer::start().await;
    let config = BusConfig {
        connect_timeout_ms: 30_000,
        ..BusConfig::for_url(&server.url())
    };
    server.kill();
    let connecting = tokio::spawn(async move { Bus::connect(&config, "test", None).await });
    server.restart().await;
    connecting.await.unwrap().unwrap().round_trip(LONG).await.unwrap();
}

#[tokio::test]
async fn everything_fails_fast_without_a_connection_and_works_again_after_it() {
    let mut server = NatsServer::start().await;
    let lost = Arc::new(AtomicU64::new(0));
    let hook = {
        let lost = Arc::clone(&lost);
        Arc::new(move |event: &BusEvent| {
            if *event == BusEvent::Disconnected {
                lost.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let bus = Bus::connect(&BusConfig::for_url(&server.url()), "test", Some(hook))
        .await
        .unwrap();
    let mut news = bus.subscribe("news", None).await.unwrap();

    server.kill();
    is_lost(&bus).await;
    let started = Instant::now();
    assert_eq!(
        bus.publish("news", Headers::new(), Bytes::new()).await,
        Err(BusError::Disconnected)
    );
    let request = bus.request("news", Headers::new(), Bytes::new(), LONG).await;
    assert_eq!(request.expect_err("no connection"), BusError::Disconnected);
    assert_eq!(bus.round_trip(LONG).await, Err(BusError::Disconnected));
    assert!(started.elapsed() < LONG, "nothing waited for its timeout");
    assert!(!bus.is_connected());

    server.restart().await;
    is_connected(&bus).await;
    bus.publish("news", Headers::new(), Bytes::from_static(b"after"))
        .await
        .unwrap();
    let message = tokio::time::timeout(LONG, news.next()).await.unwrap().unwrap();
    assert_eq!(message.payload, "after", "nothing from before is delivered late");
    eventually("the loss is counted", LONG, || async {
        lost.load(Ordering::Relaxed) == 1
    })
    .await;
    assert_eq!(bus.stats().reconnects, 1);
    assert_eq!(bus.stats().in_flight, 0);
}

#[tokio::test]
async fn closing_sends_everything_first() {
    let server = NatsServer::start().await;
    let (sender, receiver) = (connect(&server).await, connect(&server).await);
    let mut messages = receiver.subscribe("flood", None).await.unwrap();
    for number in 0..5_000_u32 {
        sender
            .publish("flood", Headers::new(), number.to_string().into())
            .await
            .unwrap();
    }
    sender.close(LONG).await;
    for number in 0..5_000_u32 {
        let message = tokio::time::timeout(LONG, messages.next()).await.unwrap().unwrap();
        assert_eq!(message.payload, number.to_string());
    }
}

#[tokio::test]
async fn a_full_subscription_is_counted() {
    let server = NatsServer::start().await;
    let config = BusConfig {
        subscription_capacity: 4,
        ..BusConfig::for_url(&server.url())
    };
    let (slow, fast) = (
        Bus::connect(&config, "slow", None).await.unwrap(),
        connect(&server).await,
    );
    let mut messages = slow.subscribe("flood", None).await.unwrap();
    for _ in 0..100 {
        fast.publish("flood", Headers::new(), Bytes::new()).await.unwrap();
    }
    fast.round_trip(LONG).await.unwrap();
    eventually("drops are counted", LONG, || async { slow.stats().dropped > 0 }).await;
    assert!(messages.next().await.is_some());
}
