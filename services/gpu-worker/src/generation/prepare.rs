//! From a task to what the engine generates. Input: a request's task. Output: one generation per choice, with the prompt as
//! token ids; or a failure that names the field. CPU bound, so it runs off the event loop.

use engine::generate::sampling::{ParameterError, SamplingParams};
use engine::generate::scheduler::Refusal;
use engine::generate::{AddSpecial, ChatRequest, Generation, SpecialTokens, TemplateError, TextModel};
use schemas::error::{ErrorCode, Failure};
use schemas::generate::{ChatPrompt, GenerateTask, Message, Prompt, Sampling};
use serde_json::{Value, json};

use super::conduct::{self, Conduct};

/// What a request brings besides its task.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    /// Prompts share what is computed of them only within a tenant.
    pub(super) tenant: String,
    /// 0 is the most urgent.
    pub(super) priority: u8,
    /// Seed of a request whose client named none.
    pub(super) seed: u64,
    /// For templates that print the date.
    pub(super) now_unix_s: u64,
}

/// A task ready for the model.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// One per choice that is not finished.
    pub(super) generations: Vec<Generation>,
    /// What is known of each prompt.
    pub(super) prompts: Vec<PromptFacts>,
}

/// What is known of a prompt once it is made.
#[derive(Debug, Default)]
pub(super) struct PromptFacts {
    /// Its tokens.
    pub(super) count: u64,
    /// Its text, if it comes before the answer.
    pub(super) text: Option<String>,
    /// Its token ids, if their log probabilities come too.
    pub(super) ids: Vec<u32>,
}

/// Makes the generations of a task, one per choice that is not finished.
///
/// # Errors
/// A failure that names the field.
pub(super) fn generations(model: &TextModel, task: &GenerateTask, origin: &Origin) -> Result<Made, Failure> {
    let conduct = conduct::conduct(model, task)?;
    let mut made = Made::default();
    for (place, prompt) in (0_u32..).zip(task.prompts()) {
        let ids = ids(model, prompt, origin.now_unix_s)?;
        let choices = place * task.choices..(place + 1) * task.choices;
        made.generations
            .extend(choices.filter_map(|choice| generation(model, task, (choice, &ids, &conduct), origin)));
        made.prompts.push(facts(model, task, prompt, ids));
    }
    Ok(made)
}

/// What is generated of one choice; `None` when it is finished.
fn generation(
    model: &TextModel,
    task: &GenerateTask,
    (choice, prompt, conduct): (u32, &[u32], &Conduct),
    origin: &Origin,
) -> Option<Generation> {
    let resume = task.resume.iter().find(|resume| resume.choice == choice);
    if resume.is_some_and(|resume| resume.finish.is_some()) {
        return None;
    }
    let resumed = resume.map(|resume| resume.tokens.clone()).unwrap_or_default();
    let logprobs = task.logprobs.map(|top| u8::try_from(top).unwrap_or(u8::MAX));
    let detokenizer = match model.tool_style() {
        Some(style) if conduct.calls.is_some() => model.detokenizer_of_calls(style),
        _ => model.detokenizer(SpecialTokens::Skip),
    };
    Some(Generation {
        choice,
        sampling: sampling(&task.sampling, origin.seed),
        stop: task.limits.stop.clone(),
        max_tokens: task.limits.max_tokens,
        min_tokens: task.limits.min_tokens,
        ignore_eos: task.limits.ignore_eos,
        logprobs,
        // Who has heard a token has heard the prompt before it.
        prompt_logprobs: logprobs.filter(|_| task.echo && resumed.is_empty()),
        resumed,
        constraint: conduct.constraint.clone(),
        calls: conduct.calls.clone(),
        priority: origin.priority,
        salt: origin.tenant.clone().into_bytes(),
        ..Generation::new(prompt.to_vec(), detokenizer)
    })
}

fn facts(model: &TextModel, task: &GenerateTask, prompt: &Prompt, ids: Vec<u32>) -> PromptFacts {
    let text = || match prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Chat(_) | Prompt::Tokens(_) => model.decode(&ids, SpecialTokens::Keep),
    };
    PromptFacts {
        count: ids.len() as u64,
        text: task.echo.then(text),
        ids: if task.echo && task.logprobs.is_some() {
            ids
        } else {
            Vec::new()
        },
    }
}

pub(super) fn invalid(field: &str, message: impl Into<String>) -> Failure {
    Failure::new(ErrorCode::InvalidField, message).param(field)
}

fn ids(model: &TextModel, prompt: &Prompt, now_unix_s: u64) -> Result<Vec<u32>, Failure> {
    let encode = |text: &str, special, field: &str| {
        model
            .encode(text, special)
            .map_err(|error| invalid(field, format!("'{field}': {error}")))
    };
    match prompt {
        Prompt::Tokens(ids) => Ok(ids.clone()),
        Prompt::Text(text) => encode(text, AddSpecial::Yes, "prompt"),
        Prompt::Chat(chat) => {
            let rendered = rendered(model, chat, now_unix_s)?;
            encode(&rendered, AddSpecial::No, "messages")
        }
    }
}

/// A conversation as the model's template writes it.
///
/// # Errors
/// A failure that names the field.
pub(crate) fn rendered(model: &TextModel, chat: &ChatPrompt, now_unix_s: u64) -> Result<String, Failure> {
    model
        .render_chat(&chat_request(chat, now_unix_s))
        .map_err(|error| refused(&error))
}

fn refused(error: &TemplateError) -> Failure {
    let code = match error {
        TemplateError::Missing => ErrorCode::UnsupportedWork,
        _ => ErrorCode::InvalidField,
    };
    Failure::new(code, error.to_string()).param("messages")
}

fn chat_request(chat: &ChatPrompt, now_unix_s: u64) -> ChatRequest {
    let messages: Vec<Value> = chat.messages.iter().map(template_message).collect();
    let mut request = ChatRequest::new(&messages, now_unix_s).with_generation_prompt(chat.add_generation_prompt);
    if !chat.tools.is_empty() {
        request = request.with_tools(&chat.tools);
    }
    for (name, value) in &chat.template_arguments {
        request = request.with_argument(name, value);
    }
    request
}

/// A message as templates expect it: calls in OpenAI's form, but with their arguments as values.
fn template_message(message: &Message) -> Value {
    let mut shown = json!({ "role": message.role, "content": message.content });
    if let Some(name) = &message.name {
        shown["name"] = json!(name);
    }
    if let Some(id) = &message.tool_call_id {
        shown["tool_call_id"] = json!(id);
    }
    if let Some(reasoning) = &message.reasoning_content {
        shown["reasoning_content"] = json!(reasoning);
    }
    if !message.tool_calls.is_empty() {
        let call = |call: &schemas::generate::ToolCall| {
            let arguments = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!(call.arguments));
            json!({ "id": call.id, "type": "function", "function": { "name": call.name, "arguments": arguments } })
        };
        shown["tool_calls"] = message.tool_calls.iter().map(call).collect();
    }
    shown
}

fn sampling(wanted: &Sampling, seed: u64) -> SamplingParams {
    SamplingParams {
        temperature: wanted.temperature,
        top_p: wanted.top_p,
        top_k: wanted.top_k,
        min_p: wanted.min_p,
        repetition_penalty: wanted.repetition_penalty,
        presence_penalty: wanted.presence_penalty,
        frequency_penalty: wanted.frequency_penalty,
        seed,
        logit_bias: wanted.logit_bias.iter().map(|bias| (bias.token, bias.bias)).collect(),
    }
}

/// What a refusal of the engine means for the caller; `None` when there is only no room now.
pub(super) fn failure(refusal: &Refusal, prompt: &Prompt) -> Option<Failure> {
    let field = match prompt {
        Prompt::Chat(_) => "messages",
        Prompt::Text(_) | Prompt::Tokens(_) => "prompt",
    };
    let failure = match refusal {
        Refusal::Full { .. } => return None,
        Refusal::TooLong { tokens, max } => Failure::new(
            ErrorCode::InputTooLong,
            format!("Input length {tokens} exceeds maximum allowed token size {max}"),
        )
        .param(field),
        Refusal::Parameter(ParameterError { name, .. }) => invalid(name, refusal.to_string()),
        // Only tokens of an earlier worker can be at odds with it.
        Refusal::Constraint(error) => Failure::new(ErrorCode::Internal, error.to_string()),
        _ => invalid(field, format!("'{field}': {refusal}")),
    };
    Some(failure)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn model() -> TextModel {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano-translator");
        TextModel::load(&folder).unwrap()
    }

    fn task(json: Value) -> GenerateTask {
        serde_json::from_value(json).unwrap()
    }

    fn origin() -> Origin {
        Origin {
            tenant: "t".to_owned(),
            priority: 1,
            seed: 9,
            now_unix_s: 0,
        }
    }

    #[test]
    fn every_choice_that_is_not_finished_is_generated() {
        let model = model();
        let task = task(json!({
            "prompt": { "chat": { "messages": [{ "role": "user", "content": "hello" }] } },
            "choices": 3, "limits": { "max_tokens": 5, "stop": ["x"] },
            "resume": [{ "choice": 0, "tokens": [5, 6], "finish": "stop" }, { "choice": 2, "tokens": [7] }],
        }));
        let Made {
            generations: made,
            prompts,
        } = generations(&model, &task, &origin()).unwrap();
        assert_eq!((prompts.len(), prompts[0].count), (1, made[0].prompt.len() as u64));
        let choices: Vec<_> = made.iter().map(|made| (made.choice, made.resumed.clone())).collect();
        assert_eq!(choices, [(1, vec![]), (2, vec![7])]);
        assert_eq!(made[0].prompt, made[1].prompt);
        let shown = model.decode(&made[0].prompt, SpecialTokens::Keep);
        assert_eq!(shown, "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n");
        assert_eq!(
            (made[0].sampling.seed, made[0].max_tokens, made[0].priority),
            (9, Some(5), 1)
        );
    }

    #[test]
    fn what_cannot_be_generated_names_the_field() {
        let too_long = Refusal::TooLong { tokens: 9, max: 8 };
        let failure = super::failure(&too_long, &Prompt::Text(String::new())).unwrap();
        assert!(failure.message.contains("exceeds maximum allowed"), "{failure}");
        assert!(super::failure(&Refusal::Full { waiting: 1 }, &Prompt::Text(String::new())).is_none());
    }

    #[test]
    fn several_prompts_have_their_own_choices_and_echoes() {
        let model = model();
        let task = task(json!({
            "prompt": { "text": "fn " }, "more_prompts": [{ "tokens": [70, 71, 72] }], "choices": 2, "echo": true, "logprobs": 1,
            "resume": [{ "choice": 3, "tokens": [7] }],
        }));
        let made = generations(&model, &task, &origin()).unwrap();
        let scored: Vec<_> = made
            .generations
            .iter()
            .map(|made| (made.choice, made.prompt_logprobs))
            .collect();
        assert_eq!(scored, [(0, Some(1)), (1, Some(1)), (2, Some(1)), (3, None)]);
        assert_eq!(made.generations[3].prompt, [70, 71, 72]);
        assert_eq!(made.prompts[0].text.as_deref(), Some("fn "));
        let second = &made.prompts[1];
        assert_eq!((second.count, second.ids.as_slice()), (3, &[70, 71, 72][..]));
        assert_eq!(
            second.text.as_deref(),
            Some(model.decode(&[70, 71, 72], SpecialTokens::Keep).as_str())
        );
    }
}
