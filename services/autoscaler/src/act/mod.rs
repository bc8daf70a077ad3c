//! Who changes the fleet. Input: decisions. Output: orders to supervisors, or nothing but the published decision.

mod local;
mod recommend;

use std::future::Future;
use std::sync::Arc;

use bus::BusError;
use schemas::fleet::ScaleDecision;
use schemas::wire::WireError;

use crate::decide::Limits;
use crate::observe::Observer;

pub use local::Local;
pub use recommend::Recommend;

/// Workers of one model that an actuator can change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// The model's true name.
    pub model: String,
    /// Workers asked for.
    pub wanted: u32,
    /// Fewest and most.
    pub limits: Limits,
}

/// Changes the fleet. Two ways exist: [`Local`] and [`Recommend`].
pub trait Actuator: Send + Sync + 'static {
    /// The pools as they are now.
    ///
    /// # Errors
    /// When they cannot be known: then nothing may be decided.
    fn pools(&self, observer: &Arc<Observer>) -> impl Future<Output = Result<Vec<Pool>, ActError>> + Send;

    /// Carries a decision out.
    ///
    /// # Errors
    /// When the order was refused or did not arrive.
    fn apply(&self, decision: &ScaleDecision) -> impl Future<Output = Result<(), ActError>> + Send;
}

/// Why the fleet could not be seen or changed.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// The order or its answer did not get through.
    #[error("supervisor {supervisor} cannot be reached")]
    Bus {
        /// Which.
        supervisor: String,
        /// Why.
        #[source]
        source: BusError,
    },
    /// The order or its answer cannot be read.
    #[error("supervisor {supervisor} does not speak our language")]
    Wire {
        /// Which.
        supervisor: String,
        /// Why.
        #[source]
        source: WireError,
    },
    /// The supervisor will not.
    #[error("supervisor {supervisor} refused: {reason}")]
    Refused {
        /// Which.
        supervisor: String,
        /// Its reason.
        reason: String,
    },
    /// No supervisor has room for the change.
    #[error("no supervisor can take {model} to {to} workers")]
    NoRoom {
        /// The model.
        model: String,
        /// Workers wanted.
        to: u32,
    },
}
