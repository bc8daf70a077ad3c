//! Plans of chat completions. Input: a parsed request, the model's card. Output: a generation task and how to write its
//! answer; or a failure that names the field. Pure.

use std::collections::BTreeMap;

use schemas::error::Failure;
use schemas::fleet::ModelCard;
use schemas::generate::{ChatPrompt, GenerateTask, Message, Prompt, Tool, ToolCall, ToolChoice, ToolFunction};
use schemas::http::{
    ChatContent, ChatMessage, ChatRequest, ChatRole, ChatTool, ChatToolCall, ChatToolChoice, ContentPart,
};
use serde_json::Value;

use super::generate::{self, Guided, Wishes, whole};
use super::{Plan, invalid};

/// Most messages of one conversation.
const MAX_MESSAGES: usize = 4_096;
/// Most functions that a model is told of (OpenAI's limit).
const MAX_TOOLS: usize = 128;
/// Longest name of a function (OpenAI's limit).
const MAX_NAME_BYTES: usize = 64;

/// How the answer to a conversation is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChatShape {
    /// In chunks, as it comes.
    pub stream: bool,
    /// The chunks say what it took.
    pub include_usage: bool,
    /// With log probabilities.
    pub logprobs: bool,
}

/// Plans a chat completion for a model.
///
/// # Errors
/// `invalid_field` naming the field.
pub fn chat(mut request: ChatRequest, card: &ModelCard, tenant: &str) -> Result<(Plan, ChatShape), Failure> {
    generate::check_model(card)?;
    if request.modalities.as_ref().is_some_and(|kinds| kinds != &["text"]) {
        return Err(invalid("modalities", "only [\"text\"] is supported as 'modalities'"));
    }
    let mut wishes = wishes(&mut request);
    let (stream, include_usage) = wishes.stream()?;
    let logprobs = logprobs(&request)?;
    let (sampling, limits) = (wishes.sampling()?, wishes.limits()?);
    let (constraint, constraint_field) = wishes.constraint()?.unzip();
    let task = GenerateTask {
        more_prompts: Vec::new(),
        choices: wishes.choices()?,
        sampling,
        limits,
        logprobs,
        echo: false,
        constraint,
        constraint_field,
        stream,
        resume: Vec::new(),
        attempts_before: 0,
        prompt: Prompt::Chat(prompt(request)?),
    };
    let shape = ChatShape {
        stream,
        include_usage,
        logprobs: logprobs.is_some(),
    };
    Ok((generate::plan(task, card, tenant), shape))
}

fn wishes(request: &mut ChatRequest) -> Wishes {
    let newer = request
        .max_completion_tokens
        .map(|value| ("max_completion_tokens", value));
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
        max_tokens: newer.or(request.max_tokens.map(|value| ("max_tokens", value))),
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

fn logprobs(request: &ChatRequest) -> Result<Option<u32>, Failure> {
    let wanted = request.logprobs == Some(true);
    let top = whole("top_logprobs", request.top_logprobs, 0..=20)?;
    match (wanted, top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, Some(top)) if top > 0 => Err(invalid("top_logprobs", "'top_logprobs' needs 'logprobs' to be true")),
        (false, _) => Ok(None),
    }
}

/// The conversation of a request, checked.
pub(super) fn prompt(request: ChatRequest) -> Result<ChatPrompt, Failure> {
    if request.messages.is_empty() {
        return Err(invalid(
            "messages",
            "'messages' is empty: at least one message is needed",
        ));
    }
    if request.messages.len() > MAX_MESSAGES {
        let message = format!(
            "'messages' has {} messages; at most {MAX_MESSAGES} are taken",
            request.messages.len()
        );
        return Err(invalid("messages", message));
    }
    let continue_final_message = request.continue_final_message.unwrap_or(false);
    if continue_final_message && request.add_generation_prompt == Some(true) {
        return Err(invalid(
            "continue_final_message",
            "'continue_final_message' and 'add_generation_prompt' cannot both be true",
        ));
    }
    let mut template_arguments: BTreeMap<String, Value> = request.chat_template_kwargs.into_iter().flatten().collect();
    if let Some(effort) = request.reasoning_effort {
        template_arguments
            .entry("reasoning_effort".to_owned())
            .or_insert(Value::String(effort));
    }
    let tools = tools(request.tools.unwrap_or_default())?;
    let choice = tool_choice(request.tool_choice, &tools)?;
    let messages = request.messages.into_iter().enumerate();
    Ok(ChatPrompt {
        messages: messages
            .map(|(index, said)| message(index, said))
            .collect::<Result<_, _>>()?,
        // A model that may not call functions is not told of any.
        tools: if choice.is_some() { tools } else { Vec::new() },
        tool_choice: choice.unwrap_or_default(),
        parallel_tool_calls: request.parallel_tool_calls.unwrap_or(true),
        add_generation_prompt: request.add_generation_prompt.unwrap_or(!continue_final_message),
        continue_final_message,
        template_arguments,
    })
}

fn message(index: usize, said: ChatMessage) -> Result<Message, Failure> {
    let field = |name: &str| format!("messages[{index}].{name}");
    let content = match said.content {
        Some(ChatContent::Text(text)) => Some(text),
        Some(ChatContent::Parts(parts)) => Some(joined(index, parts)?),
        None => said.refusal,
    };
    let calls = said.tool_calls.unwrap_or_default();
    let silent = said.role == ChatRole::Assistant && !calls.is_empty();
    if content.is_none() && !silent {
        let field = field("content");
        return Err(invalid(&field, format!("'{field}' is required")));
    }
    if said.role == ChatRole::Tool && said.tool_call_id.is_none() {
        let field = field("tool_call_id");
        return Err(invalid(&field, format!("'{field}' is required of a 'tool' message")));
    }
    Ok(Message {
        role: said.role.as_str().to_owned(),
        content,
        name: said.name,
        tool_calls: calls.into_iter().map(tool_call).collect(),
        tool_call_id: said.tool_call_id,
        reasoning_content: said.reasoning_content,
    })
}

/// The texts of a message's parts, one per line.
fn joined(index: usize, parts: Vec<ContentPart>) -> Result<String, Failure> {
    let texts = parts.into_iter().enumerate().map(|(place, part)| {
        let field = format!("messages[{index}].content[{place}]");
        let text = match part.kind.as_str() {
            "text" => part.text,
            "refusal" => part.refusal,
            other => {
                let shown: String = other.chars().take(64).collect();
                let message = format!("'{field}.type' is '{shown}'; only 'text' is supported");
                return Err(invalid(&format!("{field}.type"), message));
            }
        };
        text.ok_or_else(|| invalid(&format!("{field}.text"), format!("'{field}.text' is required")))
    });
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
}

fn tool_call(call: ChatToolCall) -> ToolCall {
    ToolCall {
        id: call.id,
        name: call.function.name,
        arguments: call.function.arguments,
    }
}

fn tools(tools: Vec<ChatTool>) -> Result<Vec<Tool>, Failure> {
    if tools.len() > MAX_TOOLS {
        let message = format!("'tools' has {} functions; at most {MAX_TOOLS} are taken", tools.len());
        return Err(invalid("tools", message));
    }
    let one = |(index, tool): (usize, ChatTool)| {
        if tool.kind != "function" {
            let field = format!("tools[{index}].type");
            return Err(invalid(&field, format!("'{field}' must be 'function'")));
        }
        let name = &tool.function.name;
        let named = (1..=MAX_NAME_BYTES).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if !named {
            let field = format!("tools[{index}].function.name");
            let message = format!("'{field}' must have 1 to {MAX_NAME_BYTES} letters, digits, '_' or '-'");
            return Err(invalid(&field, message));
        }
        Ok(Tool {
            kind: tool.kind,
            function: ToolFunction {
                name: tool.function.name,
                description: tool.function.description,
                parameters: tool.function.parameters,
                strict: tool.function.strict,
            },
        })
    };
    tools.into_iter().enumerate().map(one).collect()
}

/// Whether a function has to be called; `None`: none may be.
fn tool_choice(choice: Option<ChatToolChoice>, tools: &[Tool]) -> Result<Option<ToolChoice>, Failure> {
    let choice = match choice {
        None => ToolChoice::Auto,
        Some(ChatToolChoice::Mode(mode)) => match mode.as_str() {
            "none" => return Ok(None),
            "auto" => ToolChoice::Auto,
            "required" => ToolChoice::Required,
            _ => {
                return Err(invalid(
                    "tool_choice",
                    "'tool_choice' must be 'none', 'auto', 'required' or a function",
                ));
            }
        },
        Some(ChatToolChoice::Named(named)) if named.kind == "function" => ToolChoice::Function(named.function.name),
        Some(ChatToolChoice::Named(_)) => {
            return Err(invalid("tool_choice.type", "'tool_choice.type' must be 'function'"));
        }
    };
    let known = match &choice {
        ToolChoice::Auto => true,
        ToolChoice::Required => !tools.is_empty(),
        ToolChoice::Function(name) => tools.iter().any(|tool| &tool.function.name == name),
    };
    if known {
        Ok(Some(choice))
    } else {
        Err(invalid(
            "tool_choice",
            "'tool_choice' names a function that 'tools' does not hold",
        ))
    }
}

#[cfg(test)]
mod tests {
    use schemas::error::ErrorCode;
    use schemas::generate::Constraint;
    use schemas::work::Task;
    use serde_json::json;

    use super::*;

    fn card(operation: &str) -> ModelCard {
        let json = json!({
            "name": "m", "slug": "m", "operations": [operation], "family": "llama", "dimensions": 0, "max_tokens": 8,
            "revision": "r", "precision": "f32", "parameters": 1, "created_s": 1
        });
        serde_json::from_value(json).unwrap()
    }

    fn with(fields: &Value) -> Result<(Plan, ChatShape), Failure> {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "a"}]});
        for (name, value) in fields.as_object().unwrap() {
            body[name] = value.clone();
        }
        chat(serde_json::from_value(body).unwrap(), &card("generate"), "t")
    }

    fn task(fields: &Value) -> GenerateTask {
        match with(fields).unwrap().0.task {
            Task::Generate(task) => *task,
            other => panic!("not a generation: {other:?}"),
        }
    }

    fn conversation(messages: &Value) -> Result<Vec<Message>, Failure> {
        let (plan, _) = with(&json!({"messages": messages}))?;
        match plan.task {
            Task::Generate(task) => match task.prompt {
                Prompt::Chat(chat) => Ok(chat.messages),
                other => panic!("not a chat: {other:?}"),
            },
            other => panic!("not a generation: {other:?}"),
        }
    }

    #[test]
    fn fields_that_cannot_be_met_are_named() {
        let f = json!({"type": "function", "function": {"name": "f"}});
        let cases = [
            (json!({"temperature": 2.1}), "temperature"),
            (json!({"temperature": -0.1}), "temperature"),
            (json!({"top_p": 1.1}), "top_p"),
            (json!({"n": 0}), "n"),
            (json!({"n": 129}), "n"),
            (json!({"presence_penalty": 2.5}), "presence_penalty"),
            (json!({"frequency_penalty": -2.5}), "frequency_penalty"),
            (json!({"repetition_penalty": 0}), "repetition_penalty"),
            (json!({"min_p": 2}), "min_p"),
            (json!({"top_k": -2}), "top_k"),
            (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
            (json!({"top_logprobs": 2}), "top_logprobs"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"max_completion_tokens": -1}), "max_completion_tokens"),
            (json!({"max_tokens": 2, "min_tokens": 3}), "min_tokens"),
            (json!({"stop": vec!["a"; 17]}), "stop"),
            (json!({"stop": ["a", ""]}), "stop[1]"),
            (json!({"logit_bias": {"x": 1}}), "logit_bias.x"),
            (json!({"logit_bias": {"7": 101}}), "logit_bias.7"),
            (json!({"stream_options": {"include_usage": true}}), "stream_options"),
            (
                json!({"response_format": {"type": "json_schema"}}),
                "response_format.json_schema",
            ),
            (json!({"guided_json": 7}), "guided_json"),
            (json!({"guided_choice": []}), "guided_choice"),
            (
                json!({"guided_regex": "a", "nvext": {"guided_grammar": "b"}}),
                "guided_grammar",
            ),
            (json!({"modalities": ["audio"]}), "modalities"),
            (json!({"messages": []}), "messages"),
            (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
                "messages[0].content[0].type",
            ),
            (
                json!({"messages": [{"role": "tool", "content": "a"}]}),
                "messages[0].tool_call_id",
            ),
            (
                json!({"tools": [{"type": "function", "function": {"name": "a b"}}]}),
                "tools[0].function.name",
            ),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (
                json!({"tools": [f], "tool_choice": {"type": "function", "function": {"name": "g"}}}),
                "tool_choice",
            ),
            (
                json!({"continue_final_message": true, "add_generation_prompt": true}),
                "continue_final_message",
            ),
        ];
        for (fields, param) in cases {
            let failure = with(&fields).unwrap_err();
            assert_eq!(
                (failure.code, failure.param.as_deref()),
                (ErrorCode::InvalidField, Some(param)),
                "{fields}"
            );
        }
        let request = || serde_json::from_value(json!({"model": "m", "messages": []})).unwrap();
        let failure = chat(request(), &card("embed"), "t").unwrap_err();
        assert_eq!(
            (failure.code, failure.param.as_deref()),
            (ErrorCode::InvalidField, Some("model"))
        );
    }

    #[test]
    fn wishes_become_a_task() {
        let task = task(&json!({
            "temperature": 0.5, "top_p": 0.9, "top_k": -1, "n": 2, "seed": -1, "stop": "x", "max_tokens": 5,
            "max_completion_tokens": 6, "min_tokens": 1, "logit_bias": {"7": -100}, "logprobs": true, "stream": true,
            "nvext": {"ignore_eos": true, "agent_hints": {"osl": 7}}, "store": false, "user": "u"
        }));
        assert_eq!((task.choices, task.logprobs, task.stream), (2, Some(0), true));
        assert_eq!((task.limits.max_tokens, task.limits.ignore_eos), (Some(6), true));
        assert_eq!((task.sampling.seed, task.sampling.top_k), (Some(u64::MAX), 0));
        assert_eq!(task.sampling.logit_bias[0].token, 7);
        let format = json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"b": 1, "a": 2}}}});
        let schema = Constraint::JsonSchema("{\"b\":1,\"a\":2}".to_owned());
        let made = super::tests::task(&format);
        assert_eq!(
            (made.constraint, made.constraint_field.as_deref()),
            (Some(schema), Some("response_format"))
        );
        let extended = super::tests::task(&json!({"nvext": {"guided_regex": "a+"}}));
        assert_eq!(extended.constraint, Some(Constraint::Regex("a+".to_owned())));
        assert_eq!(extended.constraint_field.as_deref(), Some("guided_regex"));
    }

    #[test]
    fn messages_of_clients_become_those_of_templates() {
        let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}});
        let messages = conversation(&json!([
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "tool_calls": [call], "refusal": null, "annotations": [], "audio": null},
            {"role": "tool", "content": "1", "tool_call_id": "c"}
        ]))
        .unwrap();
        assert_eq!(
            (messages[0].role.as_str(), messages[0].content.as_deref()),
            ("system", Some("a\nb"))
        );
        assert_eq!(
            (messages[1].content.as_ref(), messages[1].tool_calls[0].name.as_str()),
            (None, "f")
        );
        assert_eq!(messages[2].tool_call_id.as_deref(), Some("c"));
    }

    #[test]
    fn only_an_answer_that_would_be_the_same_again_has_a_key() {
        let key = |fields: &Value| with(fields).unwrap().0.key;
        let base = key(&json!({"temperature": 0}));
        assert!(base.is_some() && key(&json!({"seed": 1})).is_some());
        for none in [
            json!({}),
            json!({"temperature": 0.5}),
            json!({"temperature": 0, "stream": true}),
        ] {
            assert_eq!(key(&none), None, "{none}");
        }
        for same in [json!({"user": "u"}), json!({"store": true}), json!({"top_k": -1})] {
            let mut fields = same.clone();
            fields["temperature"] = json!(0);
            assert_eq!(key(&fields), base, "{same}");
        }
        for other in [
            json!({"seed": 1}),
            json!({"n": 2}),
            json!({"max_tokens": 5}),
            json!({"stop": "x"}),
            json!({"logprobs": true}),
            json!({"logit_bias": {"1": 1}}),
            json!({"response_format": {"type": "json_object"}}),
            json!({"chat_template_kwargs": {"a": 1}}),
            json!({"tools": [{"type": "function", "function": {"name": "f"}}]}),
            json!({"messages": [{"role": "system", "content": "a"}]}),
        ] {
            let mut fields = other.clone();
            fields["temperature"] = json!(0);
            assert_ne!(key(&fields), base, "{other}");
        }
    }
}
