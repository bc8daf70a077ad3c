//! A model that computes whole sequences: one that embeds, or one that ranks. Input: its folder, tasks. Output: token ids of all
//! inputs of a task, one row per input.

use std::num::NonZeroUsize;

use anyhow::Context as _;
use engine::{
    ComputeError, EmbeddingModel, Embeddings, Input, InputError, LoadOptions, ModelInfo, Precision, Purpose,
    RankingModel, Side, TokenIds, Vocabulary,
};
use schemas::error::{ErrorCode, Failure};
use schemas::fleet::{ModelCard, Operation};
use schemas::http::{MAX_INPUTS, MAX_PASSAGES};
use schemas::ids::model_slug;
use schemas::work::{EmbedInput, EmbedTask, InputType, RankTask, Task, Truncate};

use crate::admit::{Refusal, unsupported};
use crate::config::ModelConfig;

/// A loaded model; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) enum Encoder {
    /// It embeds.
    Embedding(EmbeddingModel),
    /// It ranks.
    Ranking(RankingModel),
}

/// A task that suits the model.
#[derive(Debug)]
pub(crate) enum EncoderTask {
    /// Embed texts.
    Embed(EmbedTask),
    /// Rank passages.
    Rank(RankTask),
}

impl Encoder {
    /// Loads the model's folder; blocks.
    pub(crate) fn load(config: &ModelConfig) -> anyhow::Result<Self> {
        let precision: Precision = config
            .precision
            .parse()
            .map_err(|error| anyhow::anyhow!("model.precision: {error}"))?;
        let mut options = LoadOptions {
            precision,
            ..LoadOptions::default()
        };
        if let Some(threads) = NonZeroUsize::new(config.threads) {
            options.threads = threads;
        }
        let path = &config.path;
        let loaded = engine::purpose(path).and_then(|purpose| match purpose {
            Purpose::Embed => EmbeddingModel::load(path, options).map(Self::Embedding),
            Purpose::Rank => RankingModel::load(path, options).map(Self::Ranking),
        });
        loaded.with_context(|| format!("cannot load model '{}' from {}", config.name, path.display()))
    }

    pub(crate) fn info(&self) -> &ModelInfo {
        match self {
            Self::Embedding(model) => model.info(),
            Self::Ranking(model) => model.info(),
        }
    }

    pub(crate) fn operation(&self) -> Operation {
        match self {
            Self::Embedding(_) => Operation::Embed,
            Self::Ranking(_) => Operation::Rank,
        }
    }

    /// The model's tokens, if it has some of its own.
    pub(crate) fn vocabulary(&self) -> Option<Vocabulary> {
        match self {
            Self::Embedding(model) => model.vocabulary(),
            Self::Ranking(model) => Some(model.vocabulary()),
        }
    }

    /// The task as one of this model's.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] when it is another, or one without sense.
    pub(crate) fn accept(&self, task: Task, model: &str) -> Result<EncoderTask, Refusal> {
        match (self, task) {
            (Self::Embedding(_), Task::Embed(task)) => {
                check_count(("inputs", "input"), task.inputs.len(), MAX_INPUTS)?;
                Ok(EncoderTask::Embed(task))
            }
            (Self::Ranking(_), Task::Rank(task)) => {
                check_count(("passages", "passages"), task.passages.len(), MAX_PASSAGES)?;
                Ok(EncoderTask::Rank(task))
            }
            (Self::Embedding(_), _) => Err(unsupported(model, "embeds, it neither writes nor ranks")),
            (Self::Ranking(_), _) => Err(unsupported(model, "ranks, it neither writes nor embeds")),
        }
    }

    /// Token ids of all inputs of a task. CPU bound: for real models it runs off the event loop.
    ///
    /// # Errors
    /// A failure that names the input.
    pub(crate) fn tokenize(&self, task: &EncoderTask) -> Result<Vec<TokenIds>, Failure> {
        match (self, task) {
            (Self::Embedding(model), EncoderTask::Embed(task)) => embed_tokens(model, task),
            (Self::Ranking(model), EncoderTask::Rank(task)) => rank_tokens(model, task),
            // `accept` has seen to it.
            _ => Err(Failure::new(
                ErrorCode::Internal,
                "the task is of another kind than the model",
            )),
        }
    }

    /// One row per sequence: a vector, or a score.
    pub(crate) fn compute(&self, tokens: &[TokenIds]) -> Result<Embeddings, ComputeError> {
        match self {
            Self::Embedding(model) => model.embed(tokens),
            Self::Ranking(model) => model.score(tokens),
        }
    }

    /// The model's card.
    pub(crate) fn card(&self, config: &ModelConfig, now_s: u64) -> ModelCard {
        let info = self.info();
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let (dimensions, asymmetric) = match self {
            Self::Embedding(model) => (info.dims, model.is_asymmetric()),
            Self::Ranking(_) => (0, false),
        };
        ModelCard {
            name: config.name.clone(),
            slug: model_slug(&config.name),
            operations: vec![self.operation()],
            family: info.family.to_owned(),
            dimensions: number(dimensions),
            max_tokens: number(info.max_tokens),
            max_context: 0,
            revision: info.revision.clone(),
            precision: info.precision.name().to_owned(),
            parameters: info.parameters,
            variable_dimensions: false,
            asymmetric,
            created_s: now_s,
        }
    }
}

/// Bounds the inputs of a task; `names` are that of the field and that of the client's.
fn check_count((field, param): (&str, &str), count: usize, limit: usize) -> Result<(), Refusal> {
    let invalid = |message: String| Refusal::Invalid(Failure::new(ErrorCode::InvalidField, message).param(param));
    match count {
        0 => Err(invalid(format!("'{field}' is empty: at least one is needed"))),
        count if count > limit => Err(invalid(format!(
            "'{field}' has {count} elements; at most {limit} are taken"
        ))),
        _ => Ok(()),
    }
}

fn embed_tokens(model: &EmbeddingModel, task: &EmbedTask) -> Result<Vec<TokenIds>, Failure> {
    let truncate = engines(task.truncate);
    let one = |(index, input): (usize, &EmbedInput)| {
        let input = match input {
            EmbedInput::Text(text) => Input::Text(text),
            EmbedInput::Tokens(ids) => Input::Tokens(ids),
        };
        let tokens = match side(model, task.input_type)? {
            None => model.tokenize(input, truncate),
            Some(side) => model.tokenize_for(side, input, truncate),
        };
        tokens.map_err(|error| {
            let param = if task.inputs.len() == 1 {
                "input".to_owned()
            } else {
                format!("input[{index}]")
            };
            input_failure(param, &error)
        })
    };
    task.inputs.iter().enumerate().map(one).collect()
}

/// The side of an input, which models with prompts for the sides have to be told.
fn side(model: &EmbeddingModel, input_type: Option<InputType>) -> Result<Option<Side>, Failure> {
    if !model.is_asymmetric() {
        return Ok(None);
    }
    match input_type {
        Some(InputType::Query) => Ok(Some(Side::Query)),
        Some(InputType::Passage) => Ok(Some(Side::Passage)),
        None => {
            // The text is NIM's; the gateway says it too, this is for publishers.
            let message = "'input_type' parameter is required for asymmetric models";
            Err(Failure::new(ErrorCode::InvalidField, message).param("input_type"))
        }
    }
}

fn rank_tokens(model: &RankingModel, task: &RankTask) -> Result<Vec<TokenIds>, Failure> {
    let truncate = engines(task.truncate);
    let query = model
        .query(&task.query)
        .map_err(|error| input_failure("query".to_owned(), &error))?;
    let one = |(index, passage): (usize, &String)| {
        let pair = model.pair(&query, passage, truncate);
        pair.map_err(|error| input_failure(format!("passages[{index}]"), &error))
    };
    task.passages.iter().enumerate().map(one).collect()
}

fn engines(truncate: Truncate) -> engine::Truncate {
    match truncate {
        Truncate::None => engine::Truncate::None,
        Truncate::Start => engine::Truncate::Start,
        Truncate::End => engine::Truncate::End,
    }
}

fn input_failure(param: String, error: &InputError) -> Failure {
    let failure = match error {
        // The text is NIM's; clients look for "exceeds maximum allowed".
        InputError::TooLong { tokens, max } => Failure::new(
            ErrorCode::InputTooLong,
            format!("Input length {tokens} exceeds maximum allowed token size {max}"),
        ),
        other => Failure::new(ErrorCode::InvalidField, format!("'{param}': {other}")),
    };
    failure.param(param)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    fn load(name: &str) -> Encoder {
        let fixtures = "../../shared/engine/tests/fixtures/encoders";
        let config = ModelConfig {
            name: name.to_owned(),
            path: Path::new(env!("CARGO_MANIFEST_DIR")).join(fixtures).join(name),
            engine: crate::config::EngineKind::Model,
            precision: "f32".to_owned(),
            threads: 1,
        };
        Encoder::load(&config).unwrap()
    }

    fn tokens(encoder: &Encoder, task: Value) -> Result<Vec<TokenIds>, Failure> {
        let task = serde_json::from_value(task).unwrap();
        match encoder.accept(task, "m") {
            Ok(task) => encoder.tokenize(&task),
            Err(Refusal::Invalid(failure)) => Err(failure),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_model_takes_tasks_of_its_kind_and_names_what_is_wrong_with_them() {
        let ranker = load("rank_bert");
        let rank = |query: &str, passages: Value| json!({"rank": {"query": query, "passages": passages}});
        assert_eq!(tokens(&ranker, rank("a", json!(["a", "worker"]))).unwrap().len(), 2);
        let long = "water boils at sea level ".repeat(20);
        for (task, code, param) in [
            (rank("", json!(["a"])), ErrorCode::InvalidField, "query"),
            (rank("a", json!([])), ErrorCode::InvalidField, "passages"),
            (rank("a", json!(["a", ""])), ErrorCode::InvalidField, "passages[1]"),
            (rank("a", json!(["a", long])), ErrorCode::InputTooLong, "passages[1]"),
            (json!({"embed": {"inputs": ["a"]}}), ErrorCode::UnsupportedWork, "model"),
        ] {
            let failure = tokens(&ranker, task).unwrap_err();
            assert_eq!(
                (failure.code, failure.param.as_deref()),
                (code, Some(param)),
                "{failure}"
            );
        }
    }

    #[test]
    fn a_model_with_prompts_is_told_the_side() {
        let nomic = load("embed_nomic");
        let config_of = |encoder: &Encoder| match encoder {
            Encoder::Embedding(model) => model.is_asymmetric(),
            Encoder::Ranking(_) => panic!("it embeds"),
        };
        assert!(config_of(&nomic) && !config_of(&load("embed_bge")));
        let embed = |side: Value| json!({"embed": {"inputs": ["a"], "input_type": side}});
        let query = tokens(&nomic, embed(json!("query"))).unwrap();
        let passage = tokens(&nomic, embed(json!("passage"))).unwrap();
        assert_ne!(query, passage);
        let failure = tokens(&nomic, embed(Value::Null)).unwrap_err();
        assert_eq!(failure.param.as_deref(), Some("input_type"));
    }
}
