//! Everything that crosses a process boundary: messages, subjects, headers, streams, ids, error codes,
//! money and the public JSON bodies. Input: nothing. Output: types used by every service, from which the
//! documents under `schemas/generated/` are made.
//!
//! Rules of change: a new field is `Option` or `#[serde(default)]` and stays on its subject; a breaking
//! change is a new type on a new subject major, both served for one release.

pub mod cache;
pub mod civil_date;
pub mod cost;
pub mod dead;
pub mod documents;
pub mod error;
pub mod fleet;
pub mod generate;
pub mod headers;
pub mod http;
pub mod identity;
pub mod ids;
pub mod money;
pub mod policy;
pub mod reply;
pub mod streams;
pub mod subjects;
pub mod tokens;
pub mod vector;
pub mod wire;
pub mod work;
