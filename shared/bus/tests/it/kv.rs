//! Buckets and watches.

use bus::{KvError, Watch, WatchEvent};
use bytes::Bytes;
use schemas::streams::{BucketSpec, Storage};
use testkit::NatsServer;

use crate::{LONG, bucket, connect, is_connected, is_lost};

async fn next(watch: &mut Watch) -> WatchEvent {
    tokio::time::timeout(LONG, watch.next())
        .await
        .expect("an event")
        .unwrap()
}

async fn put(watch: &mut Watch) -> (String, Bytes) {
    match next(watch).await {
        WatchEvent::Put(entry) => (entry.key, entry.value),
        other => panic!("{other:?}"),
    }
}

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[tokio::test]
async fn writes_compare_and_set() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let kv = bus.kv(&bucket("CFG")).await.unwrap();
    let kv_again = bus.kv(&bucket("CFG")).await.unwrap();
    assert_eq!(kv.get("a").await.unwrap(), None);
    let first = kv.create("a", bytes("1")).await.unwrap();
    assert_eq!(
        kv.create("a", bytes("x")).await,
        Err(KvError::WrongRevision { key: "a".to_owned() })
    );
    let second = kv_again.update("a", bytes("2"), first).await.unwrap();
    assert_eq!(
        kv.update("a", bytes("x"), first).await,
        Err(KvError::WrongRevision { key: "a".to_owned() })
    );
    let entry = kv.get("a").await.unwrap().unwrap();
    assert_eq!(
        (entry.key.as_str(), &entry.value[..], entry.revision),
        ("a", &b"2"[..], second)
    );

    kv.put("b.c", bytes("3")).await.unwrap();
    assert_eq!(kv.keys().await.unwrap(), ["a", "b.c"]);
    kv.delete("a").await.unwrap();
    assert_eq!(kv.get("a").await.unwrap(), None);
    assert_eq!(kv.keys().await.unwrap(), ["b.c"]);
    kv.create("a", bytes("4")).await.unwrap();
    assert_eq!(kv.get("a").await.unwrap().unwrap().value, "4");

    for wrong in ["", ".a", "a.", "a..b", "a b", "a*", ">"] {
        assert!(
            matches!(kv.get(wrong).await, Err(KvError::InvalidKey { .. })),
            "{wrong:?}"
        );
    }
}

#[tokio::test]
async fn a_watch_shows_what_is_there_then_what_changes_also_over_a_restart() {
    let mut server = NatsServer::start().await;
    let bus = connect(&server).await;
    let kv = bus.kv(&bucket("CFG")).await.unwrap();
    let mut empty = kv.watch();
    assert_eq!(next(&mut empty).await, WatchEvent::InitialDone);
    kv.put("a", bytes("1")).await.unwrap();
    kv.put("b", bytes("2")).await.unwrap();
    kv.put("a", bytes("3")).await.unwrap();
    let mut watch = kv.watch();
    assert_eq!(put(&mut watch).await, ("b".to_owned(), bytes("2")));
    assert_eq!(put(&mut watch).await, ("a".to_owned(), bytes("3")));
    assert_eq!(next(&mut watch).await, WatchEvent::InitialDone);
    let mut only_b = kv.watch_key("b").unwrap();
    assert_eq!(put(&mut only_b).await, ("b".to_owned(), bytes("2")));
    assert_eq!(next(&mut only_b).await, WatchEvent::InitialDone);
    kv.delete("a").await.unwrap();
    assert!(matches!(next(&mut watch).await, WatchEvent::Delete { key, .. } if key == "a"));

    server.kill();
    is_lost(&bus).await;
    server.restart().await;
    is_connected(&bus).await;
    // Written by somebody else before the watch has looked again.
    let other = connect(&server).await.kv(&bucket("CFG")).await.unwrap();
    other.put("c", bytes("4")).await.unwrap();
    other.put("b", bytes("5")).await.unwrap();
    assert_eq!(put(&mut watch).await, ("c".to_owned(), bytes("4")));
    assert_eq!(put(&mut watch).await, ("b".to_owned(), bytes("5")));
    assert_eq!(put(&mut only_b).await, ("b".to_owned(), bytes("5")));
}

#[tokio::test]
async fn an_expired_value_is_a_deletion() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let spec = BucketSpec {
        max_age_ms: Some(1_000),
        ..bucket("SHORT")
    };
    let kv = bus.kv(&spec).await.unwrap();
    let mut watch = kv.watch();
    assert_eq!(next(&mut watch).await, WatchEvent::InitialDone);
    kv.put("a", bytes("1")).await.unwrap();
    assert_eq!(put(&mut watch).await, ("a".to_owned(), bytes("1")));
    assert!(matches!(next(&mut watch).await, WatchEvent::Delete { key, .. } if key == "a"));
    assert_eq!(kv.get("a").await.unwrap(), None);
    assert!(kv.keys().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_lost_bucket_is_read_from_the_start() {
    let mut server = NatsServer::start().await;
    let bus = connect(&server).await;
    let spec = BucketSpec {
        storage: Storage::Memory,
        ..bucket("MEM")
    };
    let kv = bus.kv(&spec).await.unwrap();
    for key in ["a", "b", "c"] {
        kv.put(key, bytes("1")).await.unwrap();
    }
    let mut watch = kv.watch();
    for _ in 0..3 {
        put(&mut watch).await;
    }
    assert_eq!(next(&mut watch).await, WatchEvent::InitialDone);
    server.restart().await;
    is_connected(&bus).await;
    bus.kv(&spec).await.unwrap().put("d", bytes("2")).await.unwrap();
    assert_eq!(next(&mut watch).await, WatchEvent::Reset);
    assert_eq!(put(&mut watch).await, ("d".to_owned(), bytes("2")));
}
