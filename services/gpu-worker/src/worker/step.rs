//! What the worker does between two events. Input: what is in hand. Output: batches begun, answers sent, finished requests
//! billed and settled, deadlines kept, signs of life.

use std::time::Duration;

use engine::TokenIds;
use tokio::time::Instant;

use super::Worker;
use crate::compute::Computed;
use crate::hands::Batch;

/// Time between two looks for passed deadlines; clients are told by their gateway, here only work is saved.
const EXPIRE_EVERY: Duration = Duration::from_millis(50);

impl Worker {
    pub(super) async fn on_computed(&mut self, computed: Computed) {
        self.running = None;
        let tokens = self.running_tokens.take();
        self.finish(computed, tokens).await;
    }

    async fn finish(&mut self, computed: Computed, tokens: Option<Vec<TokenIds>>) {
        self.parts.desk.count_batch(&computed);
        let finished = self.hands.on_computed(computed, tokens);
        for held in finished.done {
            self.parts.desk.answer(held);
        }
        for held in finished.cancelled {
            self.parts.desk.drop_cancelled(held);
        }
        if let Some((held, reason)) = finished.failed {
            self.parts.desk.compute_failed(&self.parts.bus, held, &reason).await;
        }
    }

    /// Starts what can start, sends what is to be sent. Gives the time at which a waiting batch is due.
    pub(super) async fn step(&mut self) -> Option<Instant> {
        let mut due = None;
        self.expire();
        while self.running.is_none() && !self.must_settle_first() {
            match self.hands.next_batch(self.parts.context.clock.monotonic_us()) {
                Ok(batch) if batch.items.is_empty() => {}
                Ok(batch) => self.start(batch).await,
                Err(at_us) => {
                    due = at_us.map(|at_us| self.instant(at_us));
                    break;
                }
            }
        }
        self.parts.desk.outbox.send(&self.parts.bus).await;
        let is_urgent = self.hands.next_is_alone();
        due = earlier(due, self.settler.settle(&mut self.parts.desk.settlement, is_urgent));
        self.parts.stats.note(self.hands.count(), self.hands.waiting_tokens());
        self.parts
            .metrics
            .in_hand
            .set(i64::try_from(self.hands.count()).unwrap_or(i64::MAX));
        self.parts
            .metrics
            .waiting_tokens
            .set(i64::try_from(self.hands.waiting_tokens()).unwrap_or(i64::MAX));
        due
    }

    /// Before a suspect is begun, what is finished leaves the process: if the suspect kills it, nobody else comes again.
    fn must_settle_first(&self) -> bool {
        let unsettled = !self.settler.is_empty() || !self.parts.desk.settlement.is_empty();
        unsettled && self.hands.next_is_alone()
    }

    fn instant(&self, at_us: u64) -> Instant {
        Instant::now() + Duration::from_micros(at_us.saturating_sub(self.parts.context.clock.monotonic_us()))
    }

    fn expire(&mut self) {
        if Instant::now() < self.expire_at {
            return;
        }
        self.expire_at = Instant::now() + EXPIRE_EVERY;
        for key in self.hands.expired(self.parts.context.clock.now_unix_ms()) {
            if let Some(held) = self.hands.remove(key) {
                self.parts.desk.expire_held(held);
            }
        }
    }

    async fn start(&mut self, batch: Batch) {
        let now_ms = self.parts.context.clock.now_unix_ms();
        for item in &batch.items {
            if let Some(held) = self.hands.get_mut(item.key) {
                held.on_started(now_ms);
            }
        }
        if self.device.is_instant() {
            let computed = self.device.compute_now(batch.items, &batch.tokens);
            self.finish(computed, Some(batch.tokens)).await;
        } else {
            self.running = Some(self.device.compute(batch.items, batch.tokens.clone()));
            self.running_tokens = Some(batch.tokens);
        }
    }
}

pub(crate) fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
