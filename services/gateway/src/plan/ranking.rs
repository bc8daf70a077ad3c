//! Plans of rankings. Input: a parsed request, the model's card. Output: a ranking task and how to write its answer; or a failure
//! that names the field. Pure. Both shapes of a request have one cache key.

use schemas::error::Failure;
use schemas::fleet::{ModelCard, Operation};
use schemas::http::{MAX_PASSAGES, RankingRequest, RerankRequest};
use schemas::work::{RankTask, Task, Truncate};

use super::{KeyParts, Plan, invalid, truncate_byte};
use crate::received::Wanted;

/// How the answer to a rerank request is written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RerankShape {
    /// Only so many of the best.
    pub top_n: Option<usize>,
    /// The documents, if they are to come back.
    pub documents: Vec<String>,
}

/// Plans a request in NIM's shape.
///
/// # Errors
/// `invalid_field` naming the field.
pub fn ranking(request: RankingRequest, card: &ModelCard, tenant: &str) -> Result<Plan, Failure> {
    check_model(card)?;
    let truncate = truncate(request.truncate, Truncate::None)?;
    check_text("query.text", &request.query.text)?;
    check_count("passages", request.passages.len())?;
    let passages: Vec<String> = request.passages.into_iter().map(|passage| passage.text).collect();
    for (index, passage) in passages.iter().enumerate() {
        check_text(&format!("passages[{index}].text"), passage)?;
    }
    let task = RankTask {
        query: request.query.text,
        passages,
        truncate,
    };
    Ok(plan(task, card, tenant))
}

/// Plans a request in the shape of Cohere and Jina.
///
/// # Errors
/// `invalid_field` naming the field.
pub fn rerank(request: RerankRequest, card: &ModelCard, tenant: &str) -> Result<(Plan, RerankShape), Failure> {
    check_model(card)?;
    let truncate = truncate(request.truncate, Truncate::End)?;
    check_text("query", &request.query)?;
    check_count("documents", request.documents.len())?;
    let passages: Vec<String> = request.documents.into_iter().map(|document| document.0).collect();
    for (index, passage) in passages.iter().enumerate() {
        check_text(&format!("documents[{index}]"), passage)?;
    }
    let top_n = match request.top_n {
        None => None,
        Some(count) => match usize::try_from(count) {
            Ok(count) if count > 0 => Some(count),
            _ => return Err(invalid("top_n", format!("'top_n' is {count}; it must be 1 or more"))),
        },
    };
    let wants_documents = request.return_documents == Some(true);
    let shape = RerankShape {
        top_n,
        documents: if wants_documents { passages.clone() } else { Vec::new() },
    };
    let task = RankTask {
        query: request.query,
        passages,
        truncate,
    };
    Ok((plan(task, card, tenant), shape))
}

fn check_model(card: &ModelCard) -> Result<(), Failure> {
    if card.operations.contains(&Operation::Rank) {
        return Ok(());
    }
    Err(invalid("model", format!("model '{}' does not rank", card.name)))
}

fn truncate(wish: Option<Truncate>, default: Truncate) -> Result<Truncate, Failure> {
    match wish.unwrap_or(default) {
        Truncate::Start => Err(invalid(
            "truncate",
            "'truncate' is 'START'; a ranking takes 'NONE' or 'END'",
        )),
        other => Ok(other),
    }
}

fn check_text(field: &str, text: &str) -> Result<(), Failure> {
    if text.is_empty() {
        return Err(invalid(field, format!("'{field}' is empty")));
    }
    Ok(())
}

fn check_count(field: &str, count: usize) -> Result<(), Failure> {
    if count == 0 {
        return Err(invalid(field, format!("'{field}' is empty: at least one is needed")));
    }
    if count > MAX_PASSAGES {
        let message = format!("'{field}' has {count} elements; at most {MAX_PASSAGES} are taken at once");
        return Err(invalid(field, message));
    }
    Ok(())
}

fn plan(task: RankTask, card: &ModelCard, tenant: &str) -> Plan {
    let mut key = KeyParts::new("rank/1", tenant, card);
    key.part(&[truncate_byte(task.truncate)]);
    key.part(task.query.as_bytes());
    for passage in &task.passages {
        key.part(passage.as_bytes());
    }
    Plan {
        wanted: Wanted::Scores(task.passages.len()),
        key: Some(key.finish(tenant)),
        task: Task::Rank(task),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn card(operation: &str) -> ModelCard {
        let json = json!({
            "name": "m", "slug": "m", "operations": [operation], "family": "bert", "dimensions": 0, "max_tokens": 8,
            "revision": "r", "precision": "f32", "parameters": 1, "created_s": 1
        });
        serde_json::from_value(json).unwrap()
    }

    fn nim(fields: &Value) -> Result<Plan, Failure> {
        let mut body = json!({"model": "m", "query": {"text": "q"}, "passages": [{"text": "a"}, {"text": "b"}]});
        for (name, value) in fields.as_object().unwrap() {
            body[name] = value.clone();
        }
        ranking(serde_json::from_value(body).unwrap(), &card("rank"), "t")
    }

    fn cohere(fields: &Value) -> Result<(Plan, RerankShape), Failure> {
        let mut body = json!({"model": "m", "query": "q", "documents": ["a", {"text": "b"}]});
        for (name, value) in fields.as_object().unwrap() {
            body[name] = value.clone();
        }
        rerank(serde_json::from_value(body).unwrap(), &card("rank"), "t")
    }

    #[test]
    fn fields_that_cannot_be_met_are_named() {
        for (fields, param) in [
            (json!({"query": {"text": ""}}), "query.text"),
            (json!({"passages": []}), "passages"),
            (json!({"passages": [{"text": "a"}, {"text": ""}]}), "passages[1].text"),
            (json!({"truncate": "START"}), "truncate"),
            (
                json!({"passages": vec![json!({"text": "a"}); MAX_PASSAGES + 1]}),
                "passages",
            ),
        ] {
            assert_eq!(nim(&fields).unwrap_err().param.as_deref(), Some(param));
        }
        for (fields, param) in [
            (json!({"query": ""}), "query"),
            (json!({"documents": []}), "documents"),
            (json!({"documents": ["a", ""]}), "documents[1]"),
            (json!({"top_n": 0}), "top_n"),
            (json!({"top_n": -3}), "top_n"),
            (json!({"truncate": "START"}), "truncate"),
        ] {
            assert_eq!(cohere(&fields).unwrap_err().param.as_deref(), Some(param));
        }
        let body = json!({"model": "m", "query": {"text": "q"}, "passages": [{"text": "a"}]});
        let failure = ranking(serde_json::from_value(body).unwrap(), &card("embed"), "t").unwrap_err();
        assert_eq!(
            (failure.param.as_deref(), failure.message.as_str()),
            (Some("model"), "model 'm' does not rank")
        );
    }

    #[test]
    fn both_shapes_of_one_question_share_an_answer() {
        let one = nim(&json!({"truncate": "END"})).unwrap();
        let (other, shape) = cohere(&json!({"top_n": 1, "return_documents": true})).unwrap();
        assert_eq!(one, other);
        assert_eq!(
            (shape.top_n, shape.documents),
            (Some(1), vec!["a".to_owned(), "b".to_owned()])
        );
        assert!(cohere(&json!({})).unwrap().1.documents.is_empty());
        for fields in [
            json!({}),
            json!({"truncate": "END", "query": {"text": "p"}}),
            json!({"truncate": "END", "passages": [{"text": "b"}, {"text": "a"}]}),
            json!({"truncate": "END", "passages": [{"text": "ab"}]}),
        ] {
            assert_ne!(nim(&fields).unwrap().key, one.key, "{fields}");
        }
    }
}
