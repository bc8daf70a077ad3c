//! Tests of the contract. Input: types, examples and committed files. Output: verdicts.
#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

mod compatibility;
mod documents;
mod golden;
mod properties;
