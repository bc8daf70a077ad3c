//! What plans of chat and plain completions share. Input: the wishes of a request, the model's card. Output: the parts of a
//! generation task, checked; or a failure that names the field. Pure.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use schemas::error::Failure;
use schemas::fleet::{ModelCard, Operation};
use schemas::generate::{Constraint, GenerateTask, OutputLimits, Sampling, TokenBias};
use schemas::http::{NvExt, OneOrMany, ResponseFormat, ResponseFormatKind, StreamOptions};
use schemas::wire;
use schemas::work::Task;
use serde_json::Value;

use super::{KeyParts, Plan, invalid};
use crate::received::Wanted;

/// Most answers of one request (OpenAI's limit for one prompt; here for all of them).
pub(super) const MAX_CHOICES: i64 = 128;
/// Most stop strings; OpenAI takes 4, NIM more. Each is looked for at every token.
const MAX_STOPS: usize = 16;
/// Longest stop string in bytes: text is held back while it may be the beginning of one.
const MAX_STOP_BYTES: usize = 1_024;
/// Most biased tokens of one request.
const MAX_BIASES: usize = 1_024;
/// Most texts to choose from.
const MAX_GUIDED_CHOICES: usize = 1_024;

/// What a request wishes, whichever its shape.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<i64>,
    pub min_p: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub seed: Option<i64>,
    pub logit_bias: Option<BTreeMap<String, f64>>,
    pub n: Option<i64>,
    /// The name of the field and what it says.
    pub max_tokens: Option<(&'static str, i64)>,
    pub min_tokens: Option<i64>,
    pub ignore_eos: Option<bool>,
    pub stop: Option<OneOrMany>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub guided: Guided,
    pub nvext: NvExt,
}

/// What the answer has to conform to, by whichever field.
#[derive(Debug, Default)]
pub(super) struct Guided {
    pub json: Option<Value>,
    pub regex: Option<String>,
    pub choice: Option<Vec<String>>,
    pub grammar: Option<String>,
    pub response_format: Option<ResponseFormat>,
}

/// Refuses models that do not write.
pub(crate) fn check_model(card: &ModelCard) -> Result<(), Failure> {
    if card.operations.contains(&Operation::Generate) {
        return Ok(());
    }
    let message = format!(
        "model '{}' does not write text; GET /v1/models lists the models of this key",
        card.name
    );
    Err(invalid("model", message))
}

impl Wishes {
    /// Answers wanted.
    pub(super) fn choices(&self) -> Result<u32, Failure> {
        Ok(whole("n", self.n, 1..=MAX_CHOICES)?.unwrap_or(1))
    }

    /// How tokens are drawn.
    pub(super) fn sampling(&self) -> Result<Sampling, Failure> {
        let greedy = self.nvext.greed_sampling == Some(true);
        let top_k = whole("top_k", self.top_k.or(self.nvext.top_k), -1..=i64::from(u32::MAX))?;
        let penalty = self.repetition_penalty.or(self.nvext.repetition_penalty);
        let repetition_penalty = number("repetition_penalty", penalty, 0.0..=10.0, 1.0)?;
        if repetition_penalty == 0.0 {
            return Err(invalid(
                "repetition_penalty",
                "'repetition_penalty' is 0; it must be over 0 and at most 10",
            ));
        }
        let temperature = number("temperature", self.temperature, 0.0..=2.0, 1.0)?;
        Ok(Sampling {
            temperature: if greedy { 0.0 } else { temperature },
            top_p: number("top_p", self.top_p, 0.0..=1.0, 1.0)?,
            top_k: top_k.unwrap_or(0),
            min_p: number("min_p", self.min_p, 0.0..=1.0, 0.0)?,
            repetition_penalty,
            presence_penalty: number("presence_penalty", self.presence_penalty, -2.0..=2.0, 0.0)?,
            frequency_penalty: number("frequency_penalty", self.frequency_penalty, -2.0..=2.0, 0.0)?,
            // Seeds may be negative: what counts is that the same stays the same.
            seed: self.seed.map(i64::cast_unsigned),
            logit_bias: biases(self.logit_bias.as_ref())?,
        })
    }

    /// When to stop.
    pub(super) fn limits(&self) -> Result<OutputLimits, Failure> {
        let max_tokens = match self.max_tokens {
            Some((name, value)) => whole(name, Some(value), 1..=i64::from(u32::MAX))?,
            None => None,
        };
        let min_tokens = whole("min_tokens", self.min_tokens, 0..=i64::from(u32::MAX))?.unwrap_or(0);
        if max_tokens.is_some_and(|max_tokens| min_tokens > max_tokens) {
            return Err(invalid(
                "min_tokens",
                format!("'min_tokens' is {min_tokens}; it must not be over the most tokens of an answer"),
            ));
        }
        Ok(OutputLimits {
            max_tokens,
            min_tokens,
            ignore_eos: self.ignore_eos.or(self.nvext.ignore_eos).unwrap_or(false),
            stop: stops(self.stop.as_ref())?,
        })
    }

    /// Whether somebody reads along, and whether they want to know what it took.
    pub(super) fn stream(&self) -> Result<(bool, bool), Failure> {
        let stream = self.stream == Some(true);
        match self.stream_options {
            Some(_) if !stream => Err(invalid(
                "stream_options",
                "'stream_options' is only allowed when 'stream' is true",
            )),
            Some(options) => Ok((stream, options.include_usage == Some(true))),
            None => Ok((stream, false)),
        }
    }

    /// What the answer has to conform to, and by which field.
    pub(super) fn constraint(&mut self) -> Result<Option<(Constraint, String)>, Failure> {
        let (guided, nvext) = (std::mem::take(&mut self.guided), std::mem::take(&mut self.nvext));
        let mut found: Option<(&str, Constraint)> = None;
        let mut add = |name: &'static str, constraint: Option<Constraint>| match (&found, constraint) {
            (_, None) => Ok(()),
            (None, Some(constraint)) => {
                found = Some((name, constraint));
                Ok(())
            }
            (Some((first, _)), Some(_)) => Err(invalid(
                name,
                format!("'{name}' and '{first}' cannot be met at once; leave one out"),
            )),
        };
        add("response_format", response_format(guided.response_format)?)?;
        let json = guided.json.or(nvext.guided_json);
        add("guided_json", json.map(json_schema).transpose()?)?;
        let regex = guided.regex.or(nvext.guided_regex);
        add("guided_regex", regex.map(Constraint::Regex))?;
        let choice = guided.choice.or(nvext.guided_choice);
        add("guided_choice", choice.map(choice_of).transpose()?)?;
        let grammar = guided.grammar.or(nvext.guided_grammar);
        add("guided_grammar", grammar.map(Constraint::Grammar))?;
        Ok(found.map(|(name, constraint)| (constraint, name.to_owned())))
    }
}

/// The plan of a task.
pub(super) fn plan(task: GenerateTask, card: &ModelCard, tenant: &str) -> Plan {
    Plan {
        wanted: Wanted::Text(task.all_choices()),
        key: cache_key(tenant, card, &task),
        task: Task::Generate(Box::new(task)),
    }
}

/// Only an answer that would be the same again has a key: nobody wants to hear the same joke twice.
fn cache_key(tenant: &str, card: &ModelCard, task: &GenerateTask) -> Option<schemas::cache::CacheKey> {
    if task.stream || !task.is_deterministic() {
        return None;
    }
    // The message itself: whatever is added to the task one day changes the key too.
    let task = wire::encode(task).ok()?;
    let mut key = KeyParts::new("generate/1", tenant, card);
    key.part(&task);
    Some(key.finish(tenant))
}

/// A number within its range.
fn number(name: &str, value: Option<f64>, range: RangeInclusive<f64>, default: f32) -> Result<f32, Failure> {
    match value {
        None => Ok(default),
        // The digits beyond those of f32 mean nothing here.
        Some(value) if range.contains(&value) => Ok(value as f32),
        Some(value) => Err(invalid(
            name,
            format!(
                "'{name}' is {value}; it must be from {} to {}",
                range.start(),
                range.end()
            ),
        )),
    }
}

/// A whole number within its range; negative ones count as 0.
pub(super) fn whole(name: &str, value: Option<i64>, range: RangeInclusive<i64>) -> Result<Option<u32>, Failure> {
    match value {
        None => Ok(None),
        Some(value) if range.contains(&value) => Ok(Some(u32::try_from(value.max(0)).unwrap_or(u32::MAX))),
        Some(value) => Err(invalid(
            name,
            format!(
                "'{name}' is {value}; it must be from {} to {}",
                range.start(),
                range.end()
            ),
        )),
    }
}

fn biases(biases: Option<&BTreeMap<String, f64>>) -> Result<Vec<TokenBias>, Failure> {
    let Some(biases) = biases else {
        return Ok(Vec::new());
    };
    if biases.len() > MAX_BIASES {
        let message = format!(
            "'logit_bias' has {} tokens; at most {MAX_BIASES} are taken",
            biases.len()
        );
        return Err(invalid("logit_bias", message));
    }
    let one = |(token, bias): (&String, &f64)| {
        let shown: String = token.chars().take(32).collect();
        let field = format!("logit_bias.{shown}");
        let token = token
            .parse()
            .map_err(|_| invalid(&field, format!("'{shown}' in 'logit_bias' is no token id")))?;
        let bias = number(&field, Some(*bias), -100.0..=100.0, 0.0)?;
        Ok(TokenBias { token, bias })
    };
    biases.iter().map(one).collect()
}

fn stops(stop: Option<&OneOrMany>) -> Result<Vec<String>, Failure> {
    let stops = match stop {
        None => return Ok(Vec::new()),
        Some(OneOrMany::One(one)) => std::slice::from_ref(one),
        Some(OneOrMany::Many(many)) => many,
    };
    if stops.len() > MAX_STOPS {
        let message = format!("'stop' has {} texts; at most {MAX_STOPS} are taken", stops.len());
        return Err(invalid("stop", message));
    }
    if let Some(index) = stops
        .iter()
        .position(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES)
    {
        let message = format!("'stop[{index}]' must have 1 to {MAX_STOP_BYTES} bytes");
        return Err(invalid(&format!("stop[{index}]"), message));
    }
    Ok(stops.to_vec())
}

fn response_format(format: Option<ResponseFormat>) -> Result<Option<Constraint>, Failure> {
    let Some(format) = format else {
        return Ok(None);
    };
    match format.kind {
        ResponseFormatKind::Text => Ok(None),
        ResponseFormatKind::JsonObject => Ok(Some(Constraint::JsonObject)),
        ResponseFormatKind::JsonSchema => match format.json_schema.and_then(|named| named.schema) {
            Some(schema) => Ok(Some(Constraint::JsonSchema(schema.to_string()))),
            None => Err(invalid(
                "response_format.json_schema",
                "'response_format' of type 'json_schema' needs 'json_schema' with a 'schema'",
            )),
        },
    }
}

/// A schema as an object, or as its text.
fn json_schema(schema: Value) -> Result<Constraint, Failure> {
    let text = match schema {
        Value::String(text) if serde_json::from_str::<Value>(&text).is_ok_and(|value| value.is_object()) => text,
        Value::Object(_) => schema.to_string(),
        _ => {
            return Err(invalid(
                "guided_json",
                "'guided_json' must be a JSON Schema: an object, or the text of one",
            ));
        }
    };
    Ok(Constraint::JsonSchema(text))
}

fn choice_of(texts: Vec<String>) -> Result<Constraint, Failure> {
    if texts.is_empty() || texts.len() > MAX_GUIDED_CHOICES || texts.iter().any(String::is_empty) {
        let message = format!("'guided_choice' must have 1 to {MAX_GUIDED_CHOICES} texts, none of them empty");
        return Err(invalid("guided_choice", message));
    }
    Ok(Constraint::Choice(texts))
}
