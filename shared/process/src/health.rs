//! Health of one service: its components say whether they are ready; gives one answer, a report as JSON, and a future that waits for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What a component says before it says anything.
const STARTING: &str = "starting";

/// The health of one service; clones share it.
///
/// Ready means: at least one component is registered, all are ready, and the service is not draining.
#[derive(Clone, Debug)]
pub struct Health {
    // The reason why a component is not ready, or none if it is.
    components: Arc<watch::Sender<BTreeMap<String, Option<String>>>>,
    // Draining is the soft shutdown itself, so that no caller can see one without the other.
    draining: CancellationToken,
}

impl Health {
    /// Health that ends when the token is cancelled.
    #[must_use]
    pub fn new(draining: CancellationToken) -> Self {
        Self {
            components: Arc::new(watch::Sender::new(BTreeMap::new())),
            draining,
        }
    }

    /// Registers a component, not ready until it says so; the same name is the same component.
    #[must_use]
    pub fn component(&self, name: impl Into<String>) -> Component {
        let name = name.into();
        self.components.send_if_modified(|components| {
            let known = components.contains_key(&name);
            components
                .entry(name.clone())
                .or_insert_with(|| Some(STARTING.to_owned()));
            !known
        });
        Component {
            name: name.into(),
            health: self.clone(),
        }
    }

    /// Whether the service can take work now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.draining.is_cancelled() && all_ready(&self.components.borrow())
    }

    /// Everything known, for a person or a probe.
    #[must_use]
    pub fn report(&self) -> HealthReport {
        let components: Vec<_> = self.components.borrow().iter().map(ComponentReport::new).collect();
        let ready = !components.is_empty() && components.iter().all(|component| component.ready);
        let status = match (self.draining.is_cancelled(), ready) {
            (true, _) => Status::Draining,
            (false, true) => Status::Ready,
            (false, false) => Status::Unready,
        };
        HealthReport { status, components }
    }

    /// Waits until the service is ready, not longer than the limit.
    ///
    /// Cancel-safe: it only observes.
    ///
    /// # Errors
    /// When the service drains or the limit passes.
    pub async fn wait_ready(&self, limit: Duration) -> Result<(), NotReady> {
        let mut components = self.components.subscribe();
        // Waiting fails only when the sender is gone, and `self` holds it.
        let ready = components.wait_for(all_ready);
        tokio::select! {
            biased;
            () = self.draining.cancelled() => Err(NotReady::Draining),
            waited = tokio::time::timeout(limit, ready) => match waited {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(_)) | Err(_) => Err(NotReady::Deadline { limit_ms: limit.as_millis(), missing: self.missing() }),
            },
        }
    }

    fn missing(&self) -> String {
        let components = self.components.borrow();
        let missing = components
            .iter()
            .filter_map(|(name, reason)| Some(format!("{name} ({})", reason.as_ref()?)));
        let missing: Vec<String> = missing.collect();
        if missing.is_empty() {
            "no component registered".to_owned()
        } else {
            missing.join(", ")
        }
    }
}

fn all_ready(components: &BTreeMap<String, Option<String>>) -> bool {
    // A service that has not registered anything yet has not started.
    !components.is_empty() && components.values().all(Option::is_none)
}

/// One part of a service that can be ready or not, such as its connection to the broker.
#[derive(Clone, Debug)]
pub struct Component {
    name: Arc<str>,
    health: Health,
}

impl Component {
    /// This part works.
    pub fn set_ready(&self) {
        self.set(None);
    }

    /// This part does not work; the reason is shown to whoever may read the health endpoint.
    pub fn set_unready(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()));
    }

    fn set(&self, state: Option<String>) {
        self.health.components.send_if_modified(|components| {
            let slot = components.entry(self.name.to_string()).or_default();
            let changed = *slot != state;
            *slot = state;
            changed
        });
    }
}

/// Whether a service takes work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It does.
    Ready,
    /// It does not yet, or not now.
    Unready,
    /// It finishes what it has and ends.
    Draining,
}

/// The health of one service at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HealthReport {
    /// The one answer.
    pub status: Status,
    /// What it is made of, by name.
    pub components: Vec<ComponentReport>,
}

/// The state of one component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ComponentReport {
    /// Its name.
    pub name: String,
    /// Whether it works.
    pub ready: bool,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl ComponentReport {
    fn new((name, reason): (&String, &Option<String>)) -> Self {
        Self {
            name: name.clone(),
            ready: reason.is_none(),
            reason: reason.clone(),
        }
    }
}

/// Why waiting for a service to be ready failed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// It stops.
    #[error("the service is draining")]
    Draining,
    /// It took too long.
    #[error("not ready after {limit_ms} ms: {missing}")]
    Deadline {
        /// How long was waited.
        limit_ms: u128,
        /// Which components were not ready, and why.
        missing: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> (Health, CancellationToken) {
        let draining = CancellationToken::new();
        (Health::new(draining.clone()), draining)
    }

    #[test]
    fn ready_needs_a_component_all_of_them_and_no_drain() {
        let (health, draining) = health();
        assert!(!health.is_ready(), "nothing registered is not ready");
        let (bus, model) = (health.component("bus"), health.component("model"));
        bus.set_ready();
        assert!(!health.is_ready());
        model.set_ready();
        assert!(health.is_ready());
        bus.set_unready("reconnecting");
        let report = serde_json::to_value(health.report()).unwrap();
        let expected = serde_json::json!({"status": "unready", "components": [
            {"name": "bus", "ready": false, "reason": "reconnecting"}, {"name": "model", "ready": true},
        ]});
        assert_eq!(report, expected);
        health.component("bus").set_ready();
        assert_eq!(health.report().status, Status::Ready);
        draining.cancel();
        assert_eq!((health.is_ready(), health.report().status), (false, Status::Draining));
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_with_ready_drain_or_the_limit() {
        let (health, draining) = health();
        let limit = Duration::from_secs(5);
        let bus = health.component("bus");
        let late = health.wait_ready(limit).await.unwrap_err();
        assert_eq!(late.to_string(), "not ready after 5000 ms: bus (starting)");

        let waiter = tokio::spawn({
            let health = health.clone();
            async move { health.wait_ready(limit).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        bus.set_ready();
        assert_eq!(waiter.await.unwrap(), Ok(()));

        bus.set_unready("gone");
        let (waited, ()) = tokio::join!(health.wait_ready(limit), async { draining.cancel() });
        assert_eq!(waited, Err(NotReady::Draining));
    }
}
