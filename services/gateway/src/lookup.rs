//! From plan to answer. Input: a plan and who asks. Output: the answer and where it came from: the local tier, the shared
//! tier, somebody else's identical request, or a worker.

use std::sync::Arc;
use std::time::Duration;

use bus::Headers;
use schemas::cache::{CacheFound, CacheGet, CacheKey};
use schemas::error::{ErrorCode, Failure};
use schemas::fleet::ModelCard;
use schemas::policy::Grant;
use schemas::work::{Lane, Work};
use schemas::{subjects, wire};
use serde_bytes::ByteBuf;

use crate::answer::Answer;
use crate::call::Call;
use crate::flight::{Flight, Order, Reader};
use crate::flights::Boarding;
use crate::plan::Plan;
use crate::progress::Edition;
use crate::received::Wanted;
use crate::{Gateway, dispatch};

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
        self: &Arc<Self>,
        plan: Plan,
        call: &Call,
        card: &ModelCard,
        grant: &Grant,
    ) -> Result<(Arc<Answer>, Source), Failure> {
        if !call.cache.fresh
            && let Some(key) = &plan.key
            && let Some((answer, source)) = self.look_up(key, plan.wanted, &card.name).await
        {
            return Ok((answer, source));
        }
        let order = order(plan, call, card, grant)?;
        let (flight, source) = match self.flights.board(order, |key| self.local.get(key)) {
            Boarding::Kept(answer) => return Ok((answer, Source::Local)),
            Boarding::Joined(flight) => (flight, Source::Coalesced),
            Boarding::Leads(flight) if call.cache.fresh => (flight, Source::Bypassed),
            Boarding::Leads(flight) => (flight, Source::Computed),
        };
        let waiter = Waiter::new(self, flight);
        if source != Source::Coalesced
            && let Err(failure) = self.publish(&waiter.flight, Edition::New).await
        {
            self.finish(&waiter.flight, Err(failure));
        }
        let answer = self.wait(&waiter.flight, call).await?;
        Ok((answer, source))
    }

    /// Begins to answer a plan whose text is read along. Dropping the waiter takes the work back.
    ///
    /// # Errors
    /// When the work cannot be encoded; all else ends the flight.
    pub(crate) async fn begin_stream(
        self: &Arc<Self>,
        plan: Plan,
        call: &Call,
        card: &ModelCard,
        grant: &Grant,
    ) -> Result<(Waiter, Reader), Failure> {
        let order = order(plan, call, card, grant)?;
        let most = self.config.stream.max_unread_frames;
        let (flight, reader) = self.flights.board_streamed(order, most);
        let waiter = Waiter::new(self, flight);
        if let Err(failure) = self.publish(&waiter.flight, Edition::New).await {
            self.finish(&waiter.flight, Err(failure));
        }
        Ok((waiter, reader))
    }

    /// Waits for a flight, at most until this caller's own deadline: the leader's may be later.
    async fn wait(&self, flight: &Flight, call: &Call) -> Result<Arc<Answer>, Failure> {
        let left_ms = call.deadline_ms.saturating_sub(self.clock.now_unix_ms());
        // The rescue task keeps the deadline of the flight; this is the backstop and the deadline of those who joined.
        let limit = Duration::from_millis(left_ms + self.config.dispatch.rescue_interval_ms);
        match tokio::time::timeout(limit, flight.outcome()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::new(
                ErrorCode::DeadlineExceeded,
                "the deadline passed before the answer was there",
            )),
        }
    }

    async fn look_up(&self, key: &CacheKey, wanted: Wanted, model: &str) -> Option<(Arc<Answer>, Source)> {
        if let Some(answer) = self.local.get(key) {
            return Some((answer, Source::Local));
        }
        // Asked only when the shared tier said it has it, so a miss costs no round trip.
        if !self.known_shared.contains(key.fingerprint()) {
            return None;
        }
        let body = self.get_shared(key).await?;
        let answer = Answer::from_cached(model.to_owned(), wanted, &body)
            .inspect_err(|error| tracing::warn!(%error, "cached answer cannot be read"));
        let answer = Arc::new(answer.ok()?);
        self.local.insert(key.clone(), Arc::clone(&answer));
        Some((answer, Source::Shared))
    }

    async fn get_shared(&self, key: &CacheKey) -> Option<ByteBuf> {
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
        if found.is_none() {
            self.known_shared.remove(key.fingerprint());
        }
        found
    }

    /// Keeps an answer in both tiers, if its client allows and it would be the same again.
    pub(crate) fn keep(&self, flight: &Flight, answer: &Arc<Answer>) {
        let Some(key) = flight.order.key.as_ref().filter(|_| flight.order.keep) else {
            return;
        };
        self.local.insert(key.clone(), Arc::clone(answer));
        self.share(key.clone(), Arc::clone(answer));
    }
}

fn order(plan: Plan, call: &Call, card: &ModelCard, grant: &Grant) -> Result<Order, Failure> {
    let lane = Lane::Interactive.max(grant.priority_ceiling);
    let work = Work {
        request_id: call.request_id,
        model: card.name.clone(),
        submitted_at_ms: call.received_at_ms,
        task: plan.task,
    };
    Ok(Order {
        request_id: call.request_id,
        model: card.name.clone(),
        slug: card.slug.clone(),
        subject: subjects::work(&card.slug, lane, &grant.tenant),
        payload: dispatch::encoded(&work)?,
        identity: grant.identity.clone(),
        trace: call.trace,
        deadline_ms: call.deadline_ms,
        key: plan.key,
        join: !call.cache.fresh,
        keep: !call.cache.forget,
        wanted: plan.wanted,
    })
}

/// One caller that waits for a flight; leaving last takes the work back.
pub(crate) struct Waiter {
    gateway: Arc<Gateway>,
    pub(crate) flight: Arc<Flight>,
}

impl Waiter {
    fn new(gateway: &Arc<Gateway>, flight: Arc<Flight>) -> Self {
        Self {
            gateway: Arc::clone(gateway),
            flight,
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.flight.leave() {
            self.gateway.abandon(&self.flight);
        }
    }
}
