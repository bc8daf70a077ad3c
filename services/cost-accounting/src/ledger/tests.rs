//! The ledger against a real file. Input: batches. Output: sums that are exact whatever the order and the repetition.

use std::collections::HashMap;

use proptest::prelude::*;
use schemas::cost::{CostEvent, CostKind, UsageGet, UsageReport, cached_event_id, waste_event_id};
use tempfile::TempDir;

use super::*;
use crate::book::Booker;
use crate::prices::{DEFAULT_PRICES, Prices};
use crate::usage::UsageStore;
use crate::{example, verify};

struct Fixture {
    ledger: Ledger,
    booker: Booker,
    folder: TempDir,
    sequence: u64,
}

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            ledger: Ledger::open(&folder.path().join("new/ledger.db")).await.unwrap(),
            booker: Booker::new(Prices::parse(DEFAULT_PRICES).unwrap()),
            folder,
            sequence: 0,
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("new/ledger.db")
    }

    async fn book(&mut self, events: &[CostEvent]) -> Booked {
        self.sequence += 1;
        let sequence = self.sequence;
        let entries = events.iter().cloned();
        let entries = entries.map(|event| (sequence, self.booker.book("demo", event).unwrap()));
        let batch = Batch {
            entries: entries.collect(),
            rejected: Vec::new(),
            position: position(sequence),
            booked_at_ms: 7,
        };
        self.ledger.book(&batch).await.unwrap()
    }

    async fn usage(&self) -> UsageReport {
        usage(&self.path(), &everything()).await
    }
}

fn position(sequence: u64) -> Position {
    Position {
        identity: "first".to_owned(),
        sequence,
        message_at_ms: 3,
    }
}

fn everything() -> UsageGet {
    UsageGet {
        key_id: None,
        tenant: "demo".to_owned(),
        start_s: None,
        end_s: None,
    }
}

async fn usage(path: &Path, get: &UsageGet) -> UsageReport {
    let store = UsageStore::open(path).await.unwrap();
    let report = store.usage(get, 0).await.unwrap();
    store.close().await;
    report
}

#[tokio::test]
async fn the_same_fact_counts_once_in_one_batch_and_over_batches() {
    let mut fixture = Fixture::new().await;
    let event = example::event(1);
    let first = fixture.book(&[event.clone(), event.clone(), example::event(2)]).await;
    assert_eq!((first.duplicates, first.kinds.len(), first.kinds[0].events), (1, 1, 2));
    assert_eq!(first.kinds[0].cost_nano_usd, 400);
    let second = fixture.book(&[event]).await;
    assert_eq!((second.duplicates, second.kinds), (1, Vec::new()));
    let usage = fixture.usage().await;
    let expected = UsageReport {
        requests: 2,
        computed: 2,
        input_tokens: 20,
        compute_ns: 2_000,
        cost: schemas::money::NanoUsd(400),
        ..UsageReport::default()
    };
    assert_eq!(usage, expected);
}

#[tokio::test]
async fn a_request_computed_twice_is_paid_once_and_its_second_time_is_waste() {
    let mut fixture = Fixture::new().await;
    let first = example::event(1);
    let second = CostEvent {
        attempt: 2,
        reporter: "gpu-worker-2".to_owned(),
        compute_ns: 70,
        ..first.clone()
    };
    let third = CostEvent {
        kind: CostKind::Cancelled,
        attempt: 3,
        compute_ns: 500,
        ..second.clone()
    };
    fixture.book(&[first.clone(), second.clone()]).await;
    for _ in 0..2 {
        fixture.book(&[second.clone(), third.clone(), first.clone()]).await;
    }
    // The worker's own report of the same waste.
    let event_id = waste_event_id(&second.request_id, 2, "gpu-worker-2");
    fixture
        .book(&[CostEvent {
            event_id,
            kind: CostKind::Waste,
            requests: 0,
            ..second
        }])
        .await;
    let usage = fixture.usage().await;
    assert_eq!(
        (usage.requests, usage.compute_ns, usage.wasted_ns, usage.cost.0),
        (1, 1_000, 570, 200)
    );
    assert_eq!(usage.input_tokens, 10);
    assert!(verify(&fixture.path()).await.unwrap().is_sound());
}

#[tokio::test]
async fn position_survives_and_the_journal_cannot_be_changed() {
    let mut fixture = Fixture::new().await;
    assert_eq!(fixture.ledger.position().await.unwrap(), None);
    fixture.book(&[example::event(1)]).await;
    for statement in ["UPDATE journal SET cost_nano_usd = 0", "DELETE FROM journal"] {
        let refused = sqlx::query(statement).execute(&mut fixture.ledger.connection).await;
        assert!(refused.unwrap_err().to_string().contains("append-only"));
    }
    let path = fixture.path();
    fixture.ledger.close().await.unwrap();
    let mut again = Ledger::open(&path).await.unwrap();
    assert_eq!(again.position().await.unwrap(), Some(position(1)));
    sqlx::query("INSERT INTO schema_version VALUES (99)")
        .execute(&mut again.connection)
        .await
        .unwrap();
    again.close().await.unwrap();
    assert!(matches!(
        Ledger::open(&path).await,
        Err(LedgerError::Newer { found: 99, .. })
    ));
}

#[tokio::test]
async fn a_batch_that_fails_leaves_nothing() {
    let mut fixture = Fixture::new().await;
    fixture.book(&[example::event(1)]).await;
    // The last statement of a batch fails.
    let broken = "CREATE TRIGGER broken BEFORE UPDATE ON cursor BEGIN SELECT RAISE(ABORT, 'broken'); END";
    sqlx::query(broken)
        .execute(&mut fixture.ledger.connection)
        .await
        .unwrap();
    let entry = fixture.booker.book("demo", example::event(2)).unwrap();
    let batch = Batch {
        entries: vec![(2, entry)],
        rejected: Vec::new(),
        position: position(2),
        booked_at_ms: 7,
    };
    assert!(fixture.ledger.book(&batch).await.is_err());
    assert_eq!(fixture.usage().await.requests, 1);
    sqlx::query("DROP TRIGGER broken")
        .execute(&mut fixture.ledger.connection)
        .await
        .unwrap();
    fixture.ledger.book(&batch).await.unwrap();
    assert_eq!(fixture.usage().await.requests, 2);
    assert_eq!(fixture.ledger.position().await.unwrap(), Some(position(2)));
}

#[tokio::test]
async fn usage_is_cut_by_key_tenant_and_hour() {
    const HOUR_MS: u64 = 3_600_000;
    let mut fixture = Fixture::new().await;
    let at = |number, key: &str, hour: u64| CostEvent {
        key_id: key.to_owned(),
        occurred_at_ms: 500_000 * HOUR_MS + hour * HOUR_MS,
        ..example::event(number)
    };
    fixture
        .book(&[at(1, "a", 0), at(2, "a", 1), at(3, "b", 1), at(4, "b", 2)])
        .await;
    let start = 500_000 * 3_600;
    let cases = [
        (None, None, None, 4),
        (Some("a"), None, None, 2),
        (Some("nobody"), None, None, 0),
        (None, Some(start + 3_600), None, 3),
        (None, Some(start + 3_601), Some(start + 7_201), 3),
        (None, None, Some(start + 3_600), 1),
        (None, None, Some(start + 3_601), 3),
        (Some("b"), Some(start), Some(start + 7_200), 1),
        (None, Some(u64::MAX), Some(u64::MAX), 0),
    ];
    for (key, start_s, end_s, expected) in cases {
        let get = UsageGet {
            key_id: key.map(str::to_owned),
            start_s,
            end_s,
            ..everything()
        };
        assert_eq!(usage(&fixture.path(), &get).await.requests, expected, "{get:?}");
    }
    let other = UsageGet {
        tenant: "other".to_owned(),
        ..everything()
    };
    assert_eq!(usage(&fixture.path(), &other).await, UsageReport::default());
}

#[tokio::test]
async fn rejected_messages_are_kept_once_and_not_for_ever() {
    let mut fixture = Fixture::new().await;
    let reject = |from: u64, count: u64| Batch {
        entries: Vec::new(),
        rejected: (from..from + count)
            .map(|sequence| Rejected {
                sequence,
                position: 0,
                subject: "s".to_owned(),
                reason: "undecodable",
                detail: "d".to_owned(),
                body: vec![0xc1],
            })
            .collect(),
        position: position(from + count),
        booked_at_ms: 7,
    };
    for _ in 0..2 {
        fixture.ledger.book(&reject(1, 20)).await.unwrap();
    }
    assert_eq!(verify(&fixture.path()).await.unwrap().rejected_rows, 20);
    fixture.ledger.book(&reject(100, 10_100)).await.unwrap();
    let report = verify(&fixture.path()).await.unwrap();
    assert!(report.rejected_rows <= 10_000, "{}", report.rejected_rows);
    assert_eq!(report.position, Some(position(10_200)));
}

#[tokio::test]
async fn verification_finds_a_changed_sum_a_lost_row_and_an_invented_one() {
    let mut fixture = Fixture::new().await;
    let other = CostEvent {
        key_id: "other".to_owned(),
        ..example::event(2)
    };
    fixture.book(&[example::event(1), other]).await;
    let sound = verify(&fixture.path()).await.unwrap();
    assert_eq!((sound.is_sound(), sound.journal_rows, sound.rollup_rows), (true, 2, 2));
    for statement in [
        "UPDATE rollup_hour SET cost_nano_usd = 1 WHERE key_id = 'key'",
        "UPDATE rollup_hour SET key_id = 'moved' WHERE key_id = 'other'",
    ] {
        sqlx::query(statement)
            .execute(&mut fixture.ledger.connection)
            .await
            .unwrap();
    }
    let report = verify(&fixture.path()).await.unwrap();
    assert_eq!(report.differences, 1 + 2 * SUM_COLUMNS.len() as u64);
    let changed = report
        .listed
        .iter()
        .find(|difference| difference.key.key_id == "key")
        .unwrap();
    assert_eq!(
        (changed.column, changed.journal, changed.rollup),
        ("cost_nano_usd", Some(200), Some(1))
    );
    assert!(verify(Path::new("/no/such/ledger.db")).await.is_err());
}

#[tokio::test]
async fn unknown_kinds_and_missing_prices_are_kept_apart() {
    let mut fixture = Fixture::new().await;
    let newer = CostEvent {
        kind: CostKind::Unknown,
        ..example::event(1)
    };
    let unpriced = CostEvent {
        output_tokens: 1,
        ..example::event(2)
    };
    let booked = fixture.book(&[newer, unpriced]).await;
    assert_eq!(booked.kinds.iter().map(|sums| sums.unpriced).sum::<u64>(), 1);
    let usage = fixture.usage().await;
    assert_eq!((usage.requests, usage.unpriced, usage.cost.0), (1, 1, 0));
    let report = verify(&fixture.path()).await.unwrap();
    assert_eq!((report.is_sound(), report.journal_rows), (true, 2));
}

#[tokio::test]
async fn sums_stop_at_the_end_of_the_range() {
    let mut fixture = Fixture::new().await;
    fixture.book(&[example::event(1)]).await;
    let nearly = "UPDATE rollup_hour SET compute_ns = 9223372036854775807";
    sqlx::query(nearly)
        .execute(&mut fixture.ledger.connection)
        .await
        .unwrap();
    fixture.book(&[example::event(2)]).await;
    let usage = fixture.usage().await;
    assert_eq!((usage.requests, usage.compute_ns), (2, i64::MAX.unsigned_abs()));
}

/// An event of a small world, so that ids collide often.
fn any_event() -> impl Strategy<Value = CostEvent> {
    (0_u64..30, 0_usize..3).prop_map(|(number, kind)| {
        // All but the identity follows from the number: the same fact published twice is the same fact.
        let base = example::event(number);
        let key_id = format!("key-{}", number % 3);
        let occurred_at_ms = base.occurred_at_ms + number * 1_000_000;
        let base = CostEvent {
            key_id,
            occurred_at_ms,
            input_tokens: number * 37,
            compute_ns: number * 1_001,
            ..base
        };
        match kind {
            0 => base,
            1 => CostEvent {
                event_id: cached_event_id("gateway-1", number),
                kind: CostKind::Cached,
                requests: number + 1,
                compute_ns: 0,
                device: String::new(),
                ..base
            },
            _ => CostEvent {
                event_id: waste_event_id(&base.request_id, 9, "gpu-worker-9"),
                kind: CostKind::Waste,
                requests: 0,
                attempt: 9,
                reporter: "gpu-worker-9".to_owned(),
                ..base
            },
        }
    })
}

/// The model: sums over unique ids, straight from the events.
fn expected(events: &[CostEvent]) -> UsageReport {
    let mut seen = std::collections::HashSet::new();
    let mut report = UsageReport::default();
    for event in events.iter().filter(|event| seen.insert(event.event_id.clone())) {
        let price = i64::try_from(event.input_tokens).unwrap() * 20;
        match event.kind {
            CostKind::Waste => {
                report.wasted_ns += event.compute_ns;
                continue;
            }
            CostKind::Cached => {
                report.cached += event.requests;
                report.saved.0 += price;
            }
            _ => {
                report.computed += event.requests;
                report.cost.0 += price;
            }
        }
        report.input_tokens += event.input_tokens;
        report.compute_ns += event.compute_ns;
    }
    report.requests = report.computed + report.cached;
    report
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

proptest! {
    // Each case makes a database of its own; 24 of them take a second.
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_order_with_any_repetition_gives_the_same_sums(
        events in prop::collection::vec(any_event(), 1..120).prop_shuffle(),
        cuts in prop::collection::vec(1_usize..40, 1..8),
    ) {
        let (usage, report) = block_on(async {
            let mut fixture = Fixture::new().await;
            let mut rest = events.as_slice();
            let mut cuts = cuts.iter().cycle();
            while !rest.is_empty() {
                let (batch, after) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                rest = after;
                fixture.book(batch).await;
            }
            (fixture.usage().await, verify(&fixture.path()).await.unwrap())
        });
        prop_assert_eq!(usage, expected(&events));
        prop_assert!(report.is_sound(), "{:?}", report.listed);
    }

    #[test]
    fn whichever_attempt_comes_first_requests_and_device_time_are_conserved(
        attempts in prop::collection::vec((0_u64..8, 1_u32..4, 1_u64..1_000), 1..60),
    ) {
        // The device time of an attempt is a fact: the first one drawn holds.
        let mut times = HashMap::new();
        let events: Vec<_> = attempts.iter().map(|(number, attempt, ns)| {
            let compute_ns = *times.entry((*number, *attempt)).or_insert(*ns);
            let reporter = format!("gpu-worker-{attempt}");
            CostEvent { attempt: *attempt, reporter, compute_ns, ..example::event(*number) }
        }).collect();
        let requests = attempts.iter().map(|(number, ..)| number).collect::<std::collections::HashSet<_>>().len() as u64;
        let (usage, report) = block_on(async {
            let mut fixture = Fixture::new().await;
            for batch in events.chunks(7) {
                fixture.book(batch).await;
            }
            (fixture.usage().await, verify(&fixture.path()).await.unwrap())
        });
        prop_assert_eq!(usage.requests, requests);
        prop_assert_eq!(usage.cost.0, i64::try_from(requests).unwrap() * 200);
        prop_assert_eq!(usage.compute_ns + usage.wasted_ns, times.values().sum::<u64>());
        prop_assert!(report.is_sound());
    }
}
