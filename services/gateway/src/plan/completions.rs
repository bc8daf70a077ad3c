//! Plans of plain completions. Input: a parsed request, the model's card. Output: a generation task and how to write its
//! answer; or a failure that names the field. Pure.

use schemas::error::Failure;
use schemas::fleet::ModelCard;
use schemas::generate::{GenerateTask, Prompt};
use schemas::http::{CompletionPrompt, CompletionsRequest, EmbeddingsInput};
use schemas::work::EmbedInput;

use super::generate::{self, Guided, Wishes, whole};
use super::{Plan, invalid};

/// Most tokens of an answer when the client does not say (OpenAI's figure).
const DEFAULT_MAX_TOKENS: i64 = 16;

/// How the answer to a prompt is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextShape {
    /// In chunks, as it comes.
    pub stream: bool,
    /// The chunks say what it took.
    pub include_usage: bool,
    /// With log probabilities.
    pub logprobs: bool,
    /// The prompt, if it comes before the answer.
    pub echo: Option<String>,
}

/// Plans a plain completion for a model.
///
/// # Errors
/// `invalid_field` naming the field.
pub fn completions(
    mut request: CompletionsRequest,
    card: &ModelCard,
    tenant: &str,
) -> Result<(Plan, TextShape), Failure> {
    generate::check_model(card)?;
    if request.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
        return Err(invalid("suffix", "'suffix' is not supported; leave it out"));
    }
    let mut wishes = wishes(&mut request);
    let (stream, include_usage) = wishes.stream()?;
    let choices = wishes.choices()?;
    if let Some(best_of) = whole("best_of", request.best_of, 1..=20)?
        && best_of != choices
    {
        return Err(invalid(
            "best_of",
            format!("'best_of' is {best_of}; only the same as 'n' is supported"),
        ));
    }
    let logprobs = whole("logprobs", request.logprobs, 0..=5)?;
    let prompt = prompt(request.prompt)?;
    let echo = echo(request.echo == Some(true), &prompt, logprobs.is_some())?;
    let (sampling, limits) = (wishes.sampling()?, wishes.limits()?);
    let task = GenerateTask {
        prompt,
        choices,
        sampling,
        limits,
        logprobs,
        constraint: wishes.constraint()?,
        stream,
        resume: Vec::new(),
        attempts_before: 0,
    };
    let shape = TextShape {
        stream,
        include_usage,
        logprobs: logprobs.is_some(),
        echo,
    };
    Ok((generate::plan(task, card, tenant), shape))
}

fn wishes(request: &mut CompletionsRequest) -> Wishes {
    Wishes {
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        min_p: request.min_p,
        repetition_penalty: request.repetition_penalty,
        presence_penalty: request.presence_penalty,
        frequency_penalty: request.frequency_penalty,
        seed: request.seed,
        logit_bias: request.logit_bias.take(),
        n: request.n,
        max_tokens: Some(("max_tokens", request.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS))),
        min_tokens: request.min_tokens,
        ignore_eos: request.ignore_eos,
        stop: request.stop.take(),
        stream: request.stream,
        stream_options: request.stream_options,
        guided: Guided {
            json: request.guided_json.take(),
            regex: request.guided_regex.take(),
            choice: request.guided_choice.take(),
            grammar: request.guided_grammar.take(),
            response_format: request.response_format.take(),
        },
        nvext: request.nvext.take().unwrap_or_default(),
    }
}

fn prompt(prompt: CompletionPrompt) -> Result<Prompt, Failure> {
    let one = match prompt.0 {
        EmbeddingsInput::One(one) => one,
        EmbeddingsInput::Many(many) => {
            let count = many.len();
            let mut many = many.into_iter();
            match (many.next(), many.next()) {
                (Some(one), None) => one,
                (None, _) => return Err(invalid("prompt", "'prompt' is empty")),
                _ => {
                    let message = format!("'prompt' has {count} prompts; send one prompt per request");
                    return Err(invalid("prompt", message));
                }
            }
        }
    };
    match one {
        EmbedInput::Text(text) if text.is_empty() => Err(invalid("prompt", "'prompt' is empty")),
        EmbedInput::Tokens(ids) if ids.is_empty() => Err(invalid("prompt", "'prompt' is empty")),
        EmbedInput::Text(text) => Ok(Prompt::Text(text)),
        EmbedInput::Tokens(ids) => Ok(Prompt::Tokens(ids)),
    }
}

fn echo(wanted: bool, prompt: &Prompt, logprobs: bool) -> Result<Option<String>, Failure> {
    match prompt {
        _ if !wanted => Ok(None),
        Prompt::Text(text) if !logprobs => Ok(Some(text.clone())),
        _ => Err(invalid(
            "echo",
            "'echo' is only supported for a 'prompt' that is a text, without 'logprobs'",
        )),
    }
}

#[cfg(test)]
mod tests {
    use schemas::error::ErrorCode;
    use schemas::work::Task;
    use serde_json::{Value, json};

    use super::*;

    fn with(fields: &Value) -> Result<(Plan, TextShape), Failure> {
        let card = json!({
            "name": "m", "slug": "m", "operations": ["generate"], "family": "llama", "dimensions": 0, "max_tokens": 8,
            "revision": "r", "precision": "f32", "parameters": 1, "created_s": 1
        });
        let mut body = json!({"model": "m", "prompt": "a"});
        for (name, value) in fields.as_object().unwrap() {
            body[name] = value.clone();
        }
        let card = serde_json::from_value(card).unwrap();
        completions(serde_json::from_value(body).unwrap(), &card, "t")
    }

    #[test]
    fn fields_that_cannot_be_met_are_named() {
        let cases = [
            (json!({"best_of": 21}), "best_of"),
            (json!({"best_of": 2}), "best_of"),
            (json!({"logprobs": 6}), "logprobs"),
            (json!({"suffix": "b"}), "suffix"),
            (json!({"prompt": ""}), "prompt"),
            (json!({"prompt": []}), "prompt"),
            (json!({"prompt": ["a", "b"]}), "prompt"),
            (json!({"prompt": [1, 2], "echo": true}), "echo"),
            (json!({"echo": true, "logprobs": 1}), "echo"),
            (json!({"temperature": 3}), "temperature"),
        ];
        for (fields, param) in cases {
            let failure = with(&fields).unwrap_err();
            assert_eq!(
                (failure.code, failure.param.as_deref()),
                (ErrorCode::InvalidField, Some(param)),
                "{fields}"
            );
        }
    }

    #[test]
    fn every_shape_of_one_prompt_is_taken() {
        let prompt = |fields: Value| match with(&fields).unwrap().0.task {
            Task::Generate(task) => (task.prompt, task.limits.max_tokens),
            other => panic!("not a generation: {other:?}"),
        };
        let text = || Prompt::Text("a".to_owned());
        assert_eq!(prompt(json!({})), (text(), Some(16)));
        assert_eq!(
            prompt(json!({"prompt": ["a"], "max_tokens": 5, "best_of": 1})),
            (text(), Some(5))
        );
        for ids in [json!([1, 2]), json!([[1, 2]])] {
            assert_eq!(prompt(json!({"prompt": ids})).0, Prompt::Tokens(vec![1, 2]));
        }
        let (_, shape) =
            with(&json!({"echo": true, "stream": true, "stream_options": {"include_usage": true}})).unwrap();
        assert_eq!(
            (shape.echo.as_deref(), shape.stream, shape.include_usage),
            (Some("a"), true, true)
        );
    }
}
