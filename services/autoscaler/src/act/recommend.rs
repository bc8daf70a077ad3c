//! Recommends only. Input: live workers. Output: pools with the configured limits; decisions change nothing, they are
//! read from the EVENTS stream by whoever runs the workers.

use std::sync::Arc;

use schemas::fleet::ScaleDecision;

use super::{ActError, Actuator, Pool};
use crate::beats::FORGET_AFTER_MS;
use crate::decide::Limits;
use crate::observe::Observer;
use crate::signal::SignalState;

/// Changes nothing.
#[derive(Debug)]
pub struct Recommend {
    limits: Limits,
}

impl Recommend {
    /// The same limits for every model.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits }
    }
}

impl Actuator for Recommend {
    async fn pools(&self, observer: &Arc<Observer>) -> Result<Vec<Pool>, ActError> {
        let mut pools = Vec::new();
        for model in observer.models() {
            let wanted = match observer.workers(&model) {
                SignalState::Fresh(seen) => seen.ready + seen.starting,
                // A model with a card that nobody has beaten for all the time that beats are kept has no workers.
                SignalState::Missing if observer.uptime_ms() > FORGET_AFTER_MS => 0,
                // Else the size is not known, so there is nothing to recommend a change of.
                SignalState::Missing | SignalState::Stale { .. } => continue,
            };
            pools.push(Pool {
                model,
                wanted,
                limits: self.limits,
            });
        }
        Ok(pools)
    }

    async fn apply(&self, _decision: &ScaleDecision) -> Result<(), ActError> {
        Ok(())
    }
}
