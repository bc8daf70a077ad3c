//! How a process stops: signals, failing tasks and deadlines come in, two tokens go out, soft (take no more work) and then hard (give up).

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The two steps of a stop; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    soft: CancellationToken,
    hard: CancellationToken,
}

impl Shutdown {
    /// A stop that nothing has asked for yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everyone to take no more work and to finish what is in hand.
    pub fn start(&self) {
        self.soft.cancel();
    }

    /// Asks everyone to give up what is in hand; implies [`Shutdown::start`].
    pub fn force(&self) {
        self.soft.cancel();
        self.hard.cancel();
    }

    /// Cancelled when no more work may be taken.
    #[must_use]
    pub fn soft(&self) -> &CancellationToken {
        &self.soft
    }

    /// Cancelled when the deadline has passed.
    #[must_use]
    pub fn hard(&self) -> &CancellationToken {
        &self.hard
    }

    /// Whether the stop has begun.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.soft.is_cancelled()
    }

    /// Whether the deadline has passed.
    #[must_use]
    pub fn is_forced(&self) -> bool {
        self.hard.is_cancelled()
    }

    /// Waits for the begin of the stop. Cancel-safe.
    pub async fn stopping(&self) {
        self.soft.cancelled().await;
    }

    /// Waits for the deadline of the stop. Cancel-safe.
    pub async fn forced(&self) {
        self.hard.cancelled().await;
    }
}

/// SIGTERM and SIGINT of this process, and the drain deadline that begins with a stop.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes both signals over from the system, from now on and for good.
    ///
    /// # Errors
    /// When the system refuses, or when called outside a tokio runtime with I/O.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Turns the first signal into a soft stop; the second one, or `drain` after any soft stop, into a hard one. Never ends.
    pub async fn watch(mut self, shutdown: Shutdown, drain: Duration) -> Infallible {
        let deadline = drain_deadline(&shutdown, drain);
        tokio::pin!(deadline);
        let mut received = 0_u32;
        while !shutdown.is_forced() {
            tokio::select! {
                () = &mut deadline => {
                    tracing::warn!(drain_ms = drain.as_millis(), "drain deadline passed, giving up");
                    shutdown.force();
                }
                signal = self.next() => {
                    received += 1;
                    if received == 1 {
                        tracing::info!(signal, "signal received, draining");
                        shutdown.start();
                    } else {
                        tracing::warn!(signal, "second signal received, giving up");
                        shutdown.force();
                    }
                }
                () = shutdown.forced() => {}
            }
        }
        std::future::pending().await
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

async fn drain_deadline(shutdown: &Shutdown, drain: Duration) {
    shutdown.stopping().await;
    tokio::time::sleep(drain).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hard_stop_is_also_a_soft_one() {
        let shutdown = Shutdown::new();
        assert!(!shutdown.is_stopping());
        shutdown.start();
        assert_eq!((shutdown.is_stopping(), shutdown.is_forced()), (true, false));
        let other = Shutdown::new();
        other.clone().force();
        assert_eq!((other.is_stopping(), other.is_forced()), (true, true));
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_runs_from_any_soft_stop() {
        let shutdown = Shutdown::new();
        let watch = Signals::install()
            .unwrap()
            .watch(shutdown.clone(), Duration::from_secs(25));
        let watching = tokio::spawn(watch);
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        assert!(!shutdown.is_forced(), "no deadline runs before a stop");
        shutdown.start();
        tokio::time::sleep(Duration::from_secs(24)).await;
        assert!(!shutdown.is_forced());
        shutdown.forced().await;
        watching.abort();
    }
}
