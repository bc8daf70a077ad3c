//! The whole mesh against real faults. Input: a nats-server, services and worker processes per test. Output: passes, or
//! says what was lost.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what the tests share fails like the tests"
)]

mod broker;
mod clients;
mod data_path;
mod errors;
mod gateways;
mod generation;
mod malformed;
mod mesh;
mod nim;
mod poison;
mod python;
mod ranking;
mod translation;
mod translations;
mod up;
mod workers;
