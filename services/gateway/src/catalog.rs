//! Which models exist and who serves them. Input: model cards of the `MODELS` bucket, heartbeats of workers, the clock.
//! Output: the card of a model, whether work for it may be queued, and which workers have gone silent. Pure state.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use schemas::fleet::{BEAT_INTERVAL_MS, Beat, InstanceState, MISSED_BEATS, ModelCard};

/// Silence after which a worker counts as gone, microseconds: the missed beats and half an interval of delay.
const SILENCE_US: u64 = (MISSED_BEATS * BEAT_INTERVAL_MS + BEAT_INTERVAL_MS / 2) * 1_000;

/// What a look-up of a model says.
#[derive(Debug, Clone, PartialEq)]
pub enum Lookup {
    /// No card: nobody ever served it.
    Unknown,
    /// It has a card, but no worker for longer than the grace.
    NoWorker,
    /// Work for it may be queued.
    Served(Arc<ModelCard>),
}

/// The models and workers known now.
#[derive(Debug)]
pub struct Catalog {
    state: RwLock<State>,
    started_us: u64,
    grace_us: u64,
}

#[derive(Debug, Default)]
struct State {
    /// Cards by true name.
    cards: HashMap<String, Arc<ModelCard>>,
    /// True names by slug, to find a card when its key is deleted.
    names: HashMap<String, String>,
    /// Workers by instance.
    workers: HashMap<String, Worker>,
    /// When a model last had a ready worker.
    served_us: HashMap<String, u64>,
}

#[derive(Debug)]
struct Worker {
    model: String,
    beat_us: u64,
    ready: bool,
    /// Its silence was told by [`Catalog::newly_silent`].
    mourned: bool,
}

impl Catalog {
    /// An empty catalog. Until one silence and the grace have passed after `now_us`, models with a card count as served:
    /// a gateway that has just started has not heard the workers yet.
    #[must_use]
    pub fn new(now_us: u64, grace_ms: u64) -> Self {
        Self {
            state: RwLock::default(),
            started_us: now_us,
            grace_us: grace_ms * 1_000,
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        // Each change is one insert or remove; a panic in between leaves the maps whole.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A card was written.
    pub fn on_card(&self, card: ModelCard) {
        let mut state = self.write();
        state.names.insert(card.slug.clone(), card.name.clone());
        state.cards.insert(card.name.clone(), Arc::new(card));
    }

    /// A card was deleted.
    pub fn on_card_deleted(&self, slug: &str) {
        let mut state = self.write();
        if let Some(name) = state.names.remove(slug) {
            state.cards.remove(&name);
        }
    }

    /// A worker's heart beat.
    pub fn on_beat(&self, beat: &Beat, now_us: u64) {
        let Some(worker) = &beat.worker else {
            return;
        };
        let ready = beat.state == InstanceState::Ready;
        let mut state = self.write();
        let entry = Worker {
            model: worker.model.clone(),
            beat_us: now_us,
            ready,
            mourned: false,
        };
        if ready {
            state.served_us.insert(worker.model.clone(), now_us);
        }
        state.workers.insert(beat.instance.clone(), entry);
    }

    /// The connection is back: silence before now was ours, and counts from now.
    pub fn on_reconnected(&self, now_us: u64) {
        let mut state = self.write();
        let State { workers, served_us, .. } = &mut *state;
        for worker in workers.values_mut() {
            worker.beat_us = now_us;
            if worker.ready {
                served_us.insert(worker.model.clone(), now_us);
            }
        }
    }

    /// True names of the models of which a worker has gone silent since the last question. One that was draining does not
    /// count: it has given its work back.
    pub fn newly_silent(&self, now_us: u64) -> HashSet<String> {
        let silent = |worker: &&mut Worker| !worker.mourned && now_us.saturating_sub(worker.beat_us) > SILENCE_US;
        let mut state = self.write();
        let mourn = |worker: &mut Worker| {
            worker.mourned = true;
            worker.ready.then(|| worker.model.clone())
        };
        state.workers.values_mut().filter(silent).filter_map(mourn).collect()
    }

    /// Drops workers silent for ten times the limit; until then they are known as silent.
    pub fn forget_old(&self, now_us: u64) {
        self.write()
            .workers
            .retain(|_, worker| now_us.saturating_sub(worker.beat_us) < 10 * SILENCE_US);
    }

    /// The card of a model and whether work for it may be queued.
    #[must_use]
    pub fn find(&self, name: &str, now_us: u64) -> Lookup {
        let state = self.read();
        let Some(card) = state.cards.get(name) else {
            return Lookup::Unknown;
        };
        let last_us = state.served_us.get(name).copied().unwrap_or(self.started_us);
        if now_us.saturating_sub(last_us) <= SILENCE_US + self.grace_us {
            Lookup::Served(Arc::clone(card))
        } else {
            Lookup::NoWorker
        }
    }

    /// Whether at least one model has a worker that is ready now.
    #[must_use]
    pub fn any_served(&self, now_us: u64) -> bool {
        let state = self.read();
        let alive = |worker: &Worker| worker.ready && now_us.saturating_sub(worker.beat_us) <= SILENCE_US;
        state
            .workers
            .values()
            .any(|worker| alive(worker) && state.cards.contains_key(&worker.model))
    }

    /// Whether a worker has gone silent; one that was never heard is not known to be.
    #[must_use]
    pub fn is_silent(&self, worker: &str, now_us: u64) -> bool {
        let state = self.read();
        state
            .workers
            .get(worker)
            .is_some_and(|worker| now_us.saturating_sub(worker.beat_us) > SILENCE_US)
    }

    /// All cards, by name.
    #[must_use]
    pub fn cards(&self) -> Vec<Arc<ModelCard>> {
        let mut cards: Vec<_> = self.read().cards.values().cloned().collect();
        cards.sort_by(|a, b| a.name.cmp(&b.name));
        cards
    }
}

#[cfg(test)]
mod tests {
    use schemas::fleet::WorkerBeat;

    use super::*;

    const SECOND_US: u64 = 1_000_000;

    fn card() -> ModelCard {
        let json = serde_json::json!({
            "name": "M", "slug": "m", "operations": ["embed"], "family": "bert", "dimensions": 2, "max_tokens": 8,
            "revision": "r", "precision": "f32", "parameters": 1, "created_s": 1
        });
        serde_json::from_value(json).unwrap()
    }

    fn beat(state: InstanceState) -> Beat {
        let worker = WorkerBeat {
            model: "M".to_owned(),
            slots: 1,
            in_hand: 0,
            waiting_tokens: 0,
            finished_total: 0,
            tokens_total: 0,
            busy_ns_total: 0,
            batch_us: 0,
            device: "cpu".to_owned(),
            pid: 1,
        };
        Beat {
            service: "gpu-worker".to_owned(),
            instance: "w1".to_owned(),
            version: "0".to_owned(),
            started_at_ms: 0,
            state,
            worker: Some(worker),
        }
    }

    #[test]
    fn a_model_is_served_while_a_worker_beats_and_for_the_grace() {
        let catalog = Catalog::new(0, 10_000);
        assert_eq!(catalog.find("M", 0), Lookup::Unknown);
        catalog.on_card(card());
        assert!(matches!(catalog.find("M", 0), Lookup::Served(_)), "just started");
        assert!(!catalog.any_served(0));
        catalog.on_beat(&beat(InstanceState::Ready), 20 * SECOND_US);
        assert!(catalog.any_served(23 * SECOND_US));
        assert!(!catalog.any_served(24 * SECOND_US));
        assert!(matches!(catalog.find("M", 33 * SECOND_US), Lookup::Served(_)));
        assert_eq!(catalog.find("M", 34 * SECOND_US), Lookup::NoWorker);
        catalog.on_card_deleted("m");
        assert_eq!(catalog.find("M", 34 * SECOND_US), Lookup::Unknown);
    }

    #[test]
    fn silence_is_noticed_once_a_worker_was_heard() {
        let catalog = Catalog::new(0, 0);
        assert!(!catalog.is_silent("w1", SECOND_US), "never heard");
        catalog.on_beat(&beat(InstanceState::Draining), 0);
        assert!(!catalog.is_silent("w1", 3 * SECOND_US));
        assert!(catalog.is_silent("w1", 4 * SECOND_US));
        catalog.forget_old(100 * SECOND_US);
        assert!(!catalog.is_silent("w1", 100 * SECOND_US));
    }

    #[test]
    fn a_worker_that_falls_silent_is_told_once_and_own_silence_does_not_count() {
        let catalog = Catalog::new(0, 0);
        let gone = HashSet::from(["M".to_owned()]);
        catalog.on_beat(&beat(InstanceState::Ready), 0);
        assert!(catalog.newly_silent(3 * SECOND_US).is_empty());
        assert_eq!(catalog.newly_silent(4 * SECOND_US), gone);
        assert!(catalog.newly_silent(5 * SECOND_US).is_empty(), "told already");
        catalog.on_beat(&beat(InstanceState::Ready), 6 * SECOND_US);
        catalog.on_reconnected(20 * SECOND_US);
        assert!(!catalog.is_silent("w1", 21 * SECOND_US) && catalog.newly_silent(21 * SECOND_US).is_empty());
        assert_eq!(catalog.newly_silent(24 * SECOND_US), gone);
        catalog.on_beat(&beat(InstanceState::Draining), 25 * SECOND_US);
        assert!(
            catalog.newly_silent(30 * SECOND_US).is_empty(),
            "it has given its work back"
        );
    }
}
