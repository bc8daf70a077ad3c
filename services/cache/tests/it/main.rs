//! The service against a real nats-server. Input: messages as gateways and the CLI send them, broken ones, a broker that
//! restarts. Output: answers of the right tenant, or none.

mod tier;

use std::time::Duration;

use bus::Headers;
use schemas::cache::{CacheFound, CacheGet, CacheHeld, CacheIndex, CachePurge, CachePut, KeptAnswer, SHARDS};
use schemas::fleet::{Beat, Control, ControlReply, InstanceState};
use schemas::wire::Format;
use schemas::{headers, subjects, wire};
use serde_bytes::ByteBuf;
use testkit::eventually;

use crate::tier::{DEADLINE, Tier, key};

#[tokio::test]
async fn what_was_put_is_found_by_its_tenant_alone() {
    let tier = Tier::start(&[]).await;
    for shard in 0..SHARDS {
        let number = u8::try_from(shard).unwrap();
        tier.put(&key("a", number), b"of a", 60_000).await;
        let found = tier.found(&key("a", number)).await;
        assert_eq!(found.body.unwrap().as_slice(), b"of a");
        assert!((1..=60_000).contains(&found.ttl_ms), "{}", found.ttl_ms);
        assert_eq!(tier.get(&key("b", number)).await.body, None, "shard {shard}");
        assert_eq!(tier.get(&key("a", number + 16)).await.body, None);
    }
    tier.expect_metric("portalis_cache_puts_total{result=\"stored\",service=\"cache\"} 16")
        .await;
    tier.stop().await;
}

#[tokio::test]
async fn json_is_answered_in_json() {
    let tier = Tier::start(&[]).await;
    let json = || Headers::new().with(headers::CONTENT_TYPE, Format::JSON);
    let answer = KeptAnswer {
        key: key("a", 1),
        body: ByteBuf::from(b"x".to_vec()),
        ttl_ms: 60_000,
    };
    let (put, other) = (
        answer.clone(),
        KeptAnswer {
            key: key("b", 1),
            ..answer
        },
    );
    let put = CachePut {
        answers: vec![put, other],
    };
    let body = wire::encode_as(Format::Json, &put).unwrap();
    let subject = subjects::cache_put(key("a", 1).shard());
    tier.bus.publish(&subject, json(), body.into()).await.unwrap();
    tier.found(&key("a", 1)).await;
    tier.found(&key("b", 1)).await;
    let get = CacheGet { key: key("a", 1) };
    let body = wire::encode_as(Format::Json, &get).unwrap();
    let subject = subjects::cache_get(get.key.shard());
    let asked = tier.bus.request(&subject, json(), body.into(), DEADLINE);
    let answer = asked.await.unwrap();
    assert_eq!(answer.headers.get(headers::CONTENT_TYPE), Some(Format::JSON));
    let found: CacheFound = wire::decode_as(Format::Json, &answer.payload).unwrap();
    assert_eq!(found.body.unwrap().as_slice(), b"x");
    tier.stop().await;
}

#[tokio::test]
async fn answers_end_with_their_time_to_live() {
    let tier = Tier::start(&[]).await;
    tier.put(&key("a", 1), b"long", 60_000).await;
    tier.put(&key("a", 2), b"short", 20_000).await;
    tier.found(&key("a", 1)).await;
    tier.found(&key("a", 2)).await;
    tier.clock.advance(Duration::from_secs(20));
    assert_eq!(tier.get(&key("a", 2)).await.body, None);
    assert!(tier.get(&key("a", 1)).await.ttl_ms <= 40_000);
    tier.stop().await;
}

#[tokio::test]
async fn expired_answers_are_freed_though_nobody_asks() {
    let tier = Tier::start(&[("store.sweep_interval_ms", "1")]).await;
    tier.put(&key("a", 1), b"short", 1).await;
    let freed = "portalis_cache_removals_total{cause=\"expired\",service=\"cache\"} 1";
    tier.expect_metric(freed).await;
    tier.expect_metric("portalis_cache_bytes{service=\"cache\"} 0").await;
    tier.stop().await;
}

#[tokio::test]
async fn a_purge_forgets_one_tenant_or_all() {
    let tier = Tier::start(&[]).await;
    for tenant in ["a", "b"] {
        tier.put(&key(tenant, 1), b"x", 60_000).await;
        tier.found(&key(tenant, 1)).await;
    }
    let purge = |tenant: Option<&str>| CachePurge {
        tenant: tenant.map(str::to_owned),
    };
    tier.publish(subjects::CACHE_PURGE, &purge(Some("a"))).await;
    tier.eventually_gone(&key("a", 1)).await;
    assert!(tier.get(&key("b", 1)).await.body.is_some());
    tier.publish(subjects::CACHE_PURGE, &purge(None)).await;
    tier.eventually_gone(&key("b", 1)).await;
    assert_eq!(tier.index(10).await, [] as [u64; 0]);
    tier.put(&key("a", 1), b"new", 60_000).await;
    tier.found(&key("a", 1)).await;
    tier.stop().await;
}

#[tokio::test]
async fn gateways_are_told_what_is_here() {
    let tier = Tier::start(&[]).await;
    let mut held = tier.bus.subscribe(subjects::CACHE_HELD, None).await.unwrap();
    let keys: Vec<_> = (0..40).map(|number| key("a", number)).collect();
    for key in &keys {
        tier.put(key, b"x", 60_000).await;
    }
    let mut told = Vec::new();
    while told.len() < keys.len() {
        let message = tokio::time::timeout(DEADLINE, held.next()).await.unwrap();
        let page: CacheHeld = wire::decode(&message.unwrap().payload).unwrap();
        told.extend(tier::fingerprints(&page));
    }
    let mut expected: Vec<u64> = keys.iter().map(|key| key.fingerprint()).collect();
    let mut index = tier.index(60_000).await;
    let newest = tier.index(3).await;
    assert_eq!(newest, index[..3]);
    for list in [&mut told, &mut index, &mut expected] {
        list.sort_unstable();
    }
    assert_eq!((&told, &index), (&expected, &expected));
    tier.stop().await;
}

#[tokio::test]
async fn an_instance_serves_its_shards_only() {
    let tier = Tier::start(&[("shards.serve", "0-7")]).await;
    tier.put(&key("a", 7), b"x", 60_000).await;
    tier.found(&key("a", 7)).await;
    let get = CacheGet { key: key("a", 8) };
    let body = wire::encode(&get).unwrap();
    let subject = subjects::cache_get(8);
    let asked = tier.bus.request(&subject, Headers::new(), body.into(), DEADLINE);
    let error = asked.await.unwrap_err();
    assert!(matches!(error, bus::BusError::NoResponders { .. }), "{error}");
    tier.stop().await;
}

#[tokio::test]
async fn too_large_answers_are_refused_and_counted() {
    let tier = Tier::start(&[("store.max_body_bytes", "10")]).await;
    tier.put(&key("a", 1), &[0; 11], 60_000).await;
    tier.expect_metric("portalis_cache_puts_total{result=\"too_large\",service=\"cache\"} 1")
        .await;
    assert_eq!(tier.get(&key("a", 1)).await.body, None);
    tier.put(&key("a", 1), &[0; 10], 60_000).await;
    tier.found(&key("a", 1)).await;
    tier.stop().await;
}

#[tokio::test]
async fn malformed_messages_on_every_subject_are_counted_and_survived() {
    let tier = Tier::start(&[]).await;
    let control = subjects::control("cache", &tier.context.instance);
    let all = [
        ("get", subjects::cache_get(3)),
        ("put", subjects::cache_put(3)),
        ("purge", subjects::CACHE_PURGE.to_owned()),
        ("index", subjects::CACHE_INDEX.to_owned()),
        ("control", control),
    ];
    let wrong_key = CacheGet {
        key: schemas::cache::CacheKey {
            tenant: "no.token".to_owned(),
            digest: ByteBuf::from(vec![3; 31]),
        },
    };
    let bodies = [
        Vec::new(),
        vec![0xc1],
        vec![0x91; 5_000],
        vec![0xdd, 0xff, 0xff, 0xff, 0xff],
        b"{\"key\":1}".to_vec(),
        wire::encode(&42).unwrap(),
    ];
    for (_, subject) in &all {
        for body in &bodies {
            let plain = Headers::new();
            let sent = tier.bus.publish(subject, plain, body.clone().into());
            sent.await.unwrap();
            let odd = Headers::new().with(headers::CONTENT_TYPE, "text/plain");
            let sent = tier.bus.publish(subject, odd, body.clone().into());
            sent.await.unwrap();
        }
    }
    for (kind, _) in &all {
        let line = format!("portalis_cache_malformed_messages_total{{subject=\"{kind}\",service=\"cache\"}} 12");
        tier.expect_metric(&line).await;
    }
    // A request is answered all the same, so nobody waits for its time-out.
    let body = wire::encode(&wrong_key).unwrap();
    let subject = subjects::cache_get(3);
    let asked = tier.bus.request(&subject, Headers::new(), body.into(), DEADLINE);
    let found: CacheFound = wire::decode(&asked.await.unwrap().payload).unwrap();
    assert_eq!(found.body, None);
    tier.put(&key("a", 3), b"x", 60_000).await;
    tier.found(&key("a", 3)).await;
    assert!(!tier.context.shutdown.is_stopping());
    tier.stop().await;
}

#[tokio::test]
async fn a_restarted_broker_is_served_again_with_what_was_here() {
    let mut tier = Tier::start(&[]).await;
    tier.put(&key("a", 1), b"kept", 60_000).await;
    tier.found(&key("a", 1)).await;
    tier.server.kill();
    let unready = || std::future::ready(!tier.context.health.is_ready());
    eventually("the cache says it is not connected", DEADLINE, unready).await;
    tier.server.restart().await;
    tier.context.health.wait_ready(DEADLINE).await.unwrap();
    eventually("the answer is served again", DEADLINE, || async {
        let found = tier.try_get(&key("a", 1)).await;
        found.is_some_and(|found| found.body.is_some())
    })
    .await;
    assert_eq!(tier.index(10).await, [key("a", 1).fingerprint()]);
    tier.stop().await;
}

#[tokio::test]
async fn it_beats_and_drains_when_told() {
    let tier = Tier::start(&[]).await;
    let subject = subjects::beat("cache", &tier.context.instance);
    let mut beats = tier.bus.subscribe(&subject, None).await.unwrap();
    let mut beat = async || {
        let message = tokio::time::timeout(DEADLINE, beats.next()).await.unwrap();
        wire::decode::<Beat>(&message.unwrap().payload).unwrap()
    };
    let first = beat().await;
    assert_eq!((first.service.as_str(), first.worker), ("cache", None));
    let subject = subjects::control("cache", &tier.context.instance);
    let body = wire::encode(&Control::Drain).unwrap();
    let asked = tier.bus.request(&subject, Headers::new(), body.into(), DEADLINE);
    let reply: ControlReply = wire::decode(&asked.await.unwrap().payload).unwrap();
    assert_eq!(reply, ControlReply::Accepted);
    while beat().await.state != InstanceState::Draining {}
    tier.stop().await;
}

#[tokio::test]
async fn the_index_is_bounded_by_what_is_asked() {
    let tier = Tier::start(&[("announce.index_fingerprints", "5")]).await;
    for number in 0..9 {
        tier.put(&key("a", number), b"x", 60_000).await;
        tier.found(&key("a", number)).await;
    }
    assert_eq!(tier.index(u32::MAX).await.len(), 5);
    let limit = CacheIndex { limit: 0 };
    let body = wire::encode(&limit).unwrap();
    let asked = tier
        .bus
        .request(subjects::CACHE_INDEX, Headers::new(), body.into(), DEADLINE);
    let none: CacheHeld = wire::decode(&asked.await.unwrap().payload).unwrap();
    assert!(none.fingerprints.is_empty());
    tier.stop().await;
}
