//! Clients that leave. Input: flights without waiters. Output: their work taken back, by one task off the request path.

use std::sync::Arc;

use process::CancellationToken;
use schemas::error::{ErrorCode, Failure};
use tokio::sync::mpsc;

use crate::Gateway;
use crate::flight::Flight;

/// Abandoned flights that may wait to be taken back; more are left to their deadlines.
pub(crate) const QUEUE: usize = 4_096;

impl Gateway {
    /// Ends a flight that nobody waits for and queues its work to be taken back. Does not wait: it is called from `Drop`.
    pub(crate) fn abandon(&self, flight: &Arc<Flight>) {
        self.metrics.cancelled.inc();
        self.finish(flight, Err(Failure::new(ErrorCode::Cancelled, "the client has left")));
        if self.abandoned.try_send(Arc::clone(flight)).is_err() {
            tracing::debug!(request_id = %flight.order.request_id, "not taken back, the worker will drop it at its deadline");
        }
    }
}

/// Takes abandoned work back until the gateway stops.
///
/// # Errors
/// Never; the signature is that of a task.
pub(crate) async fn run(
    gateway: Arc<Gateway>,
    mut abandoned: mpsc::Receiver<Arc<Flight>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let flight = tokio::select! {
            flight = abandoned.recv() => flight,
            () = stop.cancelled() => return Ok(()),
        };
        let Some(flight) = flight else {
            return Ok(());
        };
        if let Err(error) = gateway.take_back(&flight).await {
            tracing::debug!(%error, request_id = %flight.order.request_id, "abandoned work not taken back");
        }
    }
}
