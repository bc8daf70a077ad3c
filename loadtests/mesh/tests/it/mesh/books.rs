//! What was charged. Input: the COST stream and the ledger. Output: facts by kind, each event once, and the ledger's own
//! sums, which must say the same.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use bus::Headers;
use schemas::cost::{CostBatch, CostEvent, CostKind, UsageGet, UsageReport};
use schemas::{streams, subjects, wire};
use testkit::eventually;

use super::{DEADLINE, Mesh};

/// The facts of a tenant and what its ledger says.
#[derive(Debug)]
pub(crate) struct Books {
    /// Each event once, by its id.
    pub(crate) facts: BTreeMap<String, CostEvent>,
    /// Events that came again, whose device time is waste.
    pub(crate) again: Vec<CostEvent>,
    pub(crate) usage: UsageReport,
}

impl Books {
    /// Ids of the requests with a fact of this kind.
    pub(crate) fn requests(&self, kind: CostKind) -> BTreeSet<String> {
        let facts = self.facts.values().filter(|fact| fact.kind == kind);
        facts.map(|fact| fact.request_id.clone()).collect()
    }

    /// Facts of this kind.
    pub(crate) fn count(&self, kind: CostKind) -> usize {
        self.facts.values().filter(|fact| fact.kind == kind).count()
    }

    /// All device time that was reported, in nanoseconds. The same worker's report of the same attempt counts once: told
    /// again it cannot be told from a copy.
    pub(crate) fn device_ns(&self) -> u64 {
        let mut told = BTreeSet::new();
        let all = self.facts.values().chain(&self.again);
        let new = all.filter(|fact| told.insert((&fact.request_id, fact.attempt, &fact.reporter)));
        new.map(|fact| fact.compute_ns).sum()
    }

    /// Exactly these requests were computed, and each is charged once.
    #[track_caller]
    pub(crate) fn charge_once(&self, answered: &BTreeSet<String>) {
        let computed = self.requests(CostKind::Computed);
        let missing: Vec<_> = answered.difference(&computed).collect();
        let surplus: Vec<_> = computed.difference(answered).collect();
        assert!(
            missing.is_empty() && surplus.is_empty(),
            "answered but not charged: {missing:?}; charged but not answered: {surplus:?}"
        );
        assert_eq!(self.count(CostKind::Computed), answered.len(), "one fact per request");
        assert_eq!(self.usage.computed, answered.len() as u64, "{:?}", self.usage);
    }
}

impl Mesh {
    /// Waits until no work is queued or in hand and every fact is booked; then reads a tenant's books.
    pub(crate) async fn books(&self, tenant: &str) -> Books {
        self.idle().await;
        eventually("every fact is booked", DEADLINE, || async {
            let Ok(stream) = self.bus.stream_info(&streams::cost().name).await else {
                return false;
            };
            let report = cost_accounting::verify(&self.ledger()).await;
            report.is_ok_and(|report| report.position.is_some_and(|at| at.sequence >= stream.last_sequence))
        })
        .await;
        let report = cost_accounting::verify(&self.ledger()).await.unwrap();
        assert!(report.is_sound(), "{report:?}");
        assert_eq!(report.rejected_rows, self.rejected, "rejected facts: {report:?}");
        // Gateways report cached answers some time after they gave them: a report may come between the two looks below.
        let read = Mutex::new(None);
        eventually("the ledger's sums are those of its facts", DEADLINE, || async {
            let books = self.read_books(tenant).await;
            let cached = books.facts.values().filter(|fact| fact.kind == CostKind::Cached);
            let agree = books.usage.cached == cached.map(|fact| fact.requests).sum::<u64>();
            *read.lock().unwrap() = Some(books);
            agree
        })
        .await;
        read.into_inner().unwrap().unwrap()
    }

    async fn read_books(&self, tenant: &str) -> Books {
        let (mut facts, mut again) = (BTreeMap::new(), Vec::new());
        for event in self.events().await {
            if event.tenant != tenant {
                continue;
            }
            match facts.entry(event.event_id.clone()) {
                Entry::Vacant(place) => drop(place.insert(event)),
                Entry::Occupied(_) => again.push(event),
            }
        }
        let usage = self.usage(tenant).await.unwrap();
        Books { facts, again, usage }
    }

    /// Waits until every queue is empty: all that was taken is answered, billed and acknowledged.
    pub(crate) async fn idle(&self) {
        for spec in &self.specs {
            let name = streams::work_stream_name(&schemas::ids::model_slug(&spec.model));
            eventually(&format!("{name} is empty"), DEADLINE, || async {
                self.bus.stream_info(&name).await.is_ok_and(|info| info.messages == 0)
            })
            .await;
        }
    }

    /// Every event on the COST stream, in order, as often as it was published.
    pub(crate) async fn events(&self) -> Vec<CostEvent> {
        let name = streams::cost().name;
        let last = self.bus.stream_info(&name).await.unwrap().last_sequence;
        let mut reader = self.bus.reader(&name, 0);
        let mut events = Vec::new();
        while reader.last_sequence() < last {
            let batch = reader.next_batch(256, Duration::from_secs(1)).await.unwrap();
            for message in batch {
                if let Ok(batch) = wire::decode::<CostBatch>(&message.payload) {
                    events.extend(batch.events);
                }
            }
        }
        events
    }

    /// What the ledger says of a tenant.
    pub(crate) async fn usage(&self, tenant: &str) -> Option<UsageReport> {
        let get = UsageGet {
            key_id: None,
            tenant: tenant.to_owned(),
            start_s: None,
            end_s: None,
        };
        let payload = wire::encode(&get).unwrap();
        let reply = self
            .bus
            .request(subjects::USAGE_GET, Headers::new(), payload.into(), DEADLINE)
            .await
            .ok()?;
        wire::decode(&reply.payload).ok()
    }
}
