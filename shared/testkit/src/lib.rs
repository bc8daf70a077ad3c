//! Test support, a dev-dependency only. Input: a test. Output: a real nats-server for it, waits for conditions instead
//! of durations, golden files, and a reader of server-sent events. Everything here fails a test by panicking with a
//! sentence that says what to do.

mod eventually;
mod golden;
mod nats_server;
mod sse;

pub use eventually::eventually;
pub use golden::golden;
pub use nats_server::{NatsOptions, NatsServer};
pub use sse::{SseEvent, SseReader};

/// Fails the running test.
#[expect(clippy::panic, reason = "a test that cannot be set up fails by panicking")]
#[track_caller]
pub(crate) fn fail(why: &str) -> ! {
    panic!("{why}")
}
