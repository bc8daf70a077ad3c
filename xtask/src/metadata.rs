//! What cargo knows: input is the workspace, output is its packages and their dependencies as plain structs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The part of `cargo metadata` that the checks read.
#[derive(Debug, Clone, Deserialize)]
pub struct Metadata {
    /// Every package of the graph, ours and theirs (ours only, when loaded without dependencies).
    pub packages: Vec<Package>,
    /// Where cargo builds.
    pub target_directory: std::path::PathBuf,
}

/// One package.
#[derive(Debug, Clone, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its SPDX licence expression.
    pub license: Option<String>,
    /// Where it came from; `None` for ours.
    pub source: Option<String>,
    /// Its `Cargo.toml`.
    pub manifest_path: std::path::PathBuf,
    /// What it depends on, as declared.
    pub dependencies: Vec<Dependency>,
}

/// One declared dependency.
#[derive(Debug, Clone, Deserialize)]
pub struct Dependency {
    /// The package's name (not a rename).
    pub name: String,
    /// `None` for a normal dependency, else `dev` or `build`.
    pub kind: Option<String>,
    /// The folder, for one of ours.
    pub path: Option<std::path::PathBuf>,
}

/// Only our own packages; needs no network and no downloaded crate.
pub fn ours(root: &Path) -> Result<Metadata> {
    load(root, &["--no-deps"])
}

/// The whole graph for this machine's platform, from what is already downloaded.
pub fn whole_graph(root: &Path) -> Result<Metadata> {
    // Crates for other platforms were never downloaded here, so offline means: this platform.
    load(root, &["--filter-platform", &host_platform()?])
}

fn host_platform() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("run rustc -vV")?;
    let text = String::from_utf8(output.stdout).context("read the output of rustc -vV")?;
    let host = text
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc -vV names no host")?;
    Ok(host.to_owned())
}

fn load(root: &Path, options: &[&str]) -> Result<Metadata> {
    let output = Command::new(cargo())
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(options)
        .current_dir(root)
        .output()
        .context("run cargo metadata")?;
    if !output.status.success() {
        bail!(
            "cargo metadata failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    serde_json::from_slice(&output.stdout).context("read the output of cargo metadata")
}

/// The cargo that started us, so that a pinned toolchain stays the same one.
pub fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}
