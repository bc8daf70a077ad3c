//! auth against a real broker. Input: the service in this process, a nats-server per test. Output: passes or fails.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what the tests share fails like the tests"
)]

mod holds;
mod identities;
mod lifecycle;
mod malformed;
mod mesh;
mod restarts;
