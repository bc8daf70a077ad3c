//! The JSON files of a sentence-transformers directory; input: the directory, output: a checked description of the model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kernels::pool::{PoolOptions, Pooling};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::backend::Purpose;
use crate::encoder_config::EncoderConfig;
use crate::error::LoadError;

/// What the JSON files say, checked.
#[derive(Debug, Clone)]
pub(crate) struct Description {
    pub(crate) encoder: EncoderConfig,
    /// Of models that embed.
    pub(crate) pool: PoolOptions,
    pub(crate) max_tokens: usize,
    /// What is put before a text, by the side of the search it is on.
    pub(crate) prompts: Option<Prompts>,
}

/// Words that tell a model on which side of a search a text is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prompts {
    pub(crate) query: String,
    pub(crate) passage: String,
}

#[derive(Debug, Deserialize)]
struct SentenceConfig {
    max_seq_length: Option<usize>,
}

/// `tokenizer_config.json`; a number without meaning stands for "no limit" in it.
#[derive(Debug, Deserialize)]
struct TokenizerConfig {
    model_max_length: Option<f64>,
}

/// `config_sentence_transformers.json`.
#[derive(Debug, Default, Deserialize)]
struct CardConfig {
    #[serde(default)]
    prompts: BTreeMap<String, Option<String>>,
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
    include_prompt: bool,
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
            include_prompt: true,
        }
    }
}

#[derive(Debug, Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
}

/// What the model of a directory is for, by its `config.json`.
pub fn purpose(directory: &Path) -> Result<Purpose, LoadError> {
    EncoderConfig::read(&directory.join("config.json")).map(|config| config.purpose)
}

/// Reads and checks `config.json` and the files that a sentence-transformers directory has beside it; only the first must exist.
pub(crate) fn describe(directory: &Path) -> Result<Description, LoadError> {
    let encoder = EncoderConfig::read(&directory.join("config.json"))?;
    let pooling_file = directory.join("1_Pooling").join("config.json");
    let pool = match encoder.purpose {
        Purpose::Embed => PoolOptions {
            pooling: pooling(&pooling_file)?,
            normalize: normalizes(&directory.join("modules.json"))?,
        },
        // The classifier looks at the first token.
        Purpose::Rank => PoolOptions {
            pooling: Pooling::Cls,
            normalize: false,
        },
    };
    Ok(Description {
        max_tokens: max_tokens(directory, &encoder)?,
        prompts: prompts(&directory.join("config_sentence_transformers.json"))?,
        pool,
        encoder,
    })
}

/// The length that the model's card allows, at most the positions it has.
fn max_tokens(directory: &Path, encoder: &EncoderConfig) -> Result<usize, LoadError> {
    let file = directory.join("sentence_bert_config.json");
    let sentence: Option<SentenceConfig> = read_optional(&file)?;
    let mut card = sentence.and_then(|sentence| sentence.max_seq_length);
    if card.is_none() && encoder.purpose == Purpose::Rank {
        let tokenizer: Option<TokenizerConfig> = read_optional(&directory.join("tokenizer_config.json"))?;
        let length = tokenizer.and_then(|tokenizer| tokenizer.model_max_length);
        // Numbers beyond any model's length saturate.
        card = length.filter(|length| *length >= 1.0).map(|length| length as usize);
    }
    let positions = encoder.max_position_embeddings;
    match card.map_or(positions, |card| card.min(positions)) {
        0 => Err(LoadError::Field {
            file,
            field: "max_seq_length",
            reason: "must not be 0".to_owned(),
        }),
        max_tokens => Ok(max_tokens),
    }
}

/// The prompts of a search, if the card names both sides and they differ.
fn prompts(file: &Path) -> Result<Option<Prompts>, LoadError> {
    let mut card: CardConfig = read_optional(file)?.unwrap_or_default();
    let mut take = |name| card.prompts.remove(name).flatten();
    let query = take("query");
    let passage = take("document").or_else(|| take("passage"));
    Ok(match (query, passage) {
        (Some(query), Some(passage)) if query != passage => Some(Prompts { query, passage }),
        _ => None,
    })
}

fn pooling(file: &Path) -> Result<Pooling, LoadError> {
    let config: PoolingConfig = read_optional(file)?.unwrap_or_default();
    if !config.include_prompt {
        return Err(LoadError::Field {
            file: file.to_owned(),
            field: "include_prompt",
            reason: "leaving the prompt out of the mean is not supported".to_owned(),
        });
    }
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
        "config_sentence_transformers.json",
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
    fn prompts_count_when_both_sides_have_one_of_their_own() {
        for (prompts, expected) in [
            (
                r#"{"query":"query: ","passage":"passage: "}"#,
                Some(("query: ", "passage: ")),
            ),
            (
                r#"{"query":"search_query: ","document":"search_document: "}"#,
                Some(("search_query: ", "search_document: ")),
            ),
            (
                r#"{"query":"Represent this: ","document":""}"#,
                Some(("Represent this: ", "")),
            ),
            (r#"{"query":"","document":""}"#, None),
            (r#"{"query":"q","document":null}"#, None),
            ("{}", None),
        ] {
            let card = format!(r#"{{"prompts":{prompts},"default_prompt_name":null}}"#);
            let directory = directory(&[("config.json", CONFIG), ("config_sentence_transformers.json", &card)]);
            let found = describe(directory.path()).unwrap().prompts;
            let found = found
                .as_ref()
                .map(|found| (found.query.as_str(), found.passage.as_str()));
            assert_eq!(found, expected, "{prompts}");
        }
    }

    #[test]
    fn a_ranker_is_as_long_as_its_tokenizer_says() {
        let config = CONFIG.replacen(
            '{',
            r#"{"architectures":["BertForSequenceClassification"],"id2label":{"0":"LABEL_0"},"#,
            1,
        );
        for (length, expected) in [("20", 20), ("1e30", 32), ("512", 32)] {
            let tokenizer = format!(r#"{{"model_max_length":{length}}}"#);
            let directory = directory(&[("config.json", &config), ("tokenizer_config.json", &tokenizer)]);
            assert_eq!(purpose(directory.path()).unwrap(), Purpose::Rank);
            assert_eq!(describe(directory.path()).unwrap().max_tokens, expected);
        }
    }

    #[test]
    fn files_that_ask_for_more_are_refused_by_name() {
        let max = directory(&[
            ("config.json", CONFIG),
            ("1_Pooling/config.json", r#"{"pooling_mode_max_tokens":true}"#),
        ]);
        assert!(matches!(describe(max.path()), Err(LoadError::Field { .. })));
        let instructor = directory(&[
            ("config.json", CONFIG),
            (
                "1_Pooling/config.json",
                r#"{"pooling_mode_mean_tokens":true,"include_prompt":false}"#,
            ),
        ]);
        let error = describe(instructor.path()).unwrap_err();
        assert!(
            matches!(
                error,
                LoadError::Field {
                    field: "include_prompt",
                    ..
                }
            ),
            "{error}"
        );
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
