//! What a worker is made of, whatever its model does. Input: nothing. Output: one value that both loops own.

use std::sync::Arc;

use bus::{Bus, ConsumerRef};
use moka::sync::Cache;
use process::Context;
use schemas::ids::RequestId;

use crate::config::Config;
use crate::finish::Desk;
use crate::identity::Verifier;
use crate::metrics::Metrics;
use crate::stats::Stats;

/// The parts a worker is made of.
pub(crate) struct Parts {
    pub(crate) bus: Bus,
    pub(crate) context: Context,
    pub(crate) config: Config,
    pub(crate) verifier: Arc<Verifier>,
    pub(crate) metrics: Metrics,
    pub(crate) stats: Arc<Stats>,
    pub(crate) desk: Desk,
    /// The lanes' consumers, most urgent first.
    pub(crate) consumers: [ConsumerRef; 3],
    /// Requests that were given up and may still be on their way here.
    pub(crate) cancelled: Cache<RequestId, ()>,
    /// Requests held at most.
    pub(crate) slots: u32,
}
