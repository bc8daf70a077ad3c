//! All computations in flight. Input: flights that lead, callers that join, frames, acknowledgements. Output: the flight a
//! message belongs to. One table, so that a flight is known under its request, its answer's key and its publications alike.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::HashMap;
use schemas::cache::CacheKey;
use schemas::ids::RequestId;

use crate::answer::Answer;
use crate::flight::{Flight, Order, Reader};

/// The table of flights.
#[derive(Debug, Default)]
pub struct Flights {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    by_request: HashMap<RequestId, Arc<Flight>>,
    by_key: HashMap<CacheKey, Arc<Flight>>,
    /// Publications the broker has not acknowledged.
    by_publication: HashMap<u64, RequestId>,
    next_publication: u64,
}

/// Whether a caller waits for somebody else's computation or begins one.
#[derive(Debug)]
pub enum Boarding {
    /// An identical request is in flight; wait for it.
    Joined(Arc<Flight>),
    /// Nobody asks the same; publish this one.
    Leads(Arc<Flight>),
    /// An identical flight has just landed and its answer was kept; nothing is to be computed.
    Kept(Arc<Answer>),
}

impl Flights {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change under the lock is a map operation; none leaves the maps at odds when it panics.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the flight with the same key, or makes one of the order. Of many identical requests one leads: atomically, and
    /// also when an earlier one was answered since this caller looked into the cache. `kept` looks there again; an answer is
    /// kept before its flight is forgotten, so it is seen in one place or the other.
    pub fn board(&self, order: Order, kept: impl FnOnce(&CacheKey) -> Option<Arc<Answer>>) -> Boarding {
        let shared = order.join.then(|| order.key.clone()).flatten();
        let flight = {
            let mut table = self.table();
            if let Some(key) = &shared
                && let Some(flight) = table.by_key.get(key)
                && flight.join()
            {
                return Boarding::Joined(Arc::clone(flight));
            }
            let flight = Flight::new(order);
            flight.board();
            table.by_request.insert(flight.order.request_id, Arc::clone(&flight));
            if let Some(key) = &shared {
                table.by_key.insert(key.clone(), Arc::clone(&flight));
            }
            flight
        };
        let Some(answer) = shared.as_ref().and_then(kept) else {
            return Boarding::Leads(flight);
        };
        self.land(&flight);
        // Somebody may have joined meanwhile.
        flight.complete(Ok(Arc::clone(&answer)));
        Boarding::Kept(answer)
    }

    /// A flight whose text is read along; nobody joins it.
    pub fn board_streamed(&self, order: Order, max_unread_frames: usize) -> (Arc<Flight>, Reader) {
        let (flight, reader) = Flight::streamed(order, max_unread_frames);
        flight.board();
        self.table()
            .by_request
            .insert(flight.order.request_id, Arc::clone(&flight));
        (flight, reader)
    }

    /// The flight of a request.
    #[must_use]
    pub fn find(&self, request_id: &RequestId) -> Option<Arc<Flight>> {
        self.table().by_request.get(request_id).cloned()
    }

    /// A number for one publication, under which the broker's acknowledgement comes back.
    pub fn publication(&self, request_id: RequestId) -> u64 {
        let mut table = self.table();
        let number = table.next_publication;
        table.next_publication += 1;
        table.by_publication.insert(number, request_id);
        number
    }

    /// The flight of a publication, which is acknowledged now and forgotten.
    #[must_use]
    pub fn acknowledged(&self, publication: u64) -> Option<Arc<Flight>> {
        let mut table = self.table();
        let request_id = table.by_publication.remove(&publication)?;
        table.by_request.get(&request_id).cloned()
    }

    /// Forgets a flight that is over.
    pub fn land(&self, flight: &Arc<Flight>) {
        let mut table = self.table();
        table.by_request.remove(&flight.order.request_id);
        // The key may belong to another flight: a younger one, when this one was being cancelled or not to be joined.
        let Some(key) = &flight.order.key else {
            return;
        };
        if table.by_key.get(key).is_some_and(|known| Arc::ptr_eq(known, flight)) {
            table.by_key.remove(key);
        }
    }

    /// Everything in flight, and forgets publications whose flights are over.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Flight>> {
        let mut table = self.table();
        let Table {
            by_request,
            by_publication,
            ..
        } = &mut *table;
        by_publication.retain(|_, request_id| by_request.contains_key(request_id));
        by_request.values().cloned().collect()
    }

    /// How many computations are in flight.
    #[must_use]
    pub fn count(&self) -> usize {
        self.table().by_request.len()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use process::TraceContext;
    use serde_bytes::ByteBuf;

    use super::*;
    use crate::received::{Content, Wanted};

    fn order(key: Option<u8>) -> Order {
        Order {
            request_id: RequestId::new(),
            model: "m".to_owned(),
            slug: "m".to_owned(),
            subject: "s".to_owned(),
            payload: Bytes::new(),
            identity: String::new(),
            trace: TraceContext::new_root(),
            deadline_ms: 0,
            key: key.map(|key| CacheKey {
                tenant: "t".to_owned(),
                digest: ByteBuf::from(vec![key; 32]),
            }),
            join: true,
            keep: true,
            wanted: Wanted::Vectors(1),
        }
    }

    #[test]
    fn of_many_identical_requests_one_leads() {
        let flights = Flights::default();
        let Boarding::Leads(leader) = flights.board(order(Some(1)), |_| None) else {
            panic!("first leads")
        };
        for _ in 0..63 {
            assert!(
                matches!(flights.board(order(Some(1)), |_| None), Boarding::Joined(flight) if Arc::ptr_eq(&flight, &leader))
            );
        }
        assert!(matches!(flights.board(order(Some(2)), |_| None), Boarding::Leads(_)));
        assert!(matches!(flights.board(order(None), |_| None), Boarding::Leads(_)));
        assert_eq!(flights.count(), 3);
    }

    #[test]
    fn who_comes_just_after_the_answer_takes_it_from_the_cache() {
        let flights = Flights::default();
        let usage = schemas::reply::Usage::default();
        let answer = Arc::new(Answer::new("m".to_owned(), Content::Vectors(Vec::new()), usage));
        // The caller looked and found nothing; then the leader was answered, its answer kept, its flight forgotten.
        let boarding = flights.board(order(Some(1)), |_| Some(Arc::clone(&answer)));
        assert!(matches!(boarding, Boarding::Kept(kept) if Arc::ptr_eq(&kept, &answer)));
        assert_eq!(flights.count(), 0);
        let fresh = Order {
            join: false,
            ..order(Some(1))
        };
        let boarding = flights.board(fresh, |_| Some(Arc::clone(&answer)));
        assert!(
            matches!(boarding, Boarding::Leads(_)),
            "who wants it fresh gets it fresh"
        );
    }

    #[test]
    fn a_flight_that_is_being_cancelled_is_not_joined_and_does_not_take_its_successor_along() {
        let flights = Flights::default();
        let Boarding::Leads(first) = flights.board(order(Some(1)), |_| None) else {
            panic!("leads")
        };
        assert!(first.leave());
        let Boarding::Leads(second) = flights.board(order(Some(1)), |_| None) else {
            panic!("leads")
        };
        flights.land(&first);
        assert!(
            matches!(flights.board(order(Some(1)), |_| None), Boarding::Joined(flight) if Arc::ptr_eq(&flight, &second))
        );
    }

    #[test]
    fn publications_are_found_once_and_do_not_pile_up() {
        let flights = Flights::default();
        let Boarding::Leads(flight) = flights.board(order(None), |_| None) else {
            panic!("leads")
        };
        let (one, two) = (
            flights.publication(flight.order.request_id),
            flights.publication(flight.order.request_id),
        );
        assert_ne!(one, two);
        assert!(flights.acknowledged(one).is_some());
        assert!(flights.acknowledged(one).is_none());
        flights.land(&flight);
        assert!(flights.all().is_empty());
        assert!(flights.acknowledged(two).is_none());
        assert!(flights.table().by_publication.is_empty());
    }
}
