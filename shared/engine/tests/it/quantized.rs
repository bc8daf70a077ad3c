//! Quantized weights; input: the folders that `make_quantized_fixtures.py` wrote and the shipped translator, output: bounds on logits and on memory.

use std::path::{Path, PathBuf};

use engine::generate::{CpuGenerateBackend, GenerateBackend, GenerateOptions};
use engine::{LoadError, Precision};

use crate::decoders::{expected_of, largest_difference};
use crate::sequences::{load, logits};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/quantized")
        .join(name)
}

/// Words of every fixture.
const VOCAB: usize = 96;

/// Largest difference to the reference's logits of each position, as a share of the largest logit; rising.
fn differences(directory: &Path, expected: &Path, precision: Precision) -> Vec<f32> {
    let expected = expected_of(expected);
    let mut backend = load(directory, precision, 2);
    let given = logits(&mut backend, &mut expected.sequences(), &[&[7], &[usize::MAX]]);
    let mut shares = Vec::new();
    for (case, given) in expected.cases.iter().zip(given) {
        let exact = case.logits();
        let largest = exact.iter().fold(0.0_f32, |largest, logit| largest.max(logit.abs()));
        let rows = given.chunks_exact(VOCAB).zip(exact.chunks_exact(VOCAB));
        shares.extend(rows.map(|(given, exact)| largest_difference(given, exact) / largest));
    }
    shares.sort_by(f32::total_cmp);
    shares
}

/// A copy of a fixture with one text of its configuration replaced.
fn with_config(name: &str, from: &str, to: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(
        folder(name).join("model.safetensors"),
        directory.path().join("model.safetensors"),
    )
    .unwrap();
    let config = std::fs::read_to_string(folder(name).join("config.json")).unwrap();
    let changed = config.replace(from, to);
    assert_ne!(config, changed);
    std::fs::write(directory.path().join("config.json"), changed).unwrap();
    directory
}

/// The reference has the weights and rounds inputs as the engine does, so a quarter of the positions at least agree to the accuracy of f32.
const QUARTER_BOUND: f32 = 1e-5;
/// An input here and there falls on the other side of a rounding border in f32, which moves its position and a little those behind it:
/// by a step of 1/127 of a group's largest beside int4 weights, of 1/2,047 beside int8.
const INT4_BOUND: f32 = 0.02;
const INT8_BOUND: f32 = 0.002;
/// What a wrong reading moves half of the positions by.
const SEEN: f32 = 0.05;

#[test]
fn quantized_checkpoints_give_the_logits_of_their_dequantized_weights() {
    for (name, precision, bound) in [
        ("gptq_sym", Precision::Int4, INT4_BOUND),
        ("gptq_act_order", Precision::Int4, INT4_BOUND),
        ("gptq_column_v2", Precision::Int4, INT4_BOUND),
        ("awq", Precision::Int4, INT4_BOUND),
        ("gptq_128", Precision::Int4, INT4_BOUND),
        ("awq_32", Precision::Int4, INT4_BOUND),
        ("awq_128", Precision::Int4, INT4_BOUND),
        ("w8a8", Precision::Int8, INT8_BOUND),
    ] {
        let shares = differences(&folder(name), &folder(name), Precision::F32);
        let (quarter, largest) = (shares[shares.len() / 4], shares[shares.len() - 1]);
        println!("{name}: quarter {quarter:.7}, largest {largest:.5}");
        assert!(quarter <= QUARTER_BOUND && largest <= bound, "{name}: {shares:?}");
        let backend = load(&folder(name), Precision::F32, 1);
        assert_eq!(backend.info().precision, precision, "{name}");
        let parameters = match name {
            // 1 layer of 256, 96 words: 256 * (256 + 2 * 128 + 256) + 3 * 256 * 384 + 2 * 256 + 2 * 96 * 256 + 256.
            "gptq_128" | "awq_128" => 541_440,
            // 2 layers, 96 words: 2 * (64 * (64 + 2 * 32 + 64) + 3 * 64 * 128 + 2 * 64) + 2 * 96 * 64 + 64.
            _ => 86_336,
        };
        assert_eq!(backend.info().parameters, parameters, "{name}");
    }
}

#[test]
fn a_zero_that_is_one_off_would_be_seen() {
    for (name, from, to) in [
        (
            "gptq_sym",
            "\"checkpoint_format\": \"gptq\"",
            "\"checkpoint_format\": \"gptq_v2\"",
        ),
        ("gptq_column_v2", "\"gptq_v2\"", "\"gptq\""),
    ] {
        let directory = with_config(name, from, to);
        let shares = differences(directory.path(), &folder(name), Precision::F32);
        assert!(shares[shares.len() / 2] > SEEN, "{name}: {shares:?}");
    }
}

#[test]
fn groups_that_the_tensors_do_not_have_are_refused() {
    let loaded = |directory: &Path| CpuGenerateBackend::load(directory, GenerateOptions::default()).map(|_| ());
    let directory = with_config("gptq_sym", "\"group_size\": 32", "\"group_size\": 64");
    let error = loaded(directory.path()).unwrap_err();
    assert!(
        matches!(&error, LoadError::Tensor { tensor, .. } if tensor == "model.layers.0.self_attn.q_proj.g_idx"),
        "{error}"
    );
    let directory = with_config("awq", "\"bits\": 4", "\"bits\": 3");
    let error = loaded(directory.path()).unwrap_err();
    assert!(
        matches!(
            error,
            LoadError::Field {
                field: "quantization_config",
                ..
            }
        ),
        "{error}"
    );
    // Not a quantized checkpoint by its configuration: then the plain weights are missing.
    let directory = with_config("awq", "quantization_config", "other");
    let error = loaded(directory.path()).unwrap_err();
    assert!(
        matches!(&error, LoadError::Tensor { tensor, .. } if tensor == "model.layers.0.self_attn.q_proj.weight"),
        "{error}"
    );
}

/// A Llama of random bf16 weights with sizes in the proportions of real ones and an output layer of its own.
fn proportioned() -> (tempfile::TempDir, usize) {
    const HIDDEN: usize = 512;
    const KV: usize = 128;
    const INTERMEDIATE: usize = 1_376;
    const VOCAB: usize = 2_048;
    const LAYERS: usize = 4;
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("lm_head.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let mut part = |name: &str, shape: &[usize]| {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        part("input_layernorm", &[HIDDEN]);
        part("post_attention_layernorm", &[HIDDEN]);
        part("self_attn.q_proj", &[HIDDEN, HIDDEN]);
        part("self_attn.k_proj", &[KV, HIDDEN]);
        part("self_attn.v_proj", &[KV, HIDDEN]);
        part("self_attn.o_proj", &[HIDDEN, HIDDEN]);
        part("mlp.gate_proj", &[INTERMEDIATE, HIDDEN]);
        part("mlp.up_proj", &[INTERMEDIATE, HIDDEN]);
        part("mlp.down_proj", &[HIDDEN, INTERMEDIATE]);
    }
    // Between 2^-6 and 2^-5, of either sign.
    let value = |index: usize| (0x3c80_u16 | (index * 7_919 % 127) as u16 | ((index % 2) as u16) << 15).to_le_bytes();
    let elements = |shape: &[usize]| shape.iter().product::<usize>();
    let data: Vec<Vec<u8>> = shapes
        .iter()
        .map(|(_, shape)| (0..elements(shape)).flat_map(value).collect())
        .collect();
    let tensors = shapes.iter().zip(&data).map(|((name, shape), data)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.clone(), data).unwrap();
        (name.clone(), view)
    });
    let directory = tempfile::tempdir().unwrap();
    safetensors::serialize_to_file(tensors, None, &directory.path().join("model.safetensors")).unwrap();
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "vocab_size": VOCAB,
        "num_hidden_layers": LAYERS, "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "tie_word_embeddings": false,
    });
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    let matrices = shapes.iter().filter(|(_, shape)| shape.len() == 2);
    (directory, matrices.map(|(_, shape)| elements(shape)).sum())
}

/// Everything counts: the matrices with their scales and zeros, the word table and the output layer.
#[test]
fn quantized_weights_take_the_memory_that_was_promised() {
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano-translator");
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(nano.join("config.json")).unwrap()).unwrap();
    let vocab = config["vocab_size"].as_u64().unwrap() as usize;
    // Words (its output layer too), and 5 layers of 256: (8 + 2 * 4 + 8) heads of 32, and 3 matrices of 704.
    let of_nano = 256 * (vocab.next_multiple_of(16) + 5 * (24 * 32 + 3 * 704));
    let (untied, of_untied) = proportioned();
    for (directory, elements) in [(nano.as_path(), of_nano), (untied.path(), of_untied)] {
        let bytes = |precision| load(directory, precision, 2).weight_bytes();
        let bf16 = bytes(Precision::Bf16);
        assert_eq!(bf16, 2 * elements as u64, "{}", directory.display());
        for (precision, most) in [(Precision::Int8, 0.55), (Precision::Int4, 0.32)] {
            let share = bytes(precision) as f64 / bf16 as f64;
            println!("{} {precision}: {share:.4} of bf16", directory.display());
            assert!(share <= most, "{} {precision}: {share}", directory.display());
        }
    }
}
