//! Maintenance tasks: input is this repository, output is a verdict or a freshly generated file.
//!
//! `main.rs` names the tasks; the pure parts (scanner, rules, licence expressions) are here so that tests reach them.

pub mod licences;
pub mod metadata;
pub mod scan;
pub mod steps;
pub mod tests_run;
pub mod tidy;

use std::path::PathBuf;

use anyhow::{Context, Result};

/// The repository's root: the folder above this crate.
pub fn repo_root() -> Result<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = here.parent().context("xtask has no folder above it")?;
    Ok(root.to_path_buf())
}
