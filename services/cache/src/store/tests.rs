//! The store by itself: limits, isolation, time. Input: puts, gets, purges. Output: what is left.

use std::collections::HashMap;

use process::FakeClock;
use proptest::prelude::*;
use serde_bytes::ByteBuf;

use super::*;

const HOUR_MS: u64 = 3_600_000;

fn limits() -> StoreConfig {
    StoreConfig {
        max_bytes: 1_000_000,
        max_tenant_share: 0.01,
        max_body_bytes: 4_096,
        max_ttl_ms: HOUR_MS,
        sweep_interval_ms: 1_000,
    }
}

struct Bench {
    store: Store,
    clock: FakeClock,
    metrics: Metrics,
}

impl Bench {
    fn new(limits: StoreConfig) -> Self {
        let clock = FakeClock::new(1_767_225_600_000);
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        Self {
            store: Store::new(limits, clock.clock(), metrics.clone()),
            clock,
            metrics,
        }
    }

    fn put(&self, tenant: &str, digest: u8, body: &[u8]) -> Result<(), Refusal> {
        let body = Bytes::copy_from_slice(body);
        self.store.put(&key(tenant, digest), body, HOUR_MS)
    }

    fn body(&self, tenant: &str, digest: u8) -> Option<Bytes> {
        let found = self.store.get(&key(tenant, digest)).unwrap();
        found.map(|found| found.body)
    }
}

fn key(tenant: &str, digest: u8) -> CacheKey {
    CacheKey {
        tenant: tenant.to_owned(),
        digest: ByteBuf::from(vec![digest; 32]),
    }
}

#[test]
fn answers_are_found_by_their_tenant_alone() {
    let bench = Bench::new(limits());
    bench.put("a", 1, b"of a").unwrap();
    bench.put("b", 2, b"of b").unwrap();
    assert_eq!(bench.body("a", 1).unwrap(), "of a");
    assert_eq!(bench.body("b", 1), None);
    assert_eq!(bench.body("a", 2), None);
    assert_eq!(bench.body("c", 1), None);
    bench.put("a", 1, b"newer").unwrap();
    assert_eq!(bench.body("a", 1).unwrap(), "newer");
    let bytes = i64::from(2 * OVERHEAD_BYTES) + 9;
    assert_eq!(bench.metrics.entries.get(), 2);
    assert_eq!(bench.metrics.bytes.get(), bytes);
}

#[test]
fn answers_live_as_long_as_said_and_never_longer_than_allowed() {
    let bench = Bench::new(limits());
    let body = || Bytes::from_static(b"x");
    bench.store.put(&key("a", 1), body(), 1_000).unwrap();
    bench.store.put(&key("a", 2), body(), u64::MAX).unwrap();
    let left = |digest| {
        let found = bench.store.get(&key("a", digest)).unwrap();
        found.map(|found| found.ttl_ms)
    };
    assert_eq!((left(1), left(2)), (Some(1_000), Some(HOUR_MS)));
    bench.clock.advance(Duration::from_millis(999));
    assert_eq!((left(1), left(2)), (Some(1), Some(HOUR_MS - 999)));
    bench.clock.advance(Duration::from_millis(1));
    assert_eq!(left(1), None);
    bench.store.put(&key("a", 1), body(), 500).unwrap();
    assert_eq!(left(1), Some(500));
    bench.clock.advance(Duration::from_secs(3_600));
    assert_eq!((left(1), left(2)), (None, None));
    assert_eq!(bench.store.put(&key("a", 1), body(), 0), Err(Refusal::NoTtl));
}

#[test]
fn what_cannot_be_kept_is_refused() {
    let bench = Bench::new(limits());
    assert_eq!(bench.put("a", 1, &[0; 4_096]), Ok(()));
    assert_eq!(bench.put("a", 1, &[0; 4_097]), Err(Refusal::TooLarge));
    let large = StoreConfig {
        max_body_bytes: u32::MAX,
        ..limits()
    };
    // Over the tenant's share of 10,000 bytes.
    assert_eq!(Bench::new(large).put("a", 1, &[0; 9_900]), Err(Refusal::TooLarge));
    for tenant in ["", "A", "a.b", "a*", &"a".repeat(65)] {
        assert_eq!(bench.put(tenant, 1, b""), Err(Refusal::Key), "{tenant}");
        assert_eq!(bench.store.get(&key(tenant, 1)), Err(Refusal::Key), "{tenant}");
    }
    for length in [0, 31, 33] {
        let digest = ByteBuf::from(vec![1; length]);
        let odd = CacheKey {
            tenant: "a".to_owned(),
            digest,
        };
        assert_eq!(bench.store.get(&odd), Err(Refusal::Key));
    }
}

#[test]
fn a_tenant_at_its_share_loses_its_own_oldest_only() {
    let bench = Bench::new(limits());
    bench.put("quiet", 1, &[0; 100]).unwrap();
    for digest in 0..100 {
        bench.put("loud", digest, &[0; 2_000]).unwrap();
    }
    // 10,000 bytes hold four answers of 2,320.
    let kept: Vec<u8> = (0..100).filter(|d| bench.body("loud", *d).is_some()).collect();
    assert_eq!(kept, [96, 97, 98, 99]);
    assert!(bench.body("quiet", 1).is_some());
    assert_eq!(bench.store.tenants.get("loud").unwrap().bytes(), 4 * 2_320);
}

#[test]
fn purges_forget_one_tenant_or_all_and_new_answers_stay() {
    let bench = Bench::new(limits());
    for tenant in ["a", "b", "c"] {
        bench.put(tenant, 1, b"x").unwrap();
        bench.put(tenant, 2, b"y").unwrap();
    }
    assert_eq!(bench.store.purge(Some("a")), 2);
    assert_eq!(bench.store.purge(Some("nobody")), 0);
    assert_eq!((bench.body("a", 1), bench.body("a", 2)), (None, None));
    assert!(bench.body("b", 1).is_some());
    bench.put("a", 1, b"new").unwrap();
    assert_eq!(bench.body("a", 1).unwrap(), "new");
    assert_eq!(bench.store.purge(None), 5);
    for tenant in ["a", "b", "c"] {
        assert_eq!((bench.body(tenant, 1), bench.body(tenant, 2)), (None, None));
    }
    assert_eq!((bench.metrics.entries.get(), bench.metrics.bytes.get()), (0, 0));
}

#[test]
fn all_tenants_together_stay_within_the_limit() {
    let bench = Bench::new(limits());
    for tenant in 0..500 {
        for digest in 0..4 {
            bench.put(&format!("t{tenant}"), digest, &[0; 2_000]).unwrap();
        }
    }
    bench.store.sweep();
    let bytes = bench.metrics.bytes.get();
    assert!((500_000..=1_000_000).contains(&bytes), "{bytes}");
    let counted: u64 = bench.store.tenants.all().iter().map(|t| t.bytes()).sum();
    assert_eq!(u64::try_from(bytes).unwrap(), counted);
}

#[test]
fn putting_the_same_again_does_not_grow_the_order() {
    let bench = Bench::new(limits());
    for _ in 0..10_000 {
        bench.put("a", 1, b"x").unwrap();
    }
    let tenant = bench.store.tenants.get("a").unwrap();
    assert!(tenant.order().len() <= 2 + SLACK_SLOTS + 1);
    assert_eq!((tenant.entries(), tenant.bytes()), (1, u64::from(OVERHEAD_BYTES) + 1));
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8, u8),
    Purge(Option<u8>),
    Advance(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..3_u8, 0..6_u8, any::<u8>()).prop_map(|(t, d, b)| Step::Put(t, d, b)),
        1 => prop::option::of(0..3_u8).prop_map(Step::Purge),
        2 => (0..2_000_u16).prop_map(Step::Advance),
    ]
}

proptest! {
    /// Within all limits, the store is a map with a time to live.
    #[test]
    fn it_is_a_map_with_a_time_to_live(steps in prop::collection::vec(step(), 1..80)) {
        let bench = Bench::new(StoreConfig { max_tenant_share: 1.0, ..limits() });
        let mut model: HashMap<(u8, u8), (u8, u64)> = HashMap::new();
        let mut now_ms = 0;
        let name = |tenant: u8| format!("t{tenant}");
        for step in steps {
            match step {
                Step::Put(tenant, digest, body) => {
                    let kept = bench.store.put(&key(&name(tenant), digest), Bytes::from(vec![body]), 1_000_000);
                    prop_assert_eq!(kept, Ok(()));
                    model.insert((tenant, digest), (body, now_ms + 1_000_000));
                }
                Step::Purge(tenant) => {
                    bench.store.purge(tenant.map(name).as_deref());
                    model.retain(|(owner, _), _| tenant.is_some_and(|tenant| tenant != *owner));
                }
                Step::Advance(seconds) => {
                    bench.clock.advance(Duration::from_secs(u64::from(seconds)));
                    now_ms += u64::from(seconds) * 1_000;
                }
            }
            for tenant in 0..3 {
                for digest in 0..6 {
                    let expected = model.get(&(tenant, digest)).filter(|(_, ends)| *ends > now_ms);
                    let found = bench.body(&name(tenant), digest).map(|body| body[0]);
                    prop_assert_eq!(found, expected.map(|(body, _)| *body));
                }
            }
        }
    }
}
