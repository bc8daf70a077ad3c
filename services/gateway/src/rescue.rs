//! The watch over all that is in flight. Input: a tick, the connection's state, the catalog. Output: deadlines kept,
//! work of silent workers given back to the queue, work that a restarted broker forgot published again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use process::CancellationToken;
use schemas::error::{ErrorCode, Failure};
use schemas::streams::MAX_WORK_DELIVERIES;
use tokio::time::MissedTickBehavior;

use crate::Gateway;
use crate::catalog::Lookup;
use crate::flight::Flight;
use crate::progress::Edition;

/// What a look at a flight says is to be done.
#[derive(Debug, PartialEq, Eq)]
enum Remedy {
    None,
    /// Nobody waits any more.
    Expire,
    /// Its worker has gone silent: give the work back at this acknowledgement subject.
    GiveBack(String),
    /// Its worker has gone silent after it had sent text: end the message at this acknowledgement subject and publish
    /// another that goes on from there.
    Resume(String),
    /// A worker has gone silent and may have it without having said so: replace the queued message by a new one.
    Requeue,
    /// Publish it again.
    Republish(Edition, &'static str),
    /// No worker came back in time.
    GiveUp,
}

/// Looks at everything in flight, again and again, until the gateway stops.
///
/// # Errors
/// Never; the signature is that of a task.
pub(crate) async fn run(gateway: Arc<Gateway>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(Duration::from_millis(gateway.config.dispatch.rescue_interval_ms));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connected = gateway.bus.connected();
    loop {
        let reconnected = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = tick.tick() => false,
            Ok(()) = connected.changed() => *connected.borrow_and_update(),
        };
        let now_us = gateway.clock.monotonic_us();
        if reconnected {
            gateway.catalog.on_reconnected(now_us);
        }
        let bereaved = if gateway.bus.is_connected() {
            gateway.catalog.newly_silent(now_us)
        } else {
            HashSet::new()
        };
        gateway.catalog.forget_old(now_us);
        let flights = gateway.flights.all();
        let mut round = Round {
            reconnected,
            bereaved,
            suspects: Suspects::among(&flights),
        };
        for flight in &flights {
            gateway.tend(flight, &mut round).await;
        }
    }
}

/// One look at everything.
#[derive(Debug)]
struct Round {
    /// The connection has just come back.
    reconnected: bool,
    /// Models that have just lost a worker.
    bereaved: HashSet<String>,
    suspects: Suspects,
}

/// Models with work on its last attempt. When a worker dies, all it held counts one attempt more, the innocent with the
/// poison. Before the last attempt they are told apart: of each model only one at a time is given back for it, so whoever
/// kills the next worker dies alone.
#[derive(Debug, Default)]
struct Suspects(HashSet<String>);

impl Suspects {
    fn among(flights: &[Arc<Flight>]) -> Self {
        let suspects = flights
            .iter()
            .filter(|flight| flight.state().suspect && !flight.is_complete());
        Self(suspects.map(|flight| flight.order.slug.clone()).collect())
    }

    /// Whether a flight whose worker has gone silent may be given back now.
    fn admit(&mut self, flight: &Flight) -> bool {
        let mut state = flight.state();
        if state.suspect || i64::from(state.trials()) < MAX_WORK_DELIVERIES - 1 {
            return true;
        }
        state.suspect = self.0.insert(flight.order.slug.clone());
        state.suspect
    }
}

impl Gateway {
    async fn tend(&self, flight: &Arc<Flight>, round: &mut Round) {
        match self.remedy(flight, round) {
            Remedy::None => {}
            Remedy::Expire => {
                let failure = Failure::new(
                    ErrorCode::DeadlineExceeded,
                    "the deadline passed before the answer was there",
                );
                self.finish(flight, Err(failure));
                let _ = self.take_back(flight).await;
            }
            Remedy::GiveBack(_) | Remedy::Resume(_) if !round.suspects.admit(flight) => {}
            Remedy::GiveBack(ack_subject) => self.give_back(flight, &ack_subject).await,
            Remedy::Resume(ack_subject) => self.resume(flight, &ack_subject).await,
            Remedy::Requeue => {
                let sequence = {
                    let mut state = flight.state();
                    state.requeued = true;
                    state.stream_sequence.take()
                };
                if let Some(sequence) = sequence {
                    // Nobody gets it any more then, so the wait for its acknowledgement is over.
                    crate::dispatch::delete_queued(&self.bus, &flight.order, sequence).await;
                }
                self.republish(flight, Edition::New, "silent_worker").await;
            }
            Remedy::Republish(edition, reason) => self.republish(flight, edition, reason).await,
            Remedy::GiveUp => self.finish(flight, Err(no_worker(&flight.order.model))),
        }
    }

    async fn give_back(&self, flight: &Arc<Flight>, ack_subject: &str) {
        self.metrics.rescued.inc();
        {
            let mut state = flight.state();
            state.accepted = None;
            state.lost_workers += 1;
        }
        tracing::warn!(request_id = %flight.order.request_id, "worker is silent, its work goes back to the queue");
        if let Err(error) = self.bus.nak_at(ack_subject).await {
            tracing::debug!(%error, "not given back; the queue's own wait will do it");
        }
    }

    /// Has another worker go on after the text that is there.
    async fn resume(&self, flight: &Arc<Flight>, ack_subject: &str) {
        self.metrics.rescued.inc();
        let lost_workers = {
            let mut state = flight.state();
            state.accepted = None;
            state.lost_workers += 1;
            state.lost_workers
        };
        tracing::warn!(request_id = %flight.order.request_id, lost_workers, "worker is silent, another goes on with its text");
        // The queue would give the message out again without the text.
        if let Err(error) = self.bus.term_at(ack_subject, "goes on elsewhere").await {
            tracing::debug!(%error, "message of a silent worker not ended; its copies are not heard");
        }
        if i64::from(lost_workers) >= MAX_WORK_DELIVERIES {
            let message = format!("the work failed on {lost_workers} workers and is not tried again");
            self.finish(flight, Err(Failure::new(ErrorCode::Poisoned, message)));
            return;
        }
        self.republish(flight, Edition::New, "silent_worker").await;
    }

    fn remedy(&self, flight: &Flight, round: &Round) -> Remedy {
        let (now_ms, now_us) = (self.clock.now_unix_ms(), self.clock.monotonic_us());
        if now_ms >= flight.order.deadline_ms {
            return Remedy::Expire;
        }
        let state = flight.state();
        if round.reconnected {
            // The queue lives in the broker's memory, so a restart empties it; and an answer may have been sent while
            // nobody could hear it. A copy that survived is deleted or stopped, and the ledger books the request once.
            return Remedy::Republish(Edition::New, "reconnect");
        }
        if !self.bus.is_connected() {
            return Remedy::None; // The reconnection will look again; until then everybody is silent.
        }
        if let Some(accepted) = &state.accepted {
            let silent = self.catalog.is_silent(&accepted.worker, now_us);
            return match silent {
                false => Remedy::None,
                true if state.has_text() => Remedy::Resume(accepted.ack_subject.clone()),
                true => Remedy::GiveBack(accepted.ack_subject.clone()),
            };
        }
        // Never accepted, so no worker is known to have died of it.
        let untouched = state.is_untouched() && !state.requeued && state.stream_sequence.is_some();
        if untouched && round.bereaved.contains(&flight.order.model) {
            return Remedy::Requeue;
        }
        if state.homeless {
            return match self.catalog.find(&flight.order.model, now_us) {
                Lookup::Served(_) => Remedy::Republish(Edition::Same, "no_queue"),
                Lookup::Unknown | Lookup::NoWorker => Remedy::GiveUp,
            };
        }
        let quiet_us = now_us.saturating_sub(state.published_at_us);
        let unacknowledged = state.stream_sequence.is_none() && state.edition > 0;
        if unacknowledged && quiet_us > self.config.dispatch.publish_ack_timeout_ms * 1_000 {
            return Remedy::Republish(Edition::Same, "unacknowledged");
        }
        Remedy::None
    }

    pub(crate) async fn republish(&self, flight: &Arc<Flight>, edition: Edition, reason: &'static str) {
        self.metrics.republished.with_label_values(&[reason]).inc();
        // What is left of the old message is not cancelled here: workers know work by its request id and would drop the
        // new message with it. Copies are stopped when one of them is answered, and the ledger books a request once.
        if let Err(failure) = self.publish(flight, edition).await {
            tracing::debug!(request_id = %flight.order.request_id, reason, failure = %failure, "not published again yet");
            flight.state().homeless = true;
        }
    }
}

/// The failure when nobody serves a model.
#[must_use]
pub(crate) fn no_worker(model: &str) -> Failure {
    Failure::new(
        ErrorCode::NoWorker,
        format!("no worker serves model '{model}' now; try again"),
    )
    .retry_after_ms(5_000)
}
