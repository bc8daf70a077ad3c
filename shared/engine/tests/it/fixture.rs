//! The committed fixture and the model directory; input: files, output: texts with their expected ids and vectors.

use std::path::{Path, PathBuf};

use base64::Engine;
use engine::{EmbeddingModel, LoadOptions, Precision};
use serde::Deserialize;

/// 64 texts with what sentence-transformers made of them.
#[derive(Deserialize)]
pub(crate) struct Fixture {
    pub(crate) dims: usize,
    pub(crate) max_tokens: usize,
    pub(crate) texts: Vec<Case>,
}

#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
    vector: String,
}

impl Case {
    pub(crate) fn vector(&self) -> Vec<f32> {
        let bytes = base64::engine::general_purpose::STANDARD.decode(&self.vector).unwrap();
        let (quads, rest) = bytes.as_chunks::<4>();
        assert!(rest.is_empty());
        quads.iter().map(|quad| f32::from_le_bytes(*quad)).collect()
    }
}

pub(crate) fn fixture() -> Fixture {
    let fixture: Fixture = serde_json::from_str(include_str!("../fixtures/minilm_64.json")).unwrap();
    assert_eq!(fixture.texts.len(), 64);
    fixture
}

/// The model directory: `PORTALIS_TEST_MODEL_DIR`, else where `make test` installs it.
pub(crate) fn model_directory() -> PathBuf {
    let directory = std::env::var_os("PORTALIS_TEST_MODEL_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.portalis/models/all-minilm-l6-v2"),
        PathBuf::from,
    );
    assert!(
        directory.join("model.safetensors").is_file(),
        "no model in {}: `make test` installs it, or set PORTALIS_TEST_MODEL_DIR",
        directory.display()
    );
    directory
}

pub(crate) fn load(precision: Precision, threads: usize) -> EmbeddingModel {
    let options = LoadOptions {
        precision,
        threads: threads.try_into().unwrap(),
    };
    EmbeddingModel::load(&model_directory(), options).unwrap()
}

/// Cosine similarity in f64.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
