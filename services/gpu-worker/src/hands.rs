//! What the worker holds. Input: admitted requests, token ids, vectors, cancellations. Output: batches to run and requests
//! that are over. Owns the order of work; talks to nobody.

use std::collections::{HashMap, VecDeque};

use engine::TokenIds;
use engine::batch::{BatchPlanner, Decision, Item as Waiting};
use schemas::ids::RequestId;
use schemas::work::Lane;

use crate::compute::{Computed, Item};
use crate::credits::{self, LaneLoad};
use crate::job::{Held, shares};

/// Inputs of one request fit into this many bits of an item's number.
const INDEX_BITS: u32 = 16;

/// Everything in hand.
pub struct Hands {
    held: HashMap<u64, Held>,
    by_request: HashMap<RequestId, u64>,
    next_key: u64,
    /// Requests held, by lane.
    lanes: [u32; 3],
    planner: BatchPlanner,
    /// Requests that are computed alone, in order of arrival.
    alone: VecDeque<u64>,
}

/// A batch to run.
#[derive(Debug)]
pub struct Batch {
    /// Its texts.
    pub items: Vec<Item>,
    /// Their token ids, in the same order.
    pub tokens: Vec<TokenIds>,
}

/// What a computed batch leaves.
#[derive(Debug, Default)]
pub struct Finished {
    /// Requests that are whole.
    pub done: Vec<Held>,
    /// Requests whose clients had left.
    pub cancelled: Vec<Held>,
    /// The request that failed although it ran alone, and why.
    pub failed: Option<(Held, String)>,
}

impl Hands {
    /// Empty hands.
    #[must_use]
    pub fn new(planner: BatchPlanner) -> Self {
        Self {
            held: HashMap::new(),
            by_request: HashMap::new(),
            next_key: 0,
            lanes: [0; 3],
            planner,
            alone: VecDeque::new(),
        }
    }

    /// Requests held.
    #[must_use]
    pub fn count(&self) -> usize {
        self.held.len()
    }

    /// Tokens that wait.
    #[must_use]
    pub fn waiting_tokens(&self) -> usize {
        self.planner.tokens()
    }

    /// Requests held, by lane in the order of [`Lane::ALL`].
    #[must_use]
    pub fn lane_load(&self) -> [LaneLoad; 3] {
        self.lanes.map(|held| LaneLoad { held, outstanding: 0 })
    }

    /// Everything held.
    pub fn iter(&self) -> impl Iterator<Item = &Held> {
        self.held.values()
    }

    /// Takes a request; gives its key.
    pub fn take(&mut self, held: Held) -> u64 {
        let key = self.next_key;
        self.next_key += 1;
        self.lanes[credits::position(held.request.lane)] += 1;
        self.by_request.insert(held.request.request_id, key);
        self.held.insert(key, held);
        key
    }

    /// A request by its key.
    pub fn get_mut(&mut self, key: u64) -> Option<&mut Held> {
        self.held.get_mut(&key)
    }

    /// Lets go of a request; what waits of it is forgotten.
    pub fn remove(&mut self, key: u64) -> Option<Held> {
        let held = self.held.remove(&key)?;
        self.lanes[credits::position(held.request.lane)] -= 1;
        if self.by_request.get(&held.request.request_id) == Some(&key) {
            self.by_request.remove(&held.request.request_id);
        }
        for (index, tokens) in held.tokens.iter().enumerate() {
            if tokens.is_some() {
                self.planner.remove(item_id(key, index));
            }
        }
        self.alone.retain(|waiting| *waiting != key);
        Some(held)
    }

    /// A request was tokenized: its texts wait for a batch now. `false` when there is no room for them.
    pub fn on_tokens(&mut self, key: u64, tokens: Vec<TokenIds>, now_us: u64) -> bool {
        let Some(held) = self.held.get_mut(&key) else {
            return true; // Cancelled meanwhile.
        };
        let lengths: Vec<usize> = tokens.iter().map(TokenIds::len).collect();
        let lane = u8::try_from(credits::position(held.request.lane)).unwrap_or(u8::MAX);
        held.on_tokens(tokens);
        if held.alone {
            self.alone.push_back(key);
            return true;
        }
        lengths.into_iter().enumerate().all(|(index, tokens)| {
            let waiting = Waiting {
                id: item_id(key, index),
                tokens,
                arrived_at_us: now_us,
                lane,
            };
            self.planner.push(waiting).is_ok()
        })
    }

    /// Whether the next batch is one request that has failed or outlived a worker before.
    #[must_use]
    pub fn next_is_alone(&self) -> bool {
        !self.alone.is_empty()
    }

    /// The next batch, or when to ask again (microseconds of the caller's clock).
    pub fn next_batch(&mut self, now_us: u64) -> Result<Batch, Option<u64>> {
        if let Some(key) = self.alone.pop_front() {
            return Ok(self.whole(key));
        }
        match self.planner.poll(now_us) {
            Decision::Run(ids) => Ok(self.collect(ids.into_iter().map(|id| (id >> INDEX_BITS, index_of(id))))),
            Decision::WaitUntil(at_us) => Err(Some(at_us)),
            Decision::Idle => Err(None),
        }
    }

    fn whole(&mut self, key: u64) -> Batch {
        let inputs = self.held.get(&key).map_or(0, |held| held.tokens.len());
        self.collect((0..inputs).map(|index| (key, index)))
    }

    fn collect(&mut self, ids: impl Iterator<Item = (u64, usize)>) -> Batch {
        let mut batch = Batch {
            items: Vec::new(),
            tokens: Vec::new(),
        };
        for (key, index) in ids {
            let slot = self.held.get_mut(&key).and_then(|held| held.tokens.get_mut(index));
            if let Some(tokens) = slot.and_then(Option::take) {
                batch.items.push(Item {
                    key,
                    index,
                    tokens: tokens.len() as u64,
                });
                batch.tokens.push(tokens);
            }
        }
        batch
    }

    /// A client has left. Gives the request if it is over with that; one that is being computed ends with its batch.
    pub fn cancel(&mut self, request_id: &RequestId, computing: bool) -> Option<Held> {
        let key = *self.by_request.get(request_id)?;
        let held = self.held.get_mut(&key)?;
        let begun = held.tokens.iter().any(Option::is_none);
        if computing && begun {
            held.cancelled = true;
            return None;
        }
        self.remove(key)
    }

    /// Takes in what a batch gave. A failed batch of several requests is done again one by one, so that only the one
    /// at fault suffers.
    pub fn on_computed(&mut self, computed: Computed, tokens: Option<Vec<TokenIds>>) -> Finished {
        let time_ns = u64::try_from(computed.busy.as_nanos()).unwrap_or(u64::MAX);
        let weights: Vec<u64> = computed.items.iter().map(|item| item.tokens).collect();
        let mut keys: Vec<u64> = Vec::new();
        for (item, share_ns) in computed.items.iter().zip(shares(time_ns, &weights)) {
            if let Some(held) = self.held.get_mut(&item.key) {
                held.on_share(share_ns);
            }
            if keys.last() != Some(&item.key) && !keys.contains(&item.key) {
                keys.push(item.key);
            }
        }
        match computed.result {
            Ok(embeddings) => {
                for (item, row) in computed.items.iter().zip(embeddings.rows()) {
                    if let Some(held) = self.held.get_mut(&item.key) {
                        held.on_vector(item.index, row, item.tokens);
                    }
                }
                self.over(&keys)
            }
            Err(reason) => self.on_failed(&computed.items, &keys, tokens.unwrap_or_default(), reason),
        }
    }

    fn over(&mut self, keys: &[u64]) -> Finished {
        let mut finished = Finished::default();
        for key in keys {
            let (whole, cancelled) = self
                .held
                .get(key)
                .map_or((false, false), |held| (held.is_whole(), held.cancelled));
            if cancelled {
                finished.cancelled.extend(self.remove(*key));
            } else if whole {
                finished.done.extend(self.remove(*key));
            }
        }
        finished
    }

    fn on_failed(&mut self, items: &[Item], keys: &[u64], tokens: Vec<TokenIds>, reason: String) -> Finished {
        if let [key] = keys {
            return Finished {
                failed: self.remove(*key).map(|held| (held, reason)),
                ..Finished::default()
            };
        }
        for (item, ids) in items.iter().zip(tokens) {
            if let Some(slot) = self
                .held
                .get_mut(&item.key)
                .and_then(|held| held.tokens.get_mut(item.index))
            {
                *slot = Some(ids);
            }
        }
        let finished = self.over(&[]);
        for key in keys {
            if let Some(held) = self.held.get_mut(key) {
                held.alone = true;
                // What of it waits in the planner is computed with the rest of it, alone.
                let waiting: Vec<u64> = (0..held.tokens.len()).map(|index| item_id(*key, index)).collect();
                waiting.into_iter().for_each(|id| {
                    self.planner.remove(id);
                });
                self.alone.push_back(*key);
            }
        }
        finished
    }

    /// Requests that nobody waits for any more.
    #[must_use]
    pub fn expired(&self, now_ms: u64) -> Vec<u64> {
        let late = |held: &Held| {
            held.request
                .deadline_ms
                .is_some_and(|deadline_ms| deadline_ms <= now_ms)
        };
        let untouched = |held: &Held| held.tokens.iter().all(Option::is_some);
        self.held
            .iter()
            .filter(|(_, held)| late(held) && untouched(held))
            .map(|(key, _)| *key)
            .collect()
    }
}

fn item_id(key: u64, index: usize) -> u64 {
    (key << INDEX_BITS) | index as u64
}

fn index_of(id: u64) -> usize {
    usize::try_from(id & ((1 << INDEX_BITS) - 1)).unwrap_or_default()
}

/// The lanes in the order of pulls and loads.
pub const LANES: [Lane; 3] = Lane::ALL;
