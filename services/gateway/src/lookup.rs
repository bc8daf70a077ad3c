//! From plan to answer. Input: a plan and who asks. Output: the answer and where it came from: the local tier, the shared
//! tier, somebody else's identical request, or a worker.

use std::sync::Arc;
use std::time::Duration;

use bus::Headers;
use schemas::cache::{CacheFound, CacheGet, CacheKey, CachedEmbeddings};
use schemas::error::Failure;
use schemas::fleet::ModelCard;
use schemas::policy::Grant;
use schemas::work::{Lane, Task, Work};
use schemas::{subjects, wire};

use crate::Gateway;
use crate::answer::Answer;
use crate::call::Call;
use crate::flight::{Edition, Flight, Order};
use crate::flights::Boarding;
use crate::plan::Plan;

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// This process had it.
    Local,
    /// The shared tier had it.
    Shared,
    /// Somebody else had just asked the same.
    Coalesced,
    /// It was computed.
    Computed,
    /// It was computed because the client wanted it so.
    Bypassed,
}

impl Source {
    /// Value of the `x-portalis-cache` header.
    #[must_use]
    pub fn header(self) -> &'static str {
        match self {
            Self::Local | Self::Shared => "hit",
            Self::Coalesced => "coalesced",
            Self::Computed | Self::Bypassed => "miss",
        }
    }

    /// Label of the metric.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Shared => "shared",
            Self::Coalesced => "coalesced",
            Self::Computed => "miss",
            Self::Bypassed => "bypass",
        }
    }

    /// Whether nothing was computed for this caller.
    #[must_use]
    pub fn is_free(self) -> bool {
        matches!(self, Self::Local | Self::Shared | Self::Coalesced)
    }
}

impl Gateway {
    /// Answers a plan. Dropping the future takes the work back when nobody else waits for it.
    ///
    /// # Errors
    /// What the worker, the queue or the deadline says.
    pub(crate) async fn answer(
        &self,
        plan: Plan,
        call: &Call,
        card: &ModelCard,
        grant: &Grant,
    ) -> Result<(Arc<Answer>, Source), Failure> {
        if !call.cache.fresh
            && let Some((answer, source)) = self.look_up(&plan.key, &card.name).await
        {
            return Ok((answer, source));
        }
        let order = self.order(plan, call, card, grant)?;
        let (flight, source) = match self.flights.board(order) {
            Boarding::Joined(flight) => (flight, Source::Coalesced),
            Boarding::Leads(flight) if call.cache.fresh => (flight, Source::Bypassed),
            Boarding::Leads(flight) => (flight, Source::Computed),
        };
        let waiter = Waiter { gateway: self, flight };
        if source != Source::Coalesced
            && let Err(failure) = self.publish(&waiter.flight, Edition::New).await
        {
            self.finish(&waiter.flight, Err(failure));
        }
        let answer = self.wait(&waiter.flight, call).await?;
        Ok((answer, source))
    }

    /// Waits for a flight, at most until this caller's own deadline: the leader's may be later.
    async fn wait(&self, flight: &Flight, call: &Call) -> Result<Arc<Answer>, Failure> {
        let left_ms = call.deadline_ms.saturating_sub(self.clock.now_unix_ms());
        // The rescue task keeps the deadline of the flight; this is the backstop and the deadline of those who joined.
        let limit = Duration::from_millis(left_ms + self.config.dispatch.rescue_interval_ms);
        match tokio::time::timeout(limit, flight.outcome()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::new(
                schemas::error::ErrorCode::DeadlineExceeded,
                "the deadline passed before the answer was there",
            )),
        }
    }

    fn order(&self, plan: Plan, call: &Call, card: &ModelCard, grant: &Grant) -> Result<Order, Failure> {
        let lane = Lane::Interactive.max(grant.priority_ceiling);
        let inputs = plan.task.inputs.len();
        let work = Work {
            request_id: call.request_id,
            model: card.name.clone(),
            submitted_at_ms: call.received_at_ms,
            task: Task::Embed(plan.task),
        };
        let payload = wire::encode(&work).map_err(|error| {
            tracing::error!(%error, "work cannot be encoded");
            Failure::new(
                schemas::error::ErrorCode::Internal,
                "the request could not be passed on",
            )
        })?;
        Ok(Order {
            request_id: call.request_id,
            model: card.name.clone(),
            slug: card.slug.clone(),
            subject: subjects::work(&card.slug, lane, &grant.tenant),
            payload: payload.into(),
            identity: grant.identity.clone(),
            trace: call.trace,
            deadline_ms: call.deadline_ms,
            key: plan.key,
            join: !call.cache.fresh,
            keep: !call.cache.forget,
            inputs,
        })
    }

    async fn look_up(&self, key: &CacheKey, model: &str) -> Option<(Arc<Answer>, Source)> {
        if let Some(answer) = self.local.get(key) {
            return Some((answer, Source::Local));
        }
        // Asked only when the shared tier said it has it, so a miss costs no round trip.
        if !self.known_shared.contains(key.fingerprint()) {
            return None;
        }
        let answer = Arc::new(Answer::from_cached(model.to_owned(), self.get_shared(key).await?));
        self.local.insert(key.clone(), Arc::clone(&answer));
        Some((answer, Source::Shared))
    }

    async fn get_shared(&self, key: &CacheKey) -> Option<CachedEmbeddings> {
        let request = wire::encode(&CacheGet { key: key.clone() }).ok()?;
        let timeout = Duration::from_millis(self.config.cache.shared_timeout_ms);
        let subject = subjects::cache_get(key.shard());
        let reply = match self
            .bus
            .request(&subject, Headers::new(), request.into(), timeout)
            .await
        {
            Ok(reply) => reply,
            Err(error) => {
                // Slower, never wrong: it is computed, and not asked for again.
                tracing::debug!(%error, "shared cache did not answer");
                self.known_shared.remove(key.fingerprint());
                return None;
            }
        };
        let found = wire::decode::<CacheFound>(&reply.payload)
            .ok()
            .and_then(|found| found.body);
        let Some(body) = found else {
            self.known_shared.remove(key.fingerprint());
            return None;
        };
        wire::decode(&body)
            .inspect_err(|error| tracing::warn!(%error, "cached answer cannot be read"))
            .ok()
    }

    /// Keeps an answer in both tiers, if its client allows.
    pub(crate) fn keep(&self, flight: &Flight, answer: &Arc<Answer>) {
        if !flight.order.keep {
            return;
        }
        let key = &flight.order.key;
        self.local.insert(key.clone(), Arc::clone(answer));
        self.share(key.clone(), Arc::clone(answer));
    }
}

/// One caller that waits for a flight; leaving last takes the work back.
struct Waiter<'a> {
    gateway: &'a Gateway,
    flight: Arc<Flight>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if self.flight.leave() {
            self.gateway.abandon(&self.flight);
        }
    }
}
