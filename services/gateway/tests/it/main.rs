//! The gateway against a real nats-server, with a scripted auth and scripted workers on the bus. Input: requests of clients,
//! frames of workers, in the order a test says. Output: passes, or says what a client saw instead.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what the tests share fails like the tests"
)]

mod chat;
mod client;
mod mesh;
mod rescue;
mod responses;
mod streams;
mod tokens;
mod worker;
