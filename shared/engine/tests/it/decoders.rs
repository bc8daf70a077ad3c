//! Tiny decoders of every family against the transformers library; input: the folders that `make_decoder_fixtures.py` wrote, output: bounds on logits.

use std::path::{Path, PathBuf};

use base64::Engine;
use engine::generate::{GenerateBackend, LogitRows, StepBatch};
use engine::{ComputeError, InputError, LoadError, Precision};
use serde::Deserialize;

use crate::sequences::{Sequence, greedy, load, logits, sequences};

/// Name of each folder and the family it must be loaded as.
const DECODERS: [(&str, &str); 6] = [
    ("llama", "llama"),
    ("llama_llama3_tied", "llama"),
    ("llama_yarn_biases", "llama"),
    ("qwen2_window_tied", "qwen2"),
    ("qwen3", "qwen3"),
    ("mistral_window_sharded", "mistral"),
];
/// Positions of the fixtures, as in their configurations.
const CONTEXT: usize = 128;

#[derive(Deserialize)]
pub(crate) struct Expected {
    vocab: usize,
    pub(crate) cases: Vec<Case>,
}

#[derive(Deserialize)]
pub(crate) struct Case {
    prompt: Vec<u32>,
    logits: String,
    #[serde(default)]
    greedy: Vec<u32>,
}

impl Case {
    pub(crate) fn logits(&self) -> Vec<f32> {
        let bytes = base64::engine::general_purpose::STANDARD.decode(&self.logits).unwrap();
        let (quads, rest) = bytes.as_chunks::<4>();
        assert!(rest.is_empty());
        quads.iter().map(|quad| f32::from_le_bytes(*quad)).collect()
    }
}

impl Expected {
    pub(crate) fn sequences(&self) -> Vec<Sequence> {
        let prompts: Vec<&[u32]> = self.cases.iter().map(|case| &case.prompt[..]).collect();
        sequences(&prompts, 64)
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/decoders")
        .join(name)
}

fn expected(name: &str) -> Expected {
    expected_of(&folder(name))
}

pub(crate) fn expected_of(folder: &Path) -> Expected {
    let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

pub(crate) fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_are_those_of_transformers_however_a_step_is_made_up() {
    // For each of the two sequences, its tokens in each step; the last number goes on.
    let ways: [(&str, [&[usize]; 2]); 4] = [
        ("whole prompts", [&[usize::MAX], &[usize::MAX]]),
        ("chunks", [&[5, 1, 16, 7, 3], &[0, 0, 9, 4]]),
        ("one by one", [&[1], &[1]]),
        (
            "a chunk beside a decode",
            [&[11, 1, 1, 1, 1, 1, 1], &[0, 0, 0, 6, 8, 1]],
        ),
    ];
    for (name, family) in DECODERS {
        let expected = expected(name);
        for threads in [1, 3] {
            let mut backend = load(&folder(name), Precision::F32, threads);
            assert_eq!(
                (backend.info().family, backend.info().vocab_size),
                (family, expected.vocab)
            );
            for (way, counts) in ways {
                let given = logits(&mut backend, &mut expected.sequences(), &counts);
                for (case, given) in expected.cases.iter().zip(given) {
                    let difference = largest_difference(&given, &case.logits());
                    assert!(difference <= 1e-4, "{name}, {way}, {threads} threads: {difference}");
                }
            }
        }
    }
}

#[test]
fn greedy_answers_are_those_of_transformers() {
    for (name, _) in DECODERS {
        let expected = expected(name);
        let mut backend = load(&folder(name), Precision::F32, 2);
        let wanted = |index: usize| expected.cases[index].greedy.len();
        let answers = greedy(&mut backend, &mut expected.sequences(), |answer, index| {
            answer.len() == wanted(index)
        });
        for (case, answer) in expected.cases.iter().zip(answers) {
            assert_eq!(answer, case.greedy, "{name}");
        }
    }
}

#[test]
fn smaller_precisions_stay_close() {
    // Of the largest logit. The stored weights are bf16 already in all but the first, so that bf16 loses in the cache only;
    // int8 and int4 lose in weights and activations, and such small random layers average little of it out.
    for (precision, bound) in [(Precision::Bf16, 0.02), (Precision::Int8, 0.12), (Precision::Int4, 0.8)] {
        for (name, _) in DECODERS {
            let expected = expected(name);
            let mut backend = load(&folder(name), precision, 1);
            let given = logits(&mut backend, &mut expected.sequences(), &[&[7], &[usize::MAX]]);
            for (case, given) in expected.cases.iter().zip(given) {
                let exact = case.logits();
                let largest = exact.iter().fold(0.0_f32, |largest, logit| largest.max(logit.abs()));
                let difference = largest_difference(&given, &exact) / largest;
                println!("{name} {precision}: {difference:.4}");
                assert!(difference <= bound, "{name}, {precision}: {difference}");
            }
        }
    }
}

#[test]
fn only_the_wanted_rows_come_back_and_they_are_the_same() {
    let expected = expected("mistral_window_sharded");
    let mut backend = load(&folder("mistral_window_sharded"), Precision::F32, 1);
    let whole = logits(&mut backend, &mut expected.sequences(), &[&[usize::MAX], &[usize::MAX]]);
    let mut sequences = expected.sequences();
    let first = StepBatch {
        spans: vec![
            sequences[0].span(20, LogitRows::None),
            sequences[1].span(9, LogitRows::None),
        ],
    };
    assert!(backend.step(&first).unwrap().is_empty());
    let rest = StepBatch {
        spans: vec![
            sequences[0].span(16, LogitRows::None),
            sequences[1].span(5, LogitRows::Last),
        ],
    };
    let last = backend.step(&rest).unwrap();
    let end = StepBatch {
        spans: vec![sequences[0].span(1, LogitRows::Last)],
    };
    let end = backend.step(&end).unwrap();
    for (row, whole) in [(end.row(0), &whole[0]), (last.row(0), &whole[1])] {
        let expected = &whole[whole.len() - expected.vocab..];
        assert!(largest_difference(row.unwrap(), expected) <= 1e-5);
    }
    assert_eq!((end.len(), last.len()), (1, 1));
}

#[test]
fn a_block_filled_in_a_step_is_read_in_the_same_step() {
    // Two sequences with one prompt: the second has the first one's blocks for all but its last tokens, and both run at once.
    let expected = expected("qwen3");
    let case = &expected.cases[0];
    let exact = case.logits();
    let exact = &exact[exact.len() - expected.vocab..];
    let mut whole = sequences(&[&case.prompt], 64).remove(0);
    let mut second = whole.clone();
    let first = whole.span(usize::MAX, LogitRows::Last);
    // The first two blocks are shared, the third is its own.
    second.span(32, LogitRows::None);
    let mut second = second.span(usize::MAX, LogitRows::Last);
    second.blocks[2] = 9;
    for spans in [vec![first.clone(), second.clone()], vec![second, first]] {
        let mut backend = load(&folder("qwen3"), Precision::F32, 3);
        let logits = backend.step(&StepBatch { spans }).unwrap();
        assert_eq!(logits.len(), 2);
        for row in logits.rows() {
            assert!(largest_difference(row, exact) <= 1e-4);
        }
        assert!(backend.step(&StepBatch::default()).unwrap().is_empty());
    }
}

#[test]
fn wrong_steps_are_refused_by_name() {
    let mut backend = load(&folder("llama"), Precision::F32, 1);
    assert_eq!(backend.info().max_tokens, CONTEXT);
    let blocks = backend.info().blocks as u32;
    let good = sequences(&[&[1, 2, 3]], CONTEXT).remove(0).span(3, LogitRows::Last);
    let mut refused = |change: &dyn Fn(&mut engine::generate::StepSpan)| {
        let mut bad = good.clone();
        change(&mut bad);
        let batch = StepBatch {
            spans: vec![good.clone(), bad],
        };
        backend.step(&batch).unwrap_err()
    };
    let unknown = refused(&|span| span.tokens[1] = 96);
    assert!(
        matches!(
            unknown,
            ComputeError::Sequence {
                index: 1,
                source: InputError::TokenOutOfRange { id: 96, vocab: 96 }
            }
        ),
        "{unknown}"
    );
    let long = refused(&|span| span.first_position = CONTEXT as u32);
    assert!(matches!(long, ComputeError::Sequence { index: 1, .. }), "{long}");
    let few = refused(&|span| span.blocks.clear());
    assert!(
        matches!(
            few,
            ComputeError::Blocks {
                index: 1,
                given: 0,
                needed: 1
            }
        ),
        "{few}"
    );
    let outside = refused(&|span| span.blocks[0] = blocks);
    assert!(
        matches!(outside, ComputeError::BlockOutOfRange { index: 1, .. }),
        "{outside}"
    );
}

#[test]
fn damaged_decoders_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let copy = |name: &str| {
        std::fs::copy(folder("mistral_window_sharded").join(name), directory.path().join(name)).unwrap();
    };
    let loaded = || {
        let options = engine::generate::GenerateOptions::default();
        engine::generate::CpuGenerateBackend::load(directory.path(), options).map(|_| ())
    };
    copy("config.json");
    let missing = loaded().unwrap_err();
    assert!(matches!(missing, LoadError::Read { .. }), "{missing}");
    copy("model.safetensors.index.json");
    copy("model-00001-of-00002.safetensors");
    let missing = loaded().unwrap_err();
    assert!(
        matches!(&missing, LoadError::Read { file, .. } if file.ends_with("model-00002-of-00002.safetensors")),
        "{missing}"
    );
    copy("model-00002-of-00002.safetensors");
    loaded().unwrap();
    let config = std::fs::read_to_string(directory.path().join("config.json")).unwrap();
    let wide = config.replace("\"intermediate_size\": 56", "\"intermediate_size\": 57");
    assert_ne!(config, wide);
    std::fs::write(directory.path().join("config.json"), wide).unwrap();
    let shape = loaded().unwrap_err();
    assert!(
        matches!(&shape, LoadError::Tensor { tensor, .. } if tensor == "model.layers.0.mlp.gate_proj.weight"),
        "{shape}"
    );
    let options = engine::generate::GenerateOptions {
        kv_bytes: 100,
        ..Default::default()
    };
    let none = engine::generate::CpuGenerateBackend::load(&folder("llama"), options).map(|_| ());
    assert!(matches!(none, Err(LoadError::CacheTooSmall { kv_bytes: 100, .. })));
}
