//! Plans of plain completions. Input: a parsed request, the model's card. Output: a generation task and how to write its
//! answer; or a failure that names the field. Pure.

use schemas::error::Failure;
use schemas::fleet::ModelCard;
use schemas::generate::{GenerateTask, Prompt};
use schemas::http::{CompletionPrompt, CompletionsRequest, EmbeddingsInput};
use schemas::work::EmbedInput;

use super::generate::{self, Guided, MAX_CHOICES, Wishes, whole};
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
    /// Of so many answers to each prompt, written one after the other (`best_of`) …
    pub written: u32,
    /// … so many are given (`n`).
    pub given: u32,
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
    let given = wishes.choices()?;
    let written = best_of(request.best_of, given, stream)?;
    let logprobs = whole("logprobs", request.logprobs, 0..=5)?;
    let (prompt, more_prompts) = prompts(request.prompt, written)?;
    let (sampling, limits) = (wishes.sampling()?, wishes.limits()?);
    let (constraint, constraint_field) = wishes.constraint()?.unzip();
    let task = GenerateTask {
        prompt,
        more_prompts,
        choices: written,
        sampling,
        limits,
        // The best are known by their log probabilities.
        logprobs: logprobs.or((written > given).then_some(0)),
        echo: request.echo == Some(true),
        constraint,
        constraint_field,
        stream,
        resume: Vec::new(),
        attempts_before: 0,
    };
    let shape = TextShape {
        stream,
        include_usage,
        logprobs: logprobs.is_some(),
        written,
        given,
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

/// How many answers are written to each prompt.
fn best_of(wanted: Option<i64>, given: u32, stream: bool) -> Result<u32, Failure> {
    let Some(best_of) = whole("best_of", wanted, 1..=20)? else {
        return Ok(given);
    };
    if best_of < given {
        let message = format!("'best_of' is {best_of}; it must not be under 'n', which is {given}");
        return Err(invalid("best_of", message));
    }
    if best_of > given && stream {
        let message = "'best_of' over 'n' cannot be streamed: the best are known at the end";
        return Err(invalid("best_of", message));
    }
    Ok(best_of)
}

/// The first prompt and the others, when there are few enough for so many answers to each.
fn prompts(prompt: CompletionPrompt, answers: u32) -> Result<(Prompt, Vec<Prompt>), Failure> {
    let all = match prompt.0 {
        EmbeddingsInput::One(one) => vec![one],
        EmbeddingsInput::Many(many) => many,
    };
    let most = usize::try_from(MAX_CHOICES / i64::from(answers.max(1)))
        .unwrap_or(1)
        .max(1);
    let count = all.len();
    if count > most {
        let message = format!("'prompt' has {count} prompts; at most {most} are taken with {answers} answers to each");
        return Err(invalid("prompt", message));
    }
    let mut read = all.into_iter().enumerate().map(|(place, input)| {
        let empty = || {
            let field = if count == 1 {
                "prompt".to_owned()
            } else {
                format!("prompt[{place}]")
            };
            invalid(&field, format!("'{field}' is empty"))
        };
        match input {
            EmbedInput::Text(text) if text.is_empty() => Err(empty()),
            EmbedInput::Tokens(ids) if ids.is_empty() => Err(empty()),
            EmbedInput::Text(text) => Ok(Prompt::Text(text)),
            EmbedInput::Tokens(ids) => Ok(Prompt::Tokens(ids)),
        }
    });
    let first = read
        .next()
        .unwrap_or_else(|| Err(invalid("prompt", "'prompt' is empty")))?;
    Ok((first, read.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use crate::received::Wanted;
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
            (json!({"best_of": 2, "n": 3}), "best_of"),
            (json!({"best_of": 2, "stream": true}), "best_of"),
            (json!({"logprobs": 6}), "logprobs"),
            (json!({"suffix": "b"}), "suffix"),
            (json!({"prompt": ""}), "prompt"),
            (json!({"prompt": []}), "prompt"),
            (json!({"prompt": ["a", ""]}), "prompt[1]"),
            (json!({"prompt": vec!["a"; 129]}), "prompt"),
            (json!({"prompt": vec!["a"; 65], "n": 2}), "prompt"),
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

    fn task(fields: &Value) -> GenerateTask {
        match with(fields).unwrap().0.task {
            Task::Generate(task) => *task,
            other => panic!("not a generation: {other:?}"),
        }
    }

    #[test]
    fn every_shape_of_prompts_is_taken() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        let base = task(&json!({}));
        assert_eq!(
            (base.prompt, base.limits.max_tokens, base.echo),
            (text("a"), Some(16), false)
        );
        assert_eq!(task(&json!({"prompt": ["a"]})).prompt, text("a"));
        for ids in [json!([1, 2]), json!([[1, 2]])] {
            assert_eq!(task(&json!({"prompt": ids})).prompt, Prompt::Tokens(vec![1, 2]));
        }
        let fields = json!({"prompt": ["a", "b", "c"], "n": 2, "echo": true, "logprobs": 0});
        let (plan, shape) = with(&fields).unwrap();
        assert_eq!((plan.wanted, shape.written, shape.given), (Wanted::Text(6), 2, 2));
        let several = task(&fields);
        assert_eq!(several.more_prompts, [text("b"), text("c")]);
        assert_eq!((several.choices, several.echo, several.logprobs), (2, true, Some(0)));
    }

    #[test]
    fn the_best_are_chosen_by_log_probabilities_that_nobody_asked_for() {
        let fields = json!({"best_of": 4, "n": 2});
        let (plan, shape) = with(&fields).unwrap();
        assert_eq!((plan.wanted, shape.written, shape.given), (Wanted::Text(4), 4, 2));
        assert!(!shape.logprobs && task(&fields).logprobs == Some(0));
    }
}
