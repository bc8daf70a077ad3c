//! What a service is given to live with: health, metrics, tasks, stop and clock of this one instance.

use std::collections::HashMap;
use std::time::SystemTime;

use prometheus::Registry;

use crate::clock::Clock;
use crate::health::Health;
use crate::lifecycle::Shutdown;
use crate::random;
use crate::tasks::Tasks;

/// The surroundings of one running service; clones share them.
#[derive(Clone, Debug)]
pub struct Context {
    /// The service's name, such as `gateway`.
    pub service: &'static str,
    /// This instance's name, such as `gateway-3f9a1c2b`: unique, safe in a subject.
    pub instance: String,
    /// Where components report whether they are ready.
    pub health: Health,
    /// Where metrics are registered; adds the label `service` to each.
    pub registry: Registry,
    /// Where tasks are spawned.
    pub tasks: Tasks,
    /// When to stop.
    pub shutdown: Shutdown,
    /// Where the time is read.
    pub clock: Clock,
    /// When this instance began.
    pub started_at: SystemTime,
}

impl Context {
    /// A context of its own: no signal and no ops server is attached to it.
    #[must_use]
    pub fn new(service: &'static str) -> Self {
        Self::with_shutdown(service, Shutdown::new())
    }

    /// A context that stops together with others, as in one process with several services.
    #[must_use]
    pub fn with_shutdown(service: &'static str, shutdown: Shutdown) -> Self {
        Self {
            service,
            instance: format!("{service}-{:08x}", random::bits_64() as u32),
            health: Health::new(shutdown.soft().clone()),
            registry: registry_of(service),
            tasks: Tasks::new(shutdown.clone()),
            shutdown,
            clock: Clock::real(),
            started_at: SystemTime::now(),
        }
    }
}

#[expect(clippy::expect_used, reason = "only an empty prefix is refused, and none is given")]
fn registry_of(service: &str) -> Registry {
    // Told apart by label, several services may register the same metric and still share one page.
    let labels = HashMap::from([("service".to_owned(), service.to_owned())]);
    Registry::new_custom(None, Some(labels)).expect("a registry without a prefix is valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_differ_and_are_subject_safe() {
        let (one, two) = (Context::new("gateway"), Context::new("gateway"));
        assert_ne!(one.instance, two.instance);
        let (service, id) = one.instance.split_once('-').unwrap();
        assert_eq!((service, id.len()), ("gateway", 8));
        assert!(id.chars().all(|digit| digit.is_ascii_hexdigit()));
    }

    #[test]
    fn a_stop_makes_all_who_share_it_unready() {
        let shutdown = Shutdown::new();
        let contexts = ["auth", "cache"].map(|service| Context::with_shutdown(service, shutdown.clone()));
        contexts
            .iter()
            .for_each(|context| context.health.component("bus").set_ready());
        assert!(contexts.iter().all(|context| context.health.is_ready()));
        contexts[0].shutdown.start();
        assert!(contexts.iter().all(|context| !context.health.is_ready()));
    }
}
