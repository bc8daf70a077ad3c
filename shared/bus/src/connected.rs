//! The connection as a part of health. Input: the comings and goings of a connection. Output: a component that is not ready
//! while there is none, and each connection as an item, for those who have to do something on it before it counts.

use process::{CancellationToken, Component};
use tokio::sync::watch;

use crate::Bus;

/// Why the component is not ready.
const DISCONNECTED: &str = "not connected to nats-server";

/// The connections of a bus, one after the other, followed into a component of health.
#[derive(Debug)]
pub struct Connections {
    connected: watch::Receiver<bool>,
    component: Component,
    stop: CancellationToken,
    /// Whether the state that the channel holds now was looked at.
    is_seen: bool,
}

/// Keeps the component ready while there is a connection, until `stop`.
///
/// # Errors
/// Never; the signature is that of a task.
pub async fn follow(bus: Bus, component: Component, stop: CancellationToken) -> anyhow::Result<()> {
    let mut connections = bus.connections(component, stop);
    while let Some(component) = connections.next().await {
        component.set_ready();
    }
    Ok(())
}

impl Bus {
    /// Follows the connection into `component` until `stop`.
    #[must_use]
    pub fn connections(&self, component: Component, stop: CancellationToken) -> Connections {
        Connections {
            connected: self.connected(),
            component,
            stop,
            is_seen: false,
        }
    }
}

impl Connections {
    /// Leaves out the connection that is there now: what it needs was done already.
    #[must_use]
    pub fn skip_present(mut self) -> Self {
        self.is_seen = *self.connected.borrow_and_update();
        self
    }

    /// Waits for the next connection, the present one first; `None` after the stop. While there is none the component is
    /// not ready; the caller says that it is, once done with what a new connection needs. Cancel-safe.
    pub async fn next(&mut self) -> Option<&Component> {
        loop {
            if self.is_seen {
                tokio::select! {
                    () = self.stop.cancelled() => return None,
                    // An error means that the bus is gone.
                    changed = self.connected.changed() => changed.ok()?,
                }
            }
            self.is_seen = true;
            if *self.connected.borrow_and_update() {
                return Some(&self.component);
            }
            self.component.set_unready(DISCONNECTED);
        }
    }
}
