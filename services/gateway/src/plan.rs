//! The plan of a request. Input: a parsed request, the caller's grant, the model's card. Output: what to compute, under
//! which cache key, on which lane; or a failure that names the field. Pure. Embeddings here, the rest in `plan/`.

mod chat;
mod completions;
mod generate;
mod ranking;
mod responses;
mod tokens;

use blake3::Hasher;
use schemas::cache::CacheKey;
use schemas::error::{ErrorCode, Failure};
use schemas::fleet::{ModelCard, Operation};
use schemas::http::{EmbeddingType, EmbeddingsInput, EmbeddingsRequest, MAX_INPUTS, OneOrMany};
use schemas::work::{EmbedInput, EmbedTask, InputType, Task, Truncate};
use serde_bytes::ByteBuf;

use crate::received::Wanted;

pub use chat::{ChatShape, chat};
pub use completions::{TextShape, completions};
pub(crate) use generate::check_model;
pub use ranking::{RerankShape, ranking, rerank};
pub use responses::{ResponsesShape, responses};
pub use tokens::tokenize;

/// A request ready to be looked up and dispatched.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What to compute.
    pub task: Task,
    /// What makes the answer whole.
    pub wanted: Wanted,
    /// Under which key the answer is kept; none when it would not be the same again, or is not wanted whole.
    pub key: Option<CacheKey>,
}

/// NIM's way to name the side of a search in the model's name.
const SUFFIXES: [(&str, InputType); 2] = [("-query", InputType::Query), ("-passage", InputType::Passage)];

/// The candidates for the model a client means: the name itself, then the name without NIM's suffix and what it says.
pub fn model_candidates(name: &str) -> impl Iterator<Item = (&str, Option<InputType>)> {
    let bare = SUFFIXES
        .iter()
        .filter_map(move |(suffix, side)| Some((name.strip_suffix(suffix)?, Some(*side))));
    std::iter::once((name, None)).chain(bare)
}

/// Plans an embeddings request for a model.
///
/// # Errors
/// `invalid_field` naming the field, or `forbidden` for a model that does not embed.
pub fn embeddings(
    request: EmbeddingsRequest,
    side: Option<InputType>,
    card: &ModelCard,
    tenant: &str,
) -> Result<Plan, Failure> {
    if !card.operations.contains(&Operation::Embed) {
        return Err(invalid("model", format!("model '{}' does not embed", card.name)));
    }
    let inputs = inputs(request.input)?;
    check_dimensions(request.dimensions, card)?;
    check_number_type(request.embedding_type)?;
    check_modality(request.modality.as_ref(), inputs.len())?;
    let input_type = input_type(request.input_type, side, card)?;
    let task = EmbedTask {
        inputs,
        truncate: request.truncate.unwrap_or_default(),
        input_type,
    };
    Ok(Plan {
        wanted: Wanted::Vectors(task.inputs.len()),
        key: Some(cache_key(tenant, card, &task)),
        task: Task::Embed(task),
    })
}

fn invalid(field: &str, message: impl Into<String>) -> Failure {
    Failure::new(ErrorCode::InvalidField, message).param(field)
}

fn inputs(input: EmbeddingsInput) -> Result<Vec<EmbedInput>, Failure> {
    let inputs = match input {
        EmbeddingsInput::One(input) => vec![input],
        EmbeddingsInput::Many(inputs) => inputs,
    };
    if inputs.is_empty() {
        return Err(invalid("input", "'input' is empty: at least one text is needed"));
    }
    if inputs.len() > MAX_INPUTS {
        let message = format!(
            "'input' has {} elements; at most {MAX_INPUTS} are taken at once",
            inputs.len()
        );
        return Err(invalid("input", message));
    }
    let empty = |input: &EmbedInput| match input {
        EmbedInput::Text(text) => text.is_empty(),
        EmbedInput::Tokens(ids) => ids.is_empty(),
    };
    if let Some(index) = inputs.iter().position(empty) {
        return Err(invalid(
            &format!("input[{index}]"),
            format!("'input[{index}]' is empty"),
        ));
    }
    Ok(inputs)
}

fn check_dimensions(dimensions: Option<i64>, card: &ModelCard) -> Result<(), Failure> {
    let Some(dimensions) = dimensions else {
        return Ok(());
    };
    if dimensions < 1 {
        return Err(invalid(
            "dimensions",
            format!("'dimensions' is {dimensions}; it must be 1 or more"),
        ));
    }
    if dimensions == i64::from(card.dimensions) {
        return Ok(());
    }
    let message = format!(
        "model '{}' has vectors of {} dimensions and cannot shorten them to {dimensions}; leave 'dimensions' out",
        card.name, card.dimensions
    );
    Err(invalid("dimensions", message))
}

fn check_number_type(embedding_type: Option<EmbeddingType>) -> Result<(), Failure> {
    match embedding_type {
        None | Some(EmbeddingType::Float) => Ok(()),
        Some(_) => Err(invalid(
            "embedding_type",
            "only 'float' is supported as 'embedding_type'",
        )),
    }
}

fn check_modality(modality: Option<&OneOrMany>, inputs: usize) -> Result<(), Failure> {
    let kinds: &[String] = match modality {
        None => return Ok(()),
        Some(OneOrMany::One(kind)) => std::slice::from_ref(kind),
        Some(OneOrMany::Many(kinds)) => kinds,
    };
    if kinds.len() != 1 && kinds.len() != inputs {
        return Err(invalid(
            "modality",
            format!("'modality' has {} elements; 1 or {inputs} are needed", kinds.len()),
        ));
    }
    if kinds.iter().any(|kind| kind != "text") {
        return Err(invalid("modality", "only 'text' is supported as 'modality'"));
    }
    Ok(())
}

fn input_type(
    field: Option<InputType>,
    side: Option<InputType>,
    card: &ModelCard,
) -> Result<Option<InputType>, Failure> {
    if !card.asymmetric {
        // A symmetric model gives one answer for both sides: they share a cache entry too.
        return Ok(None);
    }
    let named = field.or(side);
    named.map(Some).ok_or_else(|| {
        // The text is NIM's, clients look for it.
        invalid("input_type", "'input_type' parameter is required for asymmetric models")
    })
}

fn cache_key(tenant: &str, card: &ModelCard, task: &EmbedTask) -> CacheKey {
    let mut key = KeyParts::new("embed/1", tenant, card);
    key.part(&[truncate_byte(task.truncate), side_byte(task.input_type)]);
    for input in &task.inputs {
        match input {
            EmbedInput::Text(text) => {
                key.part(b"t");
                key.part(text.as_bytes());
            }
            EmbedInput::Tokens(ids) => {
                key.part(b"i");
                let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
                key.part(&bytes);
            }
        }
    }
    key.finish(tenant)
}

/// The key of an answer: everything that changes it, each part with its length before it.
struct KeyParts(Hasher);

impl KeyParts {
    /// Begins with what changes every answer.
    fn new(kind: &str, tenant: &str, card: &ModelCard) -> Self {
        let mut parts = Self(Hasher::new());
        for text in [kind, tenant, &card.name, &card.revision, &card.precision] {
            parts.part(text.as_bytes());
        }
        parts
    }

    fn part(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn finish(self, tenant: &str) -> CacheKey {
        CacheKey {
            tenant: tenant.to_owned(),
            digest: ByteBuf::from(self.0.finalize().as_bytes().to_vec()),
        }
    }
}

fn truncate_byte(truncate: Truncate) -> u8 {
    match truncate {
        Truncate::None => 0,
        Truncate::Start => 1,
        Truncate::End => 2,
    }
}

fn side_byte(side: Option<InputType>) -> u8 {
    match side {
        None => 0,
        Some(InputType::Query) => 1,
        Some(InputType::Passage) => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card() -> ModelCard {
        ModelCard {
            name: "m".to_owned(),
            slug: "m".to_owned(),
            operations: vec![Operation::Embed],
            family: "bert".to_owned(),
            dimensions: 384,
            max_tokens: 256,
            max_context: 0,
            revision: "r1".to_owned(),
            precision: "f32".to_owned(),
            parameters: 1,
            variable_dimensions: false,
            asymmetric: false,
            created_s: 0,
        }
    }

    fn request(json: &str) -> EmbeddingsRequest {
        serde_json::from_str(json).unwrap()
    }

    fn plan(json: &str) -> Result<Plan, Failure> {
        embeddings(request(json), None, &card(), "t")
    }

    #[test]
    fn fields_that_cannot_be_met_are_named() {
        let cases = [
            (r#"{"model":"m","input":[]}"#, "input"),
            (r#"{"model":"m","input":""}"#, "input[0]"),
            (r#"{"model":"m","input":["a",""]}"#, "input[1]"),
            (r#"{"model":"m","input":[[1],[]]}"#, "input[1]"),
            (r#"{"model":"m","input":"a","dimensions":-1}"#, "dimensions"),
            (r#"{"model":"m","input":"a","dimensions":128}"#, "dimensions"),
            (r#"{"model":"m","input":"a","embedding_type":"int8"}"#, "embedding_type"),
            (r#"{"model":"m","input":"a","modality":"image"}"#, "modality"),
            (r#"{"model":"m","input":["a"],"modality":["text","text"]}"#, "modality"),
        ];
        for (json, param) in cases {
            let failure = plan(json).unwrap_err();
            assert_eq!(
                (failure.code, failure.param.as_deref()),
                (ErrorCode::InvalidField, Some(param)),
                "{json}"
            );
        }
        let many = serde_json::json!({"model": "m", "input": vec!["a"; MAX_INPUTS + 1]}).to_string();
        assert_eq!(plan(&many).unwrap_err().param.as_deref(), Some("input"));
        assert!(plan(r#"{"model":"m","input":"a","dimensions":384,"modality":["text"]}"#).is_ok());
    }

    #[test]
    fn the_key_holds_all_that_changes_the_answer_and_nothing_else() {
        let base = plan(r#"{"model":"m","input":"a"}"#).unwrap();
        for same in [
            r#"{"model":"m","input":["a"]}"#,
            r#"{"model":"m","input":"a","encoding_format":"base64","user":"u","input_type":"query"}"#,
            r#"{"model":"m","input":"a","truncate":"NONE"}"#,
        ] {
            assert_eq!(plan(same).unwrap().key, base.key, "{same}");
        }
        for other in [
            r#"{"model":"m","input":"b"}"#,
            r#"{"model":"m","input":["a","a"]}"#,
            r#"{"model":"m","input":[97]}"#,
            r#"{"model":"m","input":"a","truncate":"END"}"#,
        ] {
            assert_ne!(plan(other).unwrap().key, base.key, "{other}");
        }
        let other_tenant = embeddings(request(r#"{"model":"m","input":"a"}"#), None, &card(), "u").unwrap();
        let digest = |plan: &Plan| plan.key.as_ref().unwrap().digest.clone();
        assert_ne!(
            digest(&other_tenant),
            digest(&base),
            "the tenant is inside the digest too"
        );
        let other_revision = ModelCard {
            revision: "r2".to_owned(),
            ..card()
        };
        let plan = embeddings(request(r#"{"model":"m","input":"a"}"#), None, &other_revision, "t").unwrap();
        assert_ne!(plan.key, base.key);
    }

    #[test]
    fn asymmetric_models_need_a_side() {
        let card = ModelCard {
            asymmetric: true,
            ..card()
        };
        let bare = || request(r#"{"model":"m","input":"a"}"#);
        let failure = embeddings(bare(), None, &card, "t").unwrap_err();
        assert_eq!(
            failure.message,
            "'input_type' parameter is required for asymmetric models"
        );
        let by_suffix = embeddings(bare(), Some(InputType::Query), &card, "t").unwrap();
        let by_field = embeddings(
            request(r#"{"model":"m","input":"a","input_type":"query"}"#),
            None,
            &card,
            "t",
        )
        .unwrap();
        assert_eq!(by_suffix.key, by_field.key);
        let names: Vec<_> = model_candidates("x-query").collect();
        assert_eq!(names, [("x-query", None), ("x", Some(InputType::Query))]);
    }
}
