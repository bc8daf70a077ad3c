//! Plans of responses. Input: a parsed request, the model's card. Output: the generation task of the same conversation as a chat,
//! and how to write its answer; or a failure that names the field. Pure.

use schemas::error::Failure;
use schemas::fleet::ModelCard;
use schemas::http::{
    ChatContent, ChatMessage, ChatRequest, ChatRole, ContentPart, JsonSchemaFormat, ResponseFormat, ResponseFormatKind,
    ResponsesFormat, ResponsesInput, ResponsesItem, ResponsesReasoning, ResponsesRequest,
};
use serde_json::{Map, Value};

use super::generate::whole;
use super::{Plan, chat, invalid};

/// How a response is written: most of it is the request again.
#[derive(Debug, Clone, PartialEq)]
pub struct ResponsesShape {
    /// In events, as it comes.
    pub stream: bool,
    /// What the operator said.
    pub instructions: Option<String>,
    /// Most tokens of the answer.
    pub max_output_tokens: Option<i64>,
    /// The client's own notes.
    pub metadata: Map<String, Value>,
    /// How much the model thinks.
    pub reasoning: ResponsesReasoning,
    /// What was drawn with.
    pub temperature: f64,
    /// What was drawn with.
    pub top_p: f64,
    /// What the answer conforms to.
    pub format: ResponsesFormat,
    /// The end user.
    pub user: Option<String>,
}

impl Default for ResponsesShape {
    fn default() -> Self {
        Self {
            stream: false,
            instructions: None,
            max_output_tokens: None,
            metadata: Map::new(),
            reasoning: ResponsesReasoning::default(),
            temperature: 1.0,
            top_p: 1.0,
            format: any_text(),
            user: None,
        }
    }
}

fn any_text() -> ResponsesFormat {
    ResponsesFormat {
        kind: ResponseFormatKind::Text,
        name: None,
        description: None,
        schema: None,
        strict: None,
    }
}

/// Plans a response of a model.
///
/// # Errors
/// `invalid_field` naming the field.
pub fn responses(request: ResponsesRequest, card: &ModelCard, tenant: &str) -> Result<(Plan, ResponsesShape), Failure> {
    super::generate::check_model(card)?;
    check_unsupported(&request)?;
    whole("max_output_tokens", request.max_output_tokens, 1..=i64::from(u32::MAX))?;
    let format = request.text.and_then(|text| text.format).unwrap_or_else(any_text);
    let shape = ResponsesShape {
        stream: request.stream == Some(true),
        instructions: request.instructions,
        max_output_tokens: request.max_output_tokens,
        metadata: request.metadata.unwrap_or_default(),
        reasoning: request.reasoning.unwrap_or_default(),
        temperature: request.temperature.unwrap_or(1.0),
        top_p: request.top_p.unwrap_or(1.0),
        user: request.user,
        format,
    };
    let conversation = ChatRequest {
        messages: messages(shape.instructions.clone(), request.input)?,
        temperature: request.temperature,
        top_p: request.top_p,
        max_completion_tokens: shape.max_output_tokens,
        stream: Some(shape.stream),
        response_format: Some(response_format(&shape.format)?),
        reasoning_effort: shape.reasoning.effort.clone(),
        ..ChatRequest::default()
    };
    let (plan, _) = chat::chat(conversation, card, tenant)?;
    Ok((plan, shape))
}

/// Refuses what would change the answer and is not served.
fn check_unsupported(request: &ResponsesRequest) -> Result<(), Failure> {
    let stored = "is not supported: nothing is stored here; send the whole conversation in 'input'";
    let truncated = request.truncation.as_deref().is_some_and(|kind| kind != "disabled");
    let given = [
        ("previous_response_id", request.previous_response_id.is_some(), stored),
        ("conversation", request.conversation.is_some(), stored),
        ("background", request.background == Some(true), "must be false"),
        ("truncation", truncated, "must be 'disabled'"),
        (
            "tools",
            request.tools.as_ref().is_some_and(|tools| !tools.is_empty()),
            "must be empty; '/v1/chat/completions' takes functions",
        ),
        (
            "include",
            request.include.as_ref().is_some_and(|include| !include.is_empty()),
            "must be empty",
        ),
        (
            "top_logprobs",
            request.top_logprobs.is_some_and(|top| top != 0),
            "must be 0; '/v1/chat/completions' has log probabilities",
        ),
    ];
    match given.into_iter().find(|(_, given, _)| *given) {
        Some((field, _, why)) => Err(invalid(field, format!("'{field}' {why}"))),
        None => Ok(()),
    }
}

fn messages(instructions: Option<String>, input: ResponsesInput) -> Result<Vec<ChatMessage>, Failure> {
    let message = |role, text| ChatMessage {
        role,
        content: Some(ChatContent::Text(text)),
        ..ChatMessage::default()
    };
    let mut messages: Vec<ChatMessage> = Vec::new();
    messages.extend(instructions.map(|text| message(ChatRole::System, text)));
    match input {
        ResponsesInput::Text(text) if text.is_empty() => return Err(invalid("input", "'input' is empty")),
        ResponsesInput::Text(text) => messages.push(message(ChatRole::User, text)),
        ResponsesInput::Items(items) if items.is_empty() => {
            return Err(invalid("input", "'input' is empty: at least one message is needed"));
        }
        ResponsesInput::Items(items) => {
            for (index, item) in items.into_iter().enumerate() {
                let role = item.role;
                messages.push(message(role, text_of(index, item)?));
            }
        }
    }
    Ok(messages)
}

fn text_of(index: usize, item: ResponsesItem) -> Result<String, Failure> {
    if let Some(kind) = item.kind.filter(|kind| kind != "message") {
        let shown: String = kind.chars().take(64).collect();
        let field = format!("input[{index}].type");
        return Err(invalid(
            &field,
            format!("'{field}' is '{shown}'; only 'message' is supported"),
        ));
    }
    if item.role == ChatRole::Tool {
        let field = format!("input[{index}].role");
        return Err(invalid(&field, format!("'{field}' is 'tool'; there are no tools here")));
    }
    match item.content {
        ChatContent::Text(text) => Ok(text),
        ChatContent::Parts(parts) => {
            let texts = parts
                .into_iter()
                .enumerate()
                .map(|(place, part)| part_text(index, place, part));
            Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
        }
    }
}

fn part_text(index: usize, place: usize, part: ContentPart) -> Result<String, Failure> {
    let field = format!("input[{index}].content[{place}]");
    let text = match part.kind.as_str() {
        "input_text" | "output_text" | "text" => part.text,
        "refusal" => part.refusal,
        other => {
            let shown: String = other.chars().take(64).collect();
            let message = format!("'{field}.type' is '{shown}'; only texts are supported");
            return Err(invalid(&format!("{field}.type"), message));
        }
    };
    text.ok_or_else(|| invalid(&format!("{field}.text"), format!("'{field}.text' is required")))
}

fn response_format(format: &ResponsesFormat) -> Result<ResponseFormat, Failure> {
    let json_schema = match format.kind {
        ResponseFormatKind::JsonSchema => {
            if format.schema.is_none() {
                let message = "'text.format' of type 'json_schema' needs a 'schema'";
                return Err(invalid("text.format.schema", message));
            }
            Some(JsonSchemaFormat {
                name: format.name.clone().unwrap_or_else(|| "answer".to_owned()),
                description: format.description.clone(),
                schema: format.schema.clone(),
                strict: format.strict,
            })
        }
        ResponseFormatKind::Text | ResponseFormatKind::JsonObject => None,
    };
    Ok(ResponseFormat {
        kind: format.kind,
        json_schema,
    })
}

#[cfg(test)]
mod tests {
    use schemas::generate::{Constraint, GenerateTask, Prompt};
    use schemas::work::Task;
    use serde_json::json;

    use super::*;

    fn with(fields: &Value) -> Result<(Plan, ResponsesShape), Failure> {
        let card = json!({
            "name": "m", "slug": "m", "operations": ["generate"], "family": "llama", "dimensions": 0, "max_tokens": 8,
            "revision": "r", "precision": "f32", "parameters": 1, "created_s": 1
        });
        let mut body = json!({"model": "m", "input": "a"});
        for (name, value) in fields.as_object().unwrap() {
            body[name] = value.clone();
        }
        let request = serde_json::from_value(body).unwrap();
        responses(request, &serde_json::from_value(card).unwrap(), "t")
    }

    fn task(fields: &Value) -> GenerateTask {
        match with(fields).unwrap().0.task {
            Task::Generate(task) => *task,
            other => panic!("not a generation: {other:?}"),
        }
    }

    fn said(fields: &Value) -> Vec<(String, String)> {
        match task(fields).prompt {
            Prompt::Chat(chat) => chat
                .messages
                .into_iter()
                .map(|message| (message.role, message.content.unwrap()))
                .collect(),
            other => panic!("not a chat: {other:?}"),
        }
    }

    #[test]
    fn every_documented_input_is_a_conversation() {
        let pair = |role: &str, text: &str| (role.to_owned(), text.to_owned());
        assert_eq!(said(&json!({})), [pair("user", "a")]);
        let items = json!({
            "instructions": "be brief",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
                {
                    "type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
                    "content": [{"type": "output_text", "text": "c", "annotations": [], "logprobs": []}]
                },
                {"role": "user", "content": "d"}
            ]
        });
        let expected = [
            pair("system", "be brief"),
            pair("user", "a\nb"),
            pair("assistant", "c"),
            pair("user", "d"),
        ];
        assert_eq!(said(&items), expected);
        let schema = json!({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}});
        assert!(matches!(task(&schema).constraint, Some(Constraint::JsonSchema(_))));
        let limits = task(&json!({"max_output_tokens": 5, "temperature": 0})).limits;
        assert_eq!(limits.max_tokens, Some(5));
        assert!(with(&json!({"temperature": 0})).unwrap().0.key.is_some());
        assert!(
            with(&json!({"temperature": 0, "stream": true}))
                .unwrap()
                .0
                .key
                .is_none()
        );
    }

    #[test]
    fn fields_that_cannot_be_met_are_named() {
        for (fields, param) in [
            (json!({"input": ""}), "input"),
            (json!({"input": []}), "input"),
            (
                json!({"input": [{"type": "item_reference", "role": "user", "content": "a"}]}),
                "input[0].type",
            ),
            (json!({"input": [{"role": "tool", "content": "a"}]}), "input[0].role"),
            (
                json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
                "input[0].content[0].type",
            ),
            (
                json!({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}),
                "input[0].content[0].text",
            ),
            (json!({"max_output_tokens": 0}), "max_output_tokens"),
            (json!({"temperature": 3}), "temperature"),
            (json!({"top_p": 2}), "top_p"),
            (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
            (json!({"conversation": "c"}), "conversation"),
            (json!({"background": true}), "background"),
            (json!({"truncation": "auto"}), "truncation"),
            (json!({"tools": [{"type": "web_search"}]}), "tools"),
            (json!({"include": ["x"]}), "include"),
            (json!({"top_logprobs": 3}), "top_logprobs"),
            (
                json!({"text": {"format": {"type": "json_schema", "name": "n"}}}),
                "text.format.schema",
            ),
        ] {
            let failure = with(&fields).unwrap_err();
            assert_eq!(failure.param.as_deref(), Some(param), "{fields}: {failure}");
        }
        assert!(with(&json!({"tools": [], "include": [], "truncation": "disabled", "store": true})).is_ok());
    }
}
