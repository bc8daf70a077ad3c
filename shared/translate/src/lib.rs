//! Translation of Python modules to Rust. Input: Python source, and a closure that asks a model. Output: a report on every
//! statement of the module, and one Rust file.
//!
//! The module is split by a real parser ([`python`]); each function is asked for on its own ([`prompt`]), callees first,
//! its answer is checked ([`answer`]) and, when wanted, compiled and run against known cases ([`verify`], [`cases`]); what
//! is wrong is asked for again with the compiler's words ([`job`]).

pub mod answer;
mod assemble;
mod bindings;
pub mod cases;
mod child;
pub mod job;
mod order;
pub mod prompt;
pub mod python;
pub mod report;
mod task;
pub mod verify;

pub use assemble::assemble;
pub use cases::{Cases, CasesError};
pub use job::{AskError, JobError, Options, Said, translate};
pub use prompt::{Message, Role};
pub use python::{Item, Kind, Module, SourceError};
pub use report::{ItemReport, Report, Status, Summary};
pub use verify::{Limits, Verifier, VerifyError};
