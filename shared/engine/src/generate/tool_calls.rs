//! Calls of functions in generated text; input: text as it grows, output: what is said besides, and each call once it is whole.
//!
//! Every family writes calls in its own way, which its chat template shows. The same knowledge gives the grammar for an answer that has to call.

use serde_json::{Map, Value, json};

use super::constraint::{Grammar, quoted, with_whitespace};

/// Whitespace in calls whose grammar is ours: a space, as templates show them.
const WHITESPACE: &str = r"\x20";
/// Most calls of one answer whose grammar is ours: an end for a model that would go on calling.
const MAX_CALLS: usize = 16;

/// How a family writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen 2.5 and 3.
    Hermes,
    /// `{"name": …, "parameters": …}` and nothing else: Llama 3.1 and later.
    Llama,
    /// `[TOOL_CALLS] [{"name": …, "arguments": …}, …]`: Mistral.
    MistralList,
    /// `[TOOL_CALLS]name[ARGS]{…}`: later models of Mistral.
    MistralNamed,
}

const CALL_START: &str = "<tool_call>";
const CALL_END: &str = "</tool_call>";
const MISTRAL_START: &str = "[TOOL_CALLS]";
const MISTRAL_ARGUMENTS: &str = "[ARGS]";
const PYTHON_TAG: &str = "<|python_tag|>";

impl ToolFormat {
    /// Read off a chat template; `None` when it knows no functions, or writes calls in a way that is not known here.
    pub(crate) fn of_template(template: &str) -> Option<Self> {
        if !template.contains("tools") {
            return None;
        }
        if template.contains(MISTRAL_START) {
            let named = template.contains(MISTRAL_ARGUMENTS);
            return Some(if named { Self::MistralNamed } else { Self::MistralList });
        }
        if template.contains(CALL_START) {
            return Some(Self::Hermes);
        }
        let llama = template.contains(PYTHON_TAG) || template.contains("\"parameters\": ");
        llama.then_some(Self::Llama)
    }

    /// Texts around calls that are single tokens in many vocabularies.
    pub(crate) fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &[CALL_START, CALL_END],
            Self::Llama => &[PYTHON_TAG],
            Self::MistralList => &[MISTRAL_START],
            Self::MistralNamed => &[MISTRAL_START, MISTRAL_ARGUMENTS],
        }
    }

    /// Whether ids of calls have to be nine letters and digits, as the template of the family demands.
    pub fn has_short_ids(self) -> bool {
        matches!(self, Self::MistralList | Self::MistralNamed)
    }
}

/// A function that may be called.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ToolSpec<'a> {
    /// Its name.
    pub name: &'a str,
    /// JSON Schema of its parameters.
    pub parameters: Option<&'a Value>,
}

/// How a model calls functions: the format of its template, and which of the marks are special tokens of its vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolStyle {
    format: ToolFormat,
    special: Vec<(&'static str, u32)>,
}

impl ToolStyle {
    pub(crate) fn new(format: ToolFormat, special_id: impl Fn(&str) -> Option<u32>) -> Self {
        let special = format
            .marks()
            .iter()
            .filter_map(|mark| Some((*mark, special_id(mark)?)));
        Self {
            format,
            special: special.collect(),
        }
    }

    /// The format.
    pub fn format(&self) -> ToolFormat {
        self.format
    }

    /// Special tokens that are part of calls and therefore of the text that is read.
    pub(crate) fn kept_tokens(&self) -> Vec<u32> {
        self.special.iter().map(|(_, id)| *id).collect()
    }

    /// A mark in a grammar.
    fn mark(&self, mark: &str) -> String {
        let special = self.special.iter().find(|(known, _)| *known == mark);
        special.map_or_else(|| quoted(mark), |(_, id)| format!("<[{id}]>"))
    }

    /// The grammar of an answer that calls at least one of these functions, and says nothing else; `several` allows more than one call.
    pub fn grammar(&self, tools: &[ToolSpec<'_>], several: bool) -> Grammar {
        let most = if several { MAX_CALLS - 1 } else { 0 };
        let more = |separator: &str| match most {
            0 => String::new(),
            most => format!(" ({separator} call){{0,{most}}}"),
        };
        let objects = |field: &str| {
            let bodies = tools.iter().map(|tool| format!("%json {}", call_schema(*tool, field)));
            bodies.collect::<Vec<_>>().join(" | ")
        };
        let (start, call) = match self.format {
            ToolFormat::Hermes => {
                let (before, after) = (self.mark(CALL_START), self.mark(CALL_END));
                let call = format!("{before} \"\\n\" body \"\\n\" {after}\nbody: {}", objects("arguments"));
                (format!("call{}", more("\"\\n\"")), call)
            }
            // The template of the family refuses more than one.
            ToolFormat::Llama => ("call".to_owned(), objects("parameters")),
            ToolFormat::MistralList => {
                let start = format!("{} \" \"? \"[\" call{} \"]\"", self.mark(MISTRAL_START), more("\", \""));
                (start, objects("arguments"))
            }
            ToolFormat::MistralNamed => {
                let (before, between) = (self.mark(MISTRAL_START), self.mark(MISTRAL_ARGUMENTS));
                let one = |tool: &ToolSpec<'_>| {
                    let schema = with_whitespace(parameters(*tool), WHITESPACE);
                    format!("{before} {} {between} %json {schema}", quoted(tool.name))
                };
                let calls = tools.iter().map(one).collect::<Vec<_>>().join(" | ");
                (format!("call{}", more("")), calls)
            }
        };
        Grammar::Lark(format!("start: {start}\ncall: {call}\n"))
    }

    /// A reader of one answer; `several`: more than one call counts.
    pub fn reader(&self, several: bool) -> ToolReader {
        ToolReader {
            format: self.format,
            several,
            held: String::new(),
            calls: 0,
            inside: false,
            plain: false,
        }
    }
}

fn parameters(tool: ToolSpec<'_>) -> Value {
    match tool.parameters {
        Some(schema @ Value::Object(_)) => schema.clone(),
        _ => json!({ "type": "object" }),
    }
}

/// The schema of the object that calls a function. References of the parameters' schema begin at its root, so its definitions move there.
fn call_schema(tool: ToolSpec<'_>, field: &str) -> Value {
    let mut arguments = parameters(tool);
    let mut schema = Map::new();
    for name in ["$defs", "definitions"] {
        if let Some(definitions) = arguments.as_object_mut().and_then(|fields| fields.remove(name)) {
            schema.insert(name.to_owned(), definitions);
        }
    }
    schema.insert("type".to_owned(), json!("object"));
    schema.insert(
        "properties".to_owned(),
        json!({ "name": { "const": tool.name }, field: arguments }),
    );
    schema.insert("required".to_owned(), json!(["name", field]));
    schema.insert("additionalProperties".to_owned(), json!(false));
    with_whitespace(Value::Object(schema), WHITESPACE)
}

/// A function that was called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// Its name.
    pub name: String,
    /// The arguments as JSON text.
    pub arguments: String,
}

/// What a piece of text brought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Read {
    /// What is said besides calls.
    pub text: String,
    /// Calls that are whole now.
    pub calls: Vec<ToolCall>,
    /// Nothing that follows counts.
    pub is_over: bool,
}

/// Reads one answer. What may be the beginning of a call is held back until that is known; what turns out not to be one is text.
#[derive(Debug, Clone)]
pub struct ToolReader {
    format: ToolFormat,
    several: bool,
    held: String,
    calls: usize,
    /// A call has begun and its end is looked for.
    inside: bool,
    /// No call can follow any more.
    plain: bool,
}

impl ToolReader {
    /// Takes the next piece.
    pub fn push(&mut self, piece: &str) -> Read {
        let mut read = Read::default();
        if self.is_over() {
            read.is_over = true;
            return read;
        }
        self.held.push_str(piece);
        if self.plain {
            read.text = std::mem::take(&mut self.held);
            return read;
        }
        match self.format {
            ToolFormat::Hermes => self.read_hermes(&mut read),
            ToolFormat::Llama => self.read_llama(&mut read),
            ToolFormat::MistralList | ToolFormat::MistralNamed => self.read_mistral(&mut read),
        }
        read.is_over = self.is_over();
        read
    }

    /// The answer is over: what is held is a call after all, or text.
    pub fn finish(&mut self) -> Read {
        let mut read = Read::default();
        if self.is_over() {
            return read;
        }
        let held = std::mem::take(&mut self.held);
        let calls = match self.format {
            ToolFormat::Hermes => None,
            _ if self.plain => None,
            ToolFormat::Llama => llama_calls(&held),
            ToolFormat::MistralList | ToolFormat::MistralNamed => self.inside.then(|| mistral_calls(&held)).flatten(),
        };
        match calls {
            Some(calls) => read.calls = self.take(calls),
            // Space behind a call is no speech.
            None if self.calls > 0 && held.trim().is_empty() => {}
            None => read.text = held,
        }
        read
    }

    /// Whether something was called.
    pub fn has_called(&self) -> bool {
        self.calls > 0
    }

    fn is_over(&self) -> bool {
        !self.several && self.calls > 0
    }

    /// Counts calls; gives those that are wanted.
    fn take(&mut self, mut calls: Vec<ToolCall>) -> Vec<ToolCall> {
        if !self.several {
            calls.truncate(1 - self.calls.min(1));
        }
        self.calls += calls.len();
        calls
    }

    fn read_hermes(&mut self, read: &mut Read) {
        while !self.is_over() {
            if !self.inside {
                let Some(start) = self.held.find(CALL_START) else {
                    self.show(CALL_START, read);
                    return;
                };
                let before: String = self.held.drain(..start).collect();
                self.say(before.trim_end(), read);
                self.inside = true;
            }
            let Some((end, parsed)) = self.hermes_body() else {
                return;
            };
            let whole: String = self.held.drain(..end).collect();
            self.inside = false;
            match parsed.as_ref().and_then(call_of) {
                Some(call) => read.calls.extend(self.take(vec![call])),
                // Broken JSON is what the model said.
                None => read.text.push_str(&whole),
            }
        }
    }

    /// Where the call ends that was begun, and what is in it; `None` while it may go on: an end mark inside a string of the arguments is none.
    fn hermes_body(&self) -> Option<(usize, Option<Value>)> {
        let ends = self.held.match_indices(CALL_END);
        for (at, mark) in ends {
            match serde_json::from_str(&self.held[CALL_START.len()..at]) {
                Ok(value) => return Some((at + mark.len(), Some(value))),
                Err(error) if error.is_eof() => {}
                Err(_) => return Some((at + mark.len(), None)),
            }
        }
        None
    }

    /// A call is the whole answer, so the first character decides.
    fn read_llama(&mut self, read: &mut Read) {
        let text = self.held.trim_start();
        let may_call =
            text.is_empty() || text.starts_with('{') || PYTHON_TAG.starts_with(text) || text.starts_with(PYTHON_TAG);
        if !may_call {
            self.plain = true;
            read.text = std::mem::take(&mut self.held);
        }
    }

    fn read_mistral(&mut self, read: &mut Read) {
        if self.inside {
            return;
        }
        match self.held.find(MISTRAL_START) {
            Some(start) => {
                let before: String = self.held.drain(..start).collect();
                self.say(before.trim_end(), read);
                self.inside = true;
            }
            None => self.show(MISTRAL_START, read),
        }
    }

    fn say(&self, text: &str, read: &mut Read) {
        // Between two calls there is only space.
        if self.calls == 0 || !text.trim().is_empty() {
            read.text.push_str(text);
        }
    }

    /// Shows what cannot be the beginning of a mark, nor space before one.
    fn show(&mut self, mark: &str, read: &mut Read) {
        let longest = mark.len().saturating_sub(1).min(self.held.len());
        let partial = (1..=longest)
            .rev()
            .find(|&bytes| self.held.as_bytes().ends_with(&mark.as_bytes()[..bytes]))
            .unwrap_or(0);
        let shown = self.held[..self.held.len() - partial].trim_end().len();
        let said: String = self.held.drain(..shown).collect();
        self.say(&said, read);
    }
}

/// An object that names a function and its arguments.
fn call_of(value: &Value) -> Option<ToolCall> {
    let name = value.get("name")?.as_str()?.to_owned();
    let arguments = value.get("arguments").or_else(|| value.get("parameters"))?;
    let arguments = match arguments {
        // Some models write the text of an object.
        Value::String(text) if serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_object()) => text.clone(),
        Value::Object(_) => arguments.to_string(),
        _ => return None,
    };
    Some(ToolCall { name, arguments })
}

/// Objects one behind the other, with semicolons or space between.
fn llama_calls(text: &str) -> Option<Vec<ToolCall>> {
    let text = text.trim();
    let mut rest = text.strip_prefix(PYTHON_TAG).unwrap_or(text);
    let mut calls = Vec::new();
    while !rest.is_empty() {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        calls.push(call_of(&values.next()?.ok()?)?);
        rest = rest[values.byte_offset()..].trim_start_matches([';', ' ', '\n']);
    }
    (!calls.is_empty()).then_some(calls)
}

/// A list behind the mark, or names with arguments behind a mark each.
fn mistral_calls(text: &str) -> Option<Vec<ToolCall>> {
    let mut calls = Vec::new();
    for part in text.split(MISTRAL_START).map(str::trim).filter(|part| !part.is_empty()) {
        match part.split_once(MISTRAL_ARGUMENTS) {
            Some((name, arguments)) => {
                let arguments: Value = serde_json::from_str(arguments).ok()?;
                calls.push(call_of(&json!({ "name": name.trim(), "arguments": arguments }))?);
            }
            None => {
                let list: Vec<Value> = serde_json::from_str(part).ok()?;
                calls.extend(list.iter().map(call_of).collect::<Option<Vec<_>>>()?);
            }
        }
    }
    (!calls.is_empty()).then_some(calls)
}

#[cfg(test)]
mod tests;
