//! From chat messages to a prompt; input: the template of a model directory and a [`ChatRequest`], output: the text that the model was trained on.
//!
//! Templates are written for Jinja2 as the transformers library sets it up, so this does the same: blocks are trimmed, there are loop controls,
//! Python's methods of strings and dictionaries, `raise_exception`, `strftime_now` and a `tojson` that writes like Python's `json.dumps`.
//! A template comes with the model and what it is given comes from a client, so the steps of a rendering are limited.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State};
use serde::{Deserialize, Serialize};

use super::strftime::strftime;
use super::tool_calls::ToolFormat;
use crate::error::LoadError;
use crate::model_files::read_optional;

/// Steps of the template engine for one prompt: some hundred for each message, so this is thousands of messages and well under a second.
const MAX_STEPS: u64 = 10_000_000;
/// The template of a model that has only one.
const DEFAULT: &str = "default";
/// The template to prefer when there are tools.
const TOOL_USE: &str = "tool_use";

/// A prompt could not be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The model directory has no chat template.
    #[error("the model has no chat template")]
    Missing,
    /// The template refused the messages, in its own words.
    #[error("the model's chat template refuses the messages: {reason}")]
    Refused {
        /// What it said.
        reason: String,
    },
    /// The template failed, for instance because a message lacks a field that it uses.
    #[error("the model's chat template cannot render the messages: {reason}")]
    Render {
        /// What the template engine said.
        reason: String,
    },
}

/// Messages with what else a template may use.
#[derive(Debug, Clone)]
pub struct ChatRequest {
    messages: Value,
    tools: Option<Value>,
    arguments: BTreeMap<String, Value>,
    generation_prompt: bool,
    now_unix_s: u64,
}

impl ChatRequest {
    /// Messages in order, each at least with `role` and `content`; anything that serializes to a list of maps will do.
    ///
    /// `now_unix_s` is what a template that prints the date prints.
    pub fn new(messages: &impl Serialize, now_unix_s: u64) -> Self {
        Self {
            messages: Value::from(Serde(messages)),
            tools: None,
            arguments: BTreeMap::new(),
            generation_prompt: true,
            now_unix_s,
        }
    }

    /// Adds the tools the model may call, a list in OpenAI's form.
    #[must_use]
    pub fn with_tools(mut self, tools: &impl Serialize) -> Self {
        self.tools = Some(Value::from(Serde(tools)));
        self
    }

    /// Adds a variable of the template, such as `enable_thinking`; the fixed ones (`messages`, `tools`, …) cannot be replaced.
    #[must_use]
    pub fn with_argument(mut self, name: &str, value: &impl Serialize) -> Self {
        self.arguments.insert(name.to_owned(), Value::from(Serde(value)));
        self
    }

    /// Whether the prompt ends with the head of an answer; it does unless told otherwise.
    #[must_use]
    pub fn with_generation_prompt(mut self, wanted: bool) -> Self {
        self.generation_prompt = wanted;
        self
    }
}

/// The parts of `tokenizer_config.json` that matter here.
#[derive(Debug, Default, Deserialize)]
struct TokenizerConfig {
    chat_template: Option<TemplateField>,
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TemplateField {
    One(String),
    Several(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// The compiled templates of a model and its special tokens by name.
pub(crate) struct ChatTemplates {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, Value>,
    tool_format: Option<ToolFormat>,
}

impl std::fmt::Debug for ChatTemplates {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ChatTemplates")
            .field("special_tokens", &self.special_tokens)
            .finish_non_exhaustive()
    }
}

impl ChatTemplates {
    /// Reads `chat_template.jinja`, or else the field of `tokenizer_config.json`; there may be neither.
    pub(crate) fn load(directory: &Path) -> Result<Self, LoadError> {
        let config_file = directory.join("tokenizer_config.json");
        let config: TokenizerConfig = read_optional(&config_file)?.unwrap_or_default();
        let file = directory.join("chat_template.jinja");
        let (file, templates) = match std::fs::read_to_string(&file) {
            Ok(template) => (file, vec![(DEFAULT.to_owned(), template)]),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                (config_file, templates_of(config.chat_template))
            }
            Err(source) => return Err(LoadError::Read { file, source }),
        };
        let format_of = |wanted: &str| {
            let named = templates.iter().find(|(name, _)| name == wanted);
            named.and_then(|(_, template)| ToolFormat::of_template(template))
        };
        Ok(Self {
            tool_format: format_of(TOOL_USE).or_else(|| format_of(DEFAULT)),
            environment: compile(&file, templates)?,
            special_tokens: special_tokens(&config.rest),
        })
    }

    /// How calls of functions are written; `None` when the model knows none.
    pub(crate) fn tool_format(&self) -> Option<ToolFormat> {
        self.tool_format
    }

    /// The prompt of a conversation.
    pub(crate) fn render(&self, request: &ChatRequest) -> Result<String, TemplateError> {
        let preferred = request.tools.as_ref().map_or(DEFAULT, |_| TOOL_USE);
        let template = self
            .environment
            .get_template(preferred)
            .or_else(|_| self.environment.get_template(DEFAULT))
            .map_err(|_| TemplateError::Missing)?;
        let mut variables = self.special_tokens.clone();
        variables.extend(request.arguments.clone());
        let now = request.now_unix_s;
        let strftime_now = move |format: String| {
            strftime(&format, now).map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
        };
        variables.extend(
            [
                ("messages", request.messages.clone()),
                // Templates ask whether there are tools with `is not none` too, so it is none rather than undefined.
                ("tools", request.tools.clone().unwrap_or_else(|| Value::from(()))),
                ("documents", Value::from(())),
                ("add_generation_prompt", Value::from(request.generation_prompt)),
                ("strftime_now", Value::from_function(strftime_now)),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        template.render(Value::from_pairs(variables)).map_err(explain)
    }
}

fn templates_of(field: Option<TemplateField>) -> Vec<(String, String)> {
    match field {
        None => Vec::new(),
        Some(TemplateField::One(template)) => vec![(DEFAULT.to_owned(), template)],
        Some(TemplateField::Several(templates)) => {
            let pair = |named: NamedTemplate| (named.name, named.template);
            templates.into_iter().map(pair).collect()
        }
    }
}

/// An environment that behaves like the one of the transformers library.
fn compile(file: &Path, templates: Vec<(String, String)>) -> Result<Environment<'static>, LoadError> {
    let damaged = |error: Error| LoadError::Format {
        file: PathBuf::from(file),
        reason: format!("chat template: {error}"),
    };
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    let mut environment = Environment::new();
    environment.set_syntax(syntax.map_err(damaged)?);
    environment.set_fuel(Some(MAX_STEPS));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(write_like_python);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", raise_exception);
    for (name, template) in templates {
        let added = environment.add_template_owned(name, without_generation_tags(&template));
        added.map_err(damaged)?;
    }
    Ok(environment)
}

/// `{% generation %}` marks an answer for training and prints nothing; it becomes a condition that always holds.
fn without_generation_tags(template: &str) -> String {
    let mut result = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        let Some(end) = tag.find("%}") else { break };
        result.push_str(before);
        let (tag, after) = tag.split_at(end + 2);
        let inner = tag[2..end].trim_matches(['-', '+']);
        match inner.trim() {
            word @ ("generation" | "endgeneration") => {
                let replacement = if word == "generation" { "if true" } else { "endif" };
                result.push_str(&tag.replacen(word, replacement, 1));
            }
            _ => result.push_str(tag),
        }
        rest = after;
    }
    result + rest
}

/// Names like `bos_token` with their text; newer files write a text, older ones a description of the token.
fn special_tokens(fields: &serde_json::Map<String, serde_json::Value>) -> BTreeMap<String, Value> {
    const NAMES: [&str; 7] = [
        "bos_token",
        "eos_token",
        "unk_token",
        "sep_token",
        "pad_token",
        "cls_token",
        "mask_token",
    ];
    let text = |name: &str| {
        let field = fields.get(name)?;
        field.as_str().or_else(|| field.get("content")?.as_str())
    };
    let found = NAMES
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), Value::from(text(name)?))));
    found.collect()
}

/// A template gave up on purpose; told apart from a failure by this source of the error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, "raise_exception was called");
    Err(error.with_source(Raised(message)))
}

fn explain(error: Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(present) = cause {
        if let Some(Raised(reason)) = present.downcast_ref() {
            return TemplateError::Refused { reason: reason.clone() };
        }
        cause = present.source();
    }
    TemplateError::Render {
        reason: error.to_string(),
    }
}

/// Python writes `None`, `True` and `False`.
fn write_like_python(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let text = match value.kind() {
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        ValueKind::None => "None",
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(text)
        .map_err(|_| Error::new(ErrorKind::WriteFailure, "the prompt cannot be written"))
}

/// `json.dumps(value, ensure_ascii=False, indent=…)`: a space behind commas and colons, nothing escaped for HTML.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Always written as they are, whatever the template says: prompts are UTF-8.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut json = Vec::new();
    let written = match indent {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, Spaced)),
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, pretty))
        }
    };
    let failed = |reason: String| Error::new(ErrorKind::BadSerialization, reason);
    written.map_err(|error| failed(error.to_string()))?;
    let json = String::from_utf8(json).map_err(|error| failed(error.to_string()))?;
    Ok(Value::from(json))
}

/// The separators of Python's `json.dumps`.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// 2026-07-03 12:00 UTC.
    const NOW_UNIX_S: u64 = 1_783_080_000;

    /// Its fields reach the template in this order.
    #[derive(Serialize)]
    struct Message {
        role: &'static str,
        content: &'static str,
    }

    fn templates(template: &str) -> ChatTemplates {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("chat_template.jinja"), template).unwrap();
        let config = json!({ "bos_token": { "content": "<s>" }, "eos_token": "</s>", "pad_token": null });
        std::fs::write(directory.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        ChatTemplates::load(directory.path()).unwrap()
    }

    fn request() -> ChatRequest {
        let message = |role, content| Message { role, content };
        ChatRequest::new(&[message("user", "Hi <b>"), message("assistant", "Hello")], NOW_UNIX_S)
    }

    fn render(template: &str) -> Result<String, TemplateError> {
        templates(template).render(&request())
    }

    #[test]
    fn blocks_are_trimmed_and_special_tokens_known() {
        let template = "{{ bos_token }}\n  {% for message in messages %}\n<{{ message['role'] }}>{{ message.content }}\n  {% endfor %}\n\
            {%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}{{ pad_token }}\n";
        assert_eq!(
            render(template).unwrap(),
            "<s>\n<user>Hi <b>\n<assistant>Hello\n<assistant>"
        );
        let off = templates(template)
            .render(&request().with_generation_prompt(false))
            .unwrap();
        assert!(off.ends_with("Hello\n"), "{off}");
    }

    #[test]
    fn python_helpers_are_there() {
        for (template, expected) in [
            (
                "{{ ' a '.strip() }}{{ 'a,b'.split(',')[-1] }}{{ 'abc'.startswith('ab') }}",
                "abTrue",
            ),
            (
                "{% for m in messages[::-1] %}{{ loop.index0 }}{{ m.role }}{% break %}{% endfor %}",
                "0assistant",
            ),
            (
                "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ loop.previtem.role }}{% endfor %}",
                "user",
            ),
            (
                "{% set ns = namespace(x=1) %}{% for m in messages %}{% set ns.x = ns.x + 1 %}{% endfor %}{{ ns.x }}",
                "3",
            ),
            (
                "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}",
                "role=user;content=Hi <b>;",
            ),
            (
                "{{ strftime_now('%d %b %Y') }}{{ none }}{{ true }}",
                "03 Jul 2026NoneTrue",
            ),
            (
                "{% if tools is none and not tools %}no{% endif %}{{ undefined_thing }}",
                "no",
            ),
            (
                "{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m('a') }}{{ messages | length }}",
                "[a]2",
            ),
            (
                "{% generation %}a{% endgeneration %}{%- generation -%} b {%- endgeneration -%} c",
                "abc",
            ),
        ] {
            assert_eq!(render(template).unwrap(), expected, "{template}");
        }
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let tools =
            json!([{ "type": "function", "function": { "name": "f", "description": "<é & 'x'>", "empty": [] } }]);
        let rendered = |template: &str| templates(template).render(&request().with_tools(&tools)).unwrap();
        let line = rendered("{{ tools[0].function | tojson }}");
        for part in ["\"name\": \"f\"", "\"<é & 'x'>\", ", "\"empty\": []"] {
            assert!(line.contains(part), "{line}");
        }
        let indented = rendered("{{ {'a': [1, 2.5]} | tojson(indent=2, ensure_ascii=False) }}");
        assert_eq!(indented, "{\n  \"a\": [\n    1,\n    2.5\n  ]\n}");
    }

    #[test]
    fn a_template_with_tools_and_reasoning_gives_what_jinja2_gives() {
        // Both files are in tests/fixtures/chat: the template, with the constructs of Qwen3's, and what Jinja2 3.1 made of these messages.
        let messages = json!([
            { "role": "user", "content": "Weather?" },
            { "role": "assistant", "content": "<think>\nold\n</think>\n\nLet me look.", "tool_calls": [
                { "function": { "name": "w", "arguments": { "city": "Köln" } } }, { "name": "v", "arguments": "{}" }
            ] },
            { "role": "tool", "content": "12" },
            { "role": "tool", "content": "13" },
            { "role": "assistant", "content": "<think>\nhm\n</think>\n\nIt is 12." }
        ]);
        let request = ChatRequest::new(&messages, NOW_UNIX_S)
            .with_tools(&json!([{ "function": { "name": "w" } }]))
            .with_argument("enable_thinking", &false);
        let rendered = templates(include_str!("../../tests/fixtures/chat/tools.jinja")).render(&request);
        assert_eq!(rendered.unwrap(), include_str!("../../tests/fixtures/chat/tools.txt"));
    }

    #[test]
    fn arguments_reach_the_template_but_do_not_replace_its_own() {
        let request = request()
            .with_argument("enable_thinking", &false)
            .with_argument("messages", &1);
        let rendered = templates("{{ enable_thinking }} {{ messages | length }}").render(&request);
        assert_eq!(rendered.unwrap(), "False 2");
    }

    #[test]
    fn failures_are_told_apart() {
        let refused = render("{{ raise_exception('roles must alternate') }}").unwrap_err();
        let reason = "roles must alternate".to_owned();
        assert_eq!(refused, TemplateError::Refused { reason });
        for template in [
            "{{ messages[0].a.b }}",
            "{{ strftime_now('%Q') }}",
            "{% for i in range(100000) %}{% for j in range(100000) %}{{ j }}{% endfor %}{% endfor %}",
        ] {
            let failed = render(template).unwrap_err();
            assert!(matches!(failed, TemplateError::Render { .. }), "{failed}");
        }
        let none = ChatTemplates::load(tempfile::tempdir().unwrap().path()).unwrap();
        assert_eq!(none.render(&request()), Err(TemplateError::Missing));
    }

    #[test]
    fn the_template_for_tools_is_chosen_when_there_are_some() {
        let directory = tempfile::tempdir().unwrap();
        let list = json!({ "chat_template": [
            { "name": "default", "template": "plain" }, { "name": "tool_use", "template": "tools" }
        ] });
        std::fs::write(directory.path().join("tokenizer_config.json"), list.to_string()).unwrap();
        let templates = ChatTemplates::load(directory.path()).unwrap();
        assert_eq!(templates.render(&request()).unwrap(), "plain");
        assert_eq!(templates.render(&request().with_tools(&json!([1]))).unwrap(), "tools");
        std::fs::write(directory.path().join("chat_template.jinja"), "{% if %}").unwrap();
        let broken = ChatTemplates::load(directory.path()).unwrap_err();
        assert!(
            matches!(&broken, LoadError::Format { reason, .. } if reason.contains("chat template")),
            "{broken}"
        );
    }
}
