//! What every process does the same way: `run()`, config, telemetry, health, lifecycle, clock; a service brings its config and `serve`.

mod allocator;
pub mod args;
pub mod clock;
pub mod config;
pub mod context;
pub mod health;
pub mod lifecycle;
pub mod metrics;
pub mod ops;
mod process_metrics;
mod random;
mod redact;
mod run;
pub mod tasks;
pub mod telemetry;
pub mod trace_context;

pub use clock::{Clock, FakeClock};
pub use config::{ConfigError, Layers, Loaded, LogFormat, ProcessConfig, load};
pub use context::Context;
pub use health::{Component, Health, HealthReport, NotReady};
pub use lifecycle::{Shutdown, Signals};
pub use ops::{OpsError, OpsServer, serve_ops};
pub use prometheus;
pub use run::{Service, Serving, run};
pub use tasks::{StuckTasks, Tasks};
pub use tokio_util::sync::CancellationToken;
pub use trace_context::TraceContext;
