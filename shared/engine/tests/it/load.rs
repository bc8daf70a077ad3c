//! Broken and foreign model directories; input: small generated models, output: errors that name the file and what is wrong with it.

use std::collections::BTreeMap;
use std::path::Path;

use engine::{EmbeddingModel, Input, LoadError, LoadOptions, Pooling, Precision, Truncate};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

const CONFIG: &str = r#"{"model_type":"bert","hidden_size":8,"num_hidden_layers":1,"num_attention_heads":2,
    "intermediate_size":12,"max_position_embeddings":16,"vocab_size":6,"type_vocab_size":2,
    "hidden_act":"gelu","layer_norm_eps":1e-12}"#;
const TOKENIZER: &str = r###"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[
    {"id":0,"special":true,"content":"[UNK]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false},
    {"id":1,"special":true,"content":"[CLS]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false},
    {"id":2,"special":true,"content":"[SEP]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false}],
    "normalizer":null,"pre_tokenizer":{"type":"Whitespace"},
    "post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"[CLS]","type_id":0}},
      {"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"[SEP]","type_id":0}}],"pair":[],
      "special_tokens":{"[CLS]":{"id":"[CLS]","ids":[1],"tokens":["[CLS]"]},"[SEP]":{"id":"[SEP]","ids":[2],"tokens":["[SEP]"]}}},
    "decoder":null,"model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##",
      "max_input_chars_per_word":100,"vocab":{"[UNK]":0,"[CLS]":1,"[SEP]":2,"a":3,"b":4,"##b":5}}}"###;

/// Names and shapes of a one-layer model with the sizes of `CONFIG`.
fn shapes() -> BTreeMap<String, Vec<usize>> {
    let mut shapes = BTreeMap::new();
    let mut add = |name: &str, shape: &[usize]| shapes.insert(name.to_owned(), shape.to_vec());
    add("embeddings.word_embeddings.weight", &[6, 8]);
    add("embeddings.position_embeddings.weight", &[16, 8]);
    add("embeddings.token_type_embeddings.weight", &[2, 8]);
    let layer = "encoder.layer.0";
    for norm in [
        "embeddings.LayerNorm",
        &format!("{layer}.attention.output.LayerNorm"),
        &format!("{layer}.output.LayerNorm"),
    ] {
        add(&format!("{norm}.weight"), &[8]);
        add(&format!("{norm}.bias"), &[8]);
    }
    for (dense, columns, depth) in [
        ("attention.self.query", 8, 8),
        ("attention.self.key", 8, 8),
        ("attention.self.value", 8, 8),
        ("attention.output.dense", 8, 8),
        ("intermediate.dense", 12, 8),
        ("output.dense", 8, 12),
    ] {
        add(&format!("{layer}.{dense}.weight"), &[columns, depth]);
        add(&format!("{layer}.{dense}.bias"), &[columns]);
    }
    shapes
}

fn write_weights(directory: &Path, shapes: &BTreeMap<String, Vec<usize>>) {
    let data: Vec<(&String, &Vec<usize>, Vec<u8>)> = shapes
        .iter()
        .map(|(name, shape)| {
            let count = shape.iter().product::<usize>();
            let values =
                (0..count).map(|i| ((i * 7 + name.trim_start_matches("bert.").len()) % 13) as f32 / 13.0 - 0.4);
            (name, shape, values.flat_map(f32::to_le_bytes).collect())
        })
        .collect();
    let views = data.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap();
        (name.as_str(), view)
    });
    serialize_to_file(views, None, &directory.join("model.safetensors")).unwrap();
}

fn small_model() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("config.json"), CONFIG).unwrap();
    std::fs::write(directory.path().join("tokenizer.json"), TOKENIZER).unwrap();
    write_weights(directory.path(), &shapes());
    directory
}

fn load(directory: &Path) -> Result<EmbeddingModel, LoadError> {
    let options = LoadOptions {
        precision: Precision::F32,
        threads: std::num::NonZeroUsize::MIN,
    };
    EmbeddingModel::load(directory, options)
}

#[test]
fn a_small_model_loads_with_plain_and_with_prefixed_names() {
    let directory = small_model();
    let embed = |model: &EmbeddingModel| {
        let ids = model.tokenize(Input::Text("a bb"), Truncate::None).unwrap();
        assert_eq!(ids.as_slice(), [1, 3, 4, 5, 2]);
        model.embed(&[ids]).unwrap()
    };
    let plain = load(directory.path()).unwrap();
    let expected = embed(&plain);
    assert_eq!(expected.row(0).unwrap().len(), 8);
    let renamed = |(name, shape)| (format!("bert.{name}"), shape);
    write_weights(directory.path(), &shapes().into_iter().map(renamed).collect());
    let prefixed = load(directory.path()).unwrap();
    assert_ne!(plain.info().revision, prefixed.info().revision);
    assert_eq!(embed(&prefixed), expected);
}

#[test]
fn cls_pooling_is_taken_from_the_directory() {
    let directory = small_model();
    std::fs::create_dir(directory.path().join("1_Pooling")).unwrap();
    std::fs::write(
        directory.path().join("1_Pooling/config.json"),
        r#"{"pooling_mode_cls_token":true,"pooling_mode_mean_tokens":false}"#,
    )
    .unwrap();
    let cls = load(directory.path()).unwrap();
    assert_eq!(cls.info().pooling, Pooling::Cls);
    std::fs::remove_dir_all(directory.path().join("1_Pooling")).unwrap();
    let mean = load(directory.path()).unwrap();
    let ids = mean.tokenize(Input::Text("a b"), Truncate::None).unwrap();
    assert_ne!(
        mean.embed(std::slice::from_ref(&ids)).unwrap(),
        cls.embed(&[ids]).unwrap()
    );
}

#[test]
fn damaged_weights_are_named() {
    let directory = small_model();
    let mut without = shapes();
    without.remove("encoder.layer.0.output.dense.bias");
    write_weights(directory.path(), &without);
    let error = load(directory.path()).unwrap_err();
    assert!(
        matches!(&error, LoadError::Tensor { tensor, .. } if tensor == "encoder.layer.0.output.dense.bias"),
        "{error}"
    );
    let mut wrong = shapes();
    wrong.insert("embeddings.LayerNorm.bias".to_owned(), vec![9]);
    write_weights(directory.path(), &wrong);
    let error = load(directory.path()).unwrap_err().to_string();
    assert!(
        error.contains("`embeddings.LayerNorm.bias`: has shape [9], expected [8]"),
        "{error}"
    );
    write_weights(directory.path(), &shapes());
    let file = directory.path().join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    for cut in [0, 4, 100, bytes.len() - 1] {
        std::fs::write(&file, &bytes[..cut]).unwrap();
        let error = load(directory.path()).unwrap_err();
        assert!(
            matches!(&error, LoadError::Format { file: f, .. } if *f == file),
            "{cut}: {error}"
        );
    }
}

#[test]
fn missing_and_damaged_files_are_named() {
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let directory = small_model();
        let file = directory.path().join(name);
        std::fs::write(&file, b"{\"model_type\": ").unwrap();
        let error = load(directory.path()).unwrap_err();
        assert!(
            matches!(&error, LoadError::Format { file: f, .. } if *f == file),
            "{error}"
        );
        std::fs::remove_file(&file).unwrap();
        let error = load(directory.path()).unwrap_err();
        assert!(
            matches!(&error, LoadError::Read { file: f, .. } if *f == file),
            "{error}"
        );
    }
}

#[test]
fn a_tokenizer_that_does_not_fit_the_model_is_refused() {
    let directory = small_model();
    let tokenizer = TOKENIZER.replace("\"ids\":[2]", "\"ids\":[6]");
    std::fs::write(directory.path().join("tokenizer.json"), tokenizer).unwrap();
    let error = load(directory.path()).unwrap_err().to_string();
    assert!(error.contains("special token 6 is outside"), "{error}");
}
