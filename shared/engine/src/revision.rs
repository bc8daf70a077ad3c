//! A name for what a model computes; input: its deciding files and its weights, output: digits that change when one of them does.

use std::path::PathBuf;

use crate::error::LoadError;
use crate::weights::Weights;

/// Hash of the small files and of samples of the weights: changes with the model, costs a few milliseconds.
pub(crate) fn revision(files: &[PathBuf], weights: &Weights) -> Result<String, LoadError> {
    /// Hexadecimal digits kept: 64 bits are plenty to tell revisions of one model apart.
    const DIGITS: usize = 16;
    let mut hasher = blake3::Hasher::new();
    for file in files {
        let bytes = std::fs::read(file).map_err(|source| LoadError::Read {
            file: file.clone(),
            source,
        })?;
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(&bytes);
    }
    weights.fingerprint(&mut hasher);
    Ok(hasher.finalize().to_hex()[..DIGITS].to_owned())
}
