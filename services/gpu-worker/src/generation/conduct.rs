//! What an answer is bound to. Input: a request's task, the model. Output: the constraint of its text and the reader of its
//! calls, the same for all choices; or a failure that names the field. CPU bound: a new grammar is compiled here.

use engine::generate::{Constraint, Grammar, TextModel, ToolReader, ToolSpec, ToolStyle};
use schemas::error::{ErrorCode, Failure};
use schemas::generate::{ChatPrompt, Constraint as Wanted, GenerateTask, Prompt, ToolChoice};

use super::prepare::invalid;

/// What binds every choice of a request.
#[derive(Debug, Default)]
pub(super) struct Conduct {
    /// What the text has to conform to.
    pub(super) constraint: Option<Constraint>,
    /// Functions that are called are read out of the text.
    pub(super) calls: Option<ToolReader>,
}

/// What a task binds its answers to.
///
/// # Errors
/// A failure that names the field.
pub(super) fn conduct(model: &TextModel, task: &GenerateTask) -> Result<Conduct, Failure> {
    let mut conduct = Conduct::default();
    if let Prompt::Chat(chat) = &task.prompt
        && !chat.tools.is_empty()
    {
        let style = model.tool_style().ok_or_else(no_tools)?;
        conduct.calls = Some(style.reader(chat.parallel_tool_calls));
        if let Some(grammar) = forced(style, chat) {
            // Who has to call says nothing else, whatever the form of what is said otherwise.
            conduct.constraint = Some(constraint(model, &grammar, "tools")?);
            return Ok(conduct);
        }
    }
    if let Some(wanted) = &task.constraint {
        let field = task.constraint_field.as_deref().unwrap_or("constraint");
        conduct.constraint = Some(constraint(model, &grammar(wanted), field)?);
    }
    Ok(conduct)
}

fn constraint(model: &TextModel, grammar: &Grammar, field: &str) -> Result<Constraint, Failure> {
    model
        .constraint(grammar)
        .map_err(|error| invalid(field, format!("'{field}' cannot be met: {error}")))
}

fn no_tools() -> Failure {
    let message = "this model cannot call functions: its chat template knows no tools; leave out 'tools'";
    Failure::new(ErrorCode::UnsupportedWork, message).param("tools")
}

/// The grammar of an answer that has to call a function; `None` when the model decides.
fn forced(style: &ToolStyle, chat: &ChatPrompt) -> Option<Grammar> {
    let specs = |wanted: Option<&str>| -> Vec<ToolSpec<'_>> {
        let tools = chat.tools.iter().map(|tool| &tool.function);
        let tools = tools.filter(|function| wanted.is_none_or(|wanted| wanted == function.name));
        tools
            .map(|function| ToolSpec {
                name: &function.name,
                parameters: function.parameters.as_ref(),
            })
            .collect()
    };
    match &chat.tool_choice {
        ToolChoice::Auto => None,
        ToolChoice::Required => Some(style.grammar(&specs(None), chat.parallel_tool_calls)),
        // A function by name is called once.
        ToolChoice::Function(name) => Some(style.grammar(&specs(Some(name)), false)),
    }
}

fn grammar(wanted: &Wanted) -> Grammar {
    match wanted {
        Wanted::JsonObject => Grammar::JsonObject,
        Wanted::JsonSchema(schema) => Grammar::JsonSchema(schema.clone()),
        Wanted::Regex(expression) => Grammar::Regex(expression.clone()),
        Wanted::Choice(texts) => Grammar::Choice(texts.clone()),
        Wanted::Grammar(text) => Grammar::Lark(text.clone()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    fn model() -> TextModel {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano-translator");
        TextModel::load(&folder).unwrap()
    }

    fn task(json: Value) -> GenerateTask {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn what_cannot_be_met_names_the_field() {
        let model = model();
        let tools = json!([{ "type": "function", "function": { "name": "f" } }]);
        let cases = [
            (
                json!({ "prompt": { "text": "a" }, "constraint": { "regex": "(" }, "constraint_field": "guided_regex" }),
                "guided_regex",
            ),
            (
                json!({ "prompt": { "text": "a" }, "constraint": { "json_schema": "{\"type\":\"x\"}" } }),
                "constraint",
            ),
            (
                json!({ "prompt": { "chat": { "messages": [{ "role": "user", "content": "a" }], "tools": tools } } }),
                "tools",
            ),
        ];
        for (wanted, field) in cases {
            let failure = conduct(&model, &task(wanted)).unwrap_err();
            assert_eq!(failure.param.as_deref(), Some(field), "{failure}");
        }
        let object = task(json!({ "prompt": { "text": "a" }, "constraint": "json_object" }));
        assert!(conduct(&model, &object).unwrap().constraint.is_some());
    }
}
