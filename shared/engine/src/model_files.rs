//! The JSON files of a sentence-transformers directory; input: the directory, output: a checked description of the model.

use std::path::{Path, PathBuf};

use kernels::pool::{PoolOptions, Pooling};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::LoadError;

/// What the JSON files say, checked.
#[derive(Debug, Clone)]
pub(crate) struct Description {
    pub(crate) bert: BertConfig,
    pub(crate) pool: PoolOptions,
    pub(crate) max_tokens: usize,
}

/// Sizes of a BERT model, from `config.json`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct BertConfig {
    pub(crate) model_type: String,
    pub(crate) hidden_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) max_position_embeddings: usize,
    pub(crate) vocab_size: usize,
    pub(crate) type_vocab_size: usize,
    pub(crate) hidden_act: String,
    pub(crate) layer_norm_eps: f64,
    #[serde(default = "absolute")]
    pub(crate) position_embedding_type: String,
}

fn absolute() -> String {
    "absolute".to_owned()
}

#[derive(Debug, Deserialize)]
struct SentenceConfig {
    max_seq_length: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct PoolingConfig {
    pooling_mode_cls_token: bool,
    pooling_mode_mean_tokens: bool,
    pooling_mode_max_tokens: bool,
    pooling_mode_mean_sqrt_len_tokens: bool,
    pooling_mode_weightedmean_tokens: bool,
    pooling_mode_lasttoken: bool,
}

impl Default for PoolingConfig {
    // A directory without the file is a plain transformer; sentence-transformers then takes the mean.
    fn default() -> Self {
        Self {
            pooling_mode_cls_token: false,
            pooling_mode_mean_tokens: true,
            pooling_mode_max_tokens: false,
            pooling_mode_mean_sqrt_len_tokens: false,
            pooling_mode_weightedmean_tokens: false,
            pooling_mode_lasttoken: false,
        }
    }
}

#[derive(Debug, Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
}

/// Reads and checks `config.json`, `sentence_bert_config.json`, `1_Pooling/config.json` and `modules.json`; only the first must exist.
pub(crate) fn describe(directory: &Path) -> Result<Description, LoadError> {
    let file = directory.join("config.json");
    let bert: BertConfig = read(&file)?;
    check_bert(&file, &bert)?;
    let sentence: Option<SentenceConfig> = read_optional(&directory.join("sentence_bert_config.json"))?;
    let card = sentence.and_then(|sentence| sentence.max_seq_length);
    let max_tokens = card.map_or(bert.max_position_embeddings, |card| {
        card.min(bert.max_position_embeddings)
    });
    if max_tokens == 0 {
        return Err(LoadError::Field {
            file: directory.join("sentence_bert_config.json"),
            field: "max_seq_length",
            reason: "must not be 0".to_owned(),
        });
    }
    Ok(Description {
        pool: PoolOptions {
            pooling: pooling(&directory.join("1_Pooling").join("config.json"))?,
            normalize: normalizes(&directory.join("modules.json"))?,
        },
        bert,
        max_tokens,
    })
}

fn check_bert(file: &Path, bert: &BertConfig) -> Result<(), LoadError> {
    let refuse = |field, reason: String| {
        Err(LoadError::Field {
            file: file.to_owned(),
            field,
            reason,
        })
    };
    if bert.model_type != "bert" {
        return refuse("model_type", format!("`{}` is not `bert`", bert.model_type));
    }
    if bert.hidden_act != "gelu" {
        return refuse("hidden_act", format!("`{}` is not `gelu`", bert.hidden_act));
    }
    if bert.position_embedding_type != "absolute" {
        let reason = format!("`{}` is not `absolute`", bert.position_embedding_type);
        return refuse("position_embedding_type", reason);
    }
    for (field, value) in [
        ("hidden_size", bert.hidden_size),
        ("num_hidden_layers", bert.num_hidden_layers),
        ("num_attention_heads", bert.num_attention_heads),
        ("intermediate_size", bert.intermediate_size),
        ("max_position_embeddings", bert.max_position_embeddings),
        ("vocab_size", bert.vocab_size),
        ("type_vocab_size", bert.type_vocab_size),
    ] {
        if value == 0 {
            return refuse(field, "must not be 0".to_owned());
        }
    }
    if !bert.hidden_size.is_multiple_of(bert.num_attention_heads) {
        let reason = format!("does not divide hidden_size {}", bert.hidden_size);
        return refuse("num_attention_heads", reason);
    }
    Ok(())
}

fn pooling(file: &Path) -> Result<Pooling, LoadError> {
    let config: PoolingConfig = read_optional(file)?.unwrap_or_default();
    let other = config.pooling_mode_max_tokens
        || config.pooling_mode_mean_sqrt_len_tokens
        || config.pooling_mode_weightedmean_tokens
        || config.pooling_mode_lasttoken;
    match (config.pooling_mode_cls_token, config.pooling_mode_mean_tokens, other) {
        (false, true, false) => Ok(Pooling::Mean),
        (true, false, false) => Ok(Pooling::Cls),
        _ => Err(LoadError::Field {
            file: file.to_owned(),
            field: "pooling_mode",
            reason: "exactly one of cls and mean is supported".to_owned(),
        }),
    }
}

/// Whether the module list ends in `Normalize`; without a list the vectors are normalized, as every embedding API expects.
fn normalizes(file: &Path) -> Result<bool, LoadError> {
    let Some(modules) = read_optional::<Vec<Module>>(file)? else {
        return Ok(true);
    };
    let name = |module: &Module| module.kind.rsplit('.').next().unwrap_or("").to_owned();
    let names: Vec<String> = modules.iter().map(name).collect();
    match names.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["Transformer", "Pooling", "Normalize"] => Ok(true),
        ["Transformer", "Pooling"] => Ok(false),
        _ => Err(LoadError::Field {
            file: file.to_owned(),
            field: "type",
            reason: format!("modules {names:?} are not Transformer, Pooling and perhaps Normalize"),
        }),
    }
}

pub(crate) fn read<T: DeserializeOwned>(file: &Path) -> Result<T, LoadError> {
    let bytes = std::fs::read(file).map_err(|source| LoadError::Read {
        file: file.to_owned(),
        source,
    })?;
    parse(file, &bytes)
}

pub(crate) fn read_optional<T: DeserializeOwned>(file: &Path) -> Result<Option<T>, LoadError> {
    match std::fs::read(file) {
        Ok(bytes) => parse(file, &bytes).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LoadError::Read {
            file: file.to_owned(),
            source,
        }),
    }
}

fn parse<T: DeserializeOwned>(file: &Path, bytes: &[u8]) -> Result<T, LoadError> {
    serde_json::from_slice(bytes).map_err(|error| LoadError::Format {
        file: file.to_owned(),
        reason: error.to_string(),
    })
}

/// The files that decide what a model computes, for its revision; those that are absent are skipped.
pub(crate) fn deciding_files(directory: &Path) -> Vec<PathBuf> {
    [
        "config.json",
        "sentence_bert_config.json",
        "modules.json",
        "1_Pooling/config.json",
        "tokenizer.json",
    ]
    .iter()
    .map(|name| directory.join(name))
    .filter(|file| file.is_file())
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"model_type":"bert","hidden_size":8,"num_hidden_layers":1,"num_attention_heads":2,
        "intermediate_size":16,"max_position_embeddings":32,"vocab_size":10,"type_vocab_size":2,
        "hidden_act":"gelu","layer_norm_eps":1e-12}"#;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("1_Pooling")).unwrap();
        for (name, content) in files {
            std::fs::write(directory.path().join(name), content).unwrap();
        }
        directory
    }

    #[test]
    fn a_bare_transformer_takes_the_mean_and_is_normalized() {
        let directory = directory(&[("config.json", CONFIG)]);
        let description = describe(directory.path()).unwrap();
        assert_eq!(description.max_tokens, 32);
        assert_eq!(description.pool.pooling, Pooling::Mean);
        assert!(description.pool.normalize);
        assert_eq!(deciding_files(directory.path()).len(), 1);
    }

    #[test]
    fn the_card_can_lower_the_length_and_choose_the_pooling() {
        let directory = directory(&[
            ("config.json", CONFIG),
            ("sentence_bert_config.json", r#"{"max_seq_length":20}"#),
            (
                "1_Pooling/config.json",
                r#"{"pooling_mode_cls_token":true,"pooling_mode_mean_tokens":false}"#,
            ),
            (
                "modules.json",
                r#"[{"type":"sentence_transformers.models.Transformer"},{"type":"sentence_transformers.models.Pooling"}]"#,
            ),
        ]);
        let description = describe(directory.path()).unwrap();
        assert_eq!(description.max_tokens, 20);
        assert_eq!(description.pool.pooling, Pooling::Cls);
        assert!(!description.pool.normalize);
    }

    #[test]
    fn what_is_not_served_is_refused_by_name() {
        for (from, to, field) in [
            ("\"bert\"", "\"roberta\"", "model_type"),
            ("\"gelu\"", "\"relu\"", "hidden_act"),
            ("_heads\":2", "_heads\":3", "num_attention_heads"),
            ("_size\":16", "_size\":0", "intermediate_size"),
        ] {
            let directory = directory(&[("config.json", &CONFIG.replace(from, to))]);
            let error = describe(directory.path()).unwrap_err();
            assert!(
                matches!(error, LoadError::Field { field: f, .. } if f == field),
                "{error}"
            );
        }
        let max = directory(&[
            ("config.json", CONFIG),
            ("1_Pooling/config.json", r#"{"pooling_mode_max_tokens":true}"#),
        ]);
        assert!(matches!(describe(max.path()), Err(LoadError::Field { .. })));
        let dense = directory(&[
            ("config.json", CONFIG),
            ("modules.json", r#"[{"type":"a.Transformer"},{"type":"a.Dense"}]"#),
        ]);
        assert!(matches!(describe(dense.path()), Err(LoadError::Field { .. })));
        let cut = directory(&[("config.json", &CONFIG[..50])]);
        assert!(matches!(describe(cut.path()), Err(LoadError::Format { .. })));
        let none = directory(&[]);
        assert!(matches!(describe(none.path()), Err(LoadError::Read { .. })));
    }
}
