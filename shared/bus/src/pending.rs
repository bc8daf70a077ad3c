//! Requests that wait for their answers. Input: reply tokens. Output: the answer handed to the one waiting future.
//!
//! A slab: a token is slot and generation, so a late answer never reaches the slot's next user. The future that waits
//! owns its slot and frees it when it is dropped, answered or not: nothing can leak.

use std::sync::{Mutex, PoisonError};

use tokio::sync::oneshot;

use crate::Message;

/// Most requests in flight on one connection: far above what a service has, low enough to bound memory.
pub(crate) const MAX_PENDING: usize = 65_536;

#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

struct Slot {
    generation: u32,
    waiting: Option<oneshot::Sender<Message>>,
}

/// All requests in flight of one connection.
#[derive(Default)]
pub(crate) struct Pending {
    slots: Mutex<Slots>,
}

/// One waiting request; frees its slot when dropped.
pub(crate) struct PendingReply<'a> {
    pending: &'a Pending,
    token: u64,
    answer: oneshot::Receiver<Message>,
}

impl Pending {
    fn lock(&self) -> std::sync::MutexGuard<'_, Slots> {
        // A panic while holding the lock cannot leave a slot half changed: every change is one assignment.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot for one request, or `None` when [`MAX_PENDING`] are taken.
    pub(crate) fn reserve(&self) -> Option<PendingReply<'_>> {
        let (sender, answer) = oneshot::channel();
        let mut slots = self.lock();
        let index = match slots.free.pop() {
            Some(index) => index,
            None if slots.slots.len() < MAX_PENDING => {
                slots.slots.push(Slot {
                    generation: 0,
                    waiting: None,
                });
                u32::try_from(slots.slots.len() - 1).ok()?
            }
            None => return None,
        };
        let slot = &mut slots.slots[index as usize];
        slot.waiting = Some(sender);
        Some(PendingReply {
            pending: self,
            token: u64::from(index) << 32 | u64::from(slot.generation),
            answer,
        })
    }

    /// Hands an answer to who waits for it; `false` when nobody does any more.
    pub(crate) fn deliver(&self, token: u64, message: Message) -> bool {
        let sender = {
            let mut slots = self.lock();
            match slots.slots.get_mut((token >> 32) as usize) {
                Some(slot) if u64::from(slot.generation) == token & 0xffff_ffff => slot.waiting.take(),
                _ => None,
            }
        };
        sender.is_some_and(|sender| sender.send(message).is_ok())
    }

    /// Fails every request in flight: their answers were lost with the connection.
    pub(crate) fn fail_all(&self) {
        for slot in &mut self.lock().slots {
            slot.waiting = None;
        }
    }

    /// Requests in flight now.
    pub(crate) fn in_flight(&self) -> usize {
        let slots = self.lock();
        slots.slots.len() - slots.free.len()
    }
}

impl PendingReply<'_> {
    /// The number in the reply subject.
    pub(crate) fn token(&self) -> u64 {
        self.token
    }

    /// The answer, or `None` when the connection was lost. Cancel-safe: dropping it gives up the request.
    pub(crate) async fn answer(&mut self) -> Option<Message> {
        (&mut self.answer).await.ok()
    }
}

impl Drop for PendingReply<'_> {
    fn drop(&mut self) {
        let index = (self.token >> 32) as u32;
        let mut slots = self.pending.lock();
        if let Some(slot) = slots.slots.get_mut(index as usize) {
            slot.waiting = None;
            slot.generation = slot.generation.wrapping_add(1);
            slots.free.push(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        Message {
            payload: bytes::Bytes::new(),
            headers: crate::Headers::new(),
            subject: async_nats::Subject::from_static("x"),
            reply: None,
            status: None,
            description: None,
        }
    }

    #[tokio::test]
    async fn a_late_answer_never_reaches_the_next_user_of_a_slot() {
        let pending = Pending::default();
        let first = pending.reserve().unwrap();
        let stale = first.token();
        drop(first);
        let mut second = pending.reserve().unwrap();
        assert_eq!(second.token() >> 32, stale >> 32, "the slot is used again");
        assert!(!pending.deliver(stale, message()));
        assert!(pending.deliver(second.token(), message()));
        assert!(!pending.deliver(second.token(), message()), "one answer only");
        assert!(second.answer().await.is_some());
        drop(second);
        assert_eq!(pending.in_flight(), 0);
    }

    #[tokio::test]
    async fn a_lost_connection_fails_all_and_frees_all() {
        let pending = Pending::default();
        let mut waiting: Vec<_> = (0..100).map(|_| pending.reserve().unwrap()).collect();
        assert_eq!(pending.in_flight(), 100);
        pending.fail_all();
        for reply in &mut waiting {
            assert!(reply.answer().await.is_none());
        }
        drop(waiting);
        assert_eq!(pending.in_flight(), 0);
        assert!(!pending.deliver(0, message()));
        assert!(!pending.deliver(u64::MAX, message()));
    }

    #[test]
    fn the_slab_is_bounded() {
        let pending = Pending::default();
        let held: Vec<_> = (0..MAX_PENDING).map(|_| pending.reserve().unwrap()).collect();
        assert!(pending.reserve().is_none());
        drop(held);
        assert!(pending.reserve().is_some());
    }
}
