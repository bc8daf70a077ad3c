//! Generation: what a gateway asks of a worker that writes text, and what the worker answers. Input: validated requests,
//! steps of a generation. Output: the bodies of `Task::Generate`, `Frame::Text` and `Done::text`.
//!
//! A generation can move to another worker in the middle. What makes that exact:
//! * the text of a choice is a function of its tokens: a worker that is given the tokens of a [`Resume`] reads them through
//!   its detokenizer, stop strings and tool calls, sends nothing for them, and goes on with what follows;
//! * the seed is a function of the request ([`GenerateTask::seed`]), so the same work delivered twice says the same;
//! * attempts count on over messages ([`GenerateTask::attempts_before`]), so a worker that was given up is not heard.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use serde_json::Value;

use crate::ids::RequestId;

/// Write text that goes on from a prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GenerateTask {
    /// What to go on from.
    pub prompt: Prompt,
    /// More prompts of the same request; each has as many answers as the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_prompts: Vec<Prompt>,
    /// Answers wanted to each prompt (`n`). Choices count from 0: all of the first prompt, then all of the next.
    #[serde(default = "one")]
    pub choices: u32,
    /// How the next token is drawn.
    #[serde(default)]
    pub sampling: Sampling,
    /// When to stop.
    #[serde(default)]
    pub limits: OutputLimits,
    /// Whether each token comes with its log probability, and with how many of the likeliest ones beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<u32>,
    /// Whether the prompt comes before the answer: its text, and with `logprobs` how likely its tokens were.
    #[serde(default, skip_serializing_if = "is_no")]
    pub echo: bool,
    /// What the text has to conform to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraint: Option<Constraint>,
    /// Field of the client's request that said so, for messages about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraint_field: Option<String>,
    /// Whether somebody reads along: parts are sent as they come, one frame per step.
    #[serde(default)]
    pub stream: bool,
    /// Tokens that an earlier worker has sent; generation goes on after them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resume: Vec<Resume>,
    /// Attempts made under earlier messages of this request. `attempt` of the frames is this plus the delivery count.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempts_before: u32,
}

impl GenerateTask {
    /// The first prompt and the others.
    pub fn prompts(&self) -> impl ExactSizeIterator<Item = &Prompt> {
        let count = 1 + self.more_prompts.len();
        (0..count).map(|place| match place {
            0 => &self.prompt,
            _ => &self.more_prompts[place - 1],
        })
    }

    /// Answers to all prompts.
    #[must_use]
    pub fn all_choices(&self) -> u32 {
        u32::try_from(self.more_prompts.len())
            .unwrap_or(u32::MAX)
            .saturating_add(1)
            .saturating_mul(self.choices)
    }

    /// The seed to draw with: the client's, else one that every delivery of the request shares.
    #[must_use]
    pub fn seed(&self, request_id: &RequestId) -> u64 {
        self.sampling.seed.unwrap_or_else(|| {
            let [.., a, b, c, d, e, f, g, h] = *request_id.as_bytes();
            u64::from_le_bytes([a, b, c, d, e, f, g, h])
        })
    }

    /// Whether the same request always gets the same answer.
    #[must_use]
    pub fn is_deterministic(&self) -> bool {
        self.sampling.temperature == 0.0 || self.sampling.seed.is_some()
    }
}

fn one() -> u32 {
    1
}

pub(crate) fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What to go on from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// A conversation, written by the model's chat template.
    Chat(ChatPrompt),
    /// Text as it is; the tokenizer adds its special tokens.
    Text(String),
    /// Token ids of the model's vocabulary, as they are.
    Tokens(Vec<u32>),
}

/// A conversation and what the template is told besides.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ChatPrompt {
    /// The messages, oldest first, at least one.
    pub messages: Vec<Message>,
    /// Functions that the model may call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Tool>,
    /// Whether it has to call one.
    #[serde(default, skip_serializing_if = "ToolChoice::is_auto")]
    pub tool_choice: ToolChoice,
    /// Whether an answer may hold more than one call.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub parallel_tool_calls: bool,
    /// Whether the template ends with the beginning of the assistant's turn.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub add_generation_prompt: bool,
    /// Whether the last message is unfinished and the answer goes on inside it.
    #[serde(default, skip_serializing_if = "is_no")]
    pub continue_final_message: bool,
    /// Further variables of the template (`chat_template_kwargs`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub template_arguments: BTreeMap<String, Value>,
}

fn yes() -> bool {
    true
}

fn is_yes(flag: &bool) -> bool {
    *flag
}

fn is_no(flag: &bool) -> bool {
    !*flag
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Message {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What was said; an assistant that only calls functions says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Who said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Functions the assistant called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Which call a `tool` message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// What the assistant thought, for templates that show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
}

/// A function that the model may call, in the shape that templates expect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Tool {
    /// `function`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The function.
    pub function: ToolFunction,
}

/// What is known of a function.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ToolFunction {
    /// Its name.
    pub name: String,
    /// What it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Its parameters as a JSON Schema; the order of keys is kept, because templates print it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Value>,
    /// Whether arguments must conform to the schema exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

/// Whether the model has to call a function.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ToolChoice {
    /// It decides.
    #[default]
    Auto,
    /// At least one.
    Required,
    /// This one.
    Function(String),
}

impl ToolChoice {
    fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// A function that the model has called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ToolCall {
    /// Its id, named by the message that answers it; empty: the gateway makes one.
    #[serde(default)]
    pub id: String,
    /// Name of the function.
    pub name: String,
    /// The arguments as JSON text.
    pub arguments: String,
}

/// How the next token is drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Sampling {
    /// 0: always the likeliest token.
    pub temperature: f32,
    /// Only the likeliest tokens that together have this probability; 1: all.
    pub top_p: f32,
    /// Only so many of the likeliest tokens; 0: all.
    pub top_k: u32,
    /// Only tokens at least this likely, relative to the likeliest; 0: all.
    pub min_p: f32,
    /// Logits of tokens seen in prompt or answer are divided by it when positive, multiplied when negative; 1: none.
    pub repetition_penalty: f32,
    /// Taken from the logit of every token that the answer holds.
    pub presence_penalty: f32,
    /// Taken from the logit of a token once per occurrence in the answer.
    pub frequency_penalty: f32,
    /// The same seed, the same answer; absent: [`GenerateTask::seed`] of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Added to the logits of single tokens.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logit_bias: Vec<TokenBias>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
            logit_bias: Vec::new(),
        }
    }
}

/// What is added to one token's logit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TokenBias {
    /// The token.
    pub token: u32,
    /// −100 to 100.
    pub bias: f32,
}

/// When to stop.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct OutputLimits {
    /// Most tokens of one choice, those of a [`Resume`] included; absent: what is left of the context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Tokens before an end token or a stop string counts.
    pub min_tokens: u32,
    /// Whether the model's end tokens are tokens like all others.
    pub ignore_eos: bool,
    /// Texts that end the answer; they are not part of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
}

/// What the text has to conform to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// JSON of this JSON Schema (the schema as text).
    JsonSchema(String),
    /// This regular expression, from the first character to the last.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// This grammar, in Lark's notation.
    Grammar(String),
}

/// Tokens of a choice that were sent by a worker that was lost since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Resume {
    /// Which choice.
    pub choice: u32,
    /// All its tokens so far, in order.
    pub tokens: Vec<u32>,
    /// It is finished: nothing more is generated or sent for it, its tokens only count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish: Option<FinishReason>,
}

/// What one step added to one choice.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct TextPart {
    /// Which choice.
    pub choice: u32,
    /// Text that follows what was sent before: whole characters, no part of a stop string. May be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// The prompt, with the first token, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub echo: Option<Echo>,
    /// The tokens drawn, an end token included; their text may come in a later part.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<u32>,
    /// One per token, if they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprob>,
    /// Functions called, each whole; their text is not in `text`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Why the choice ended; nothing follows for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish: Option<FinishReason>,
}

impl TextPart {
    /// What it takes in memory or in a message, roughly and at most, in bytes.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        let token = |bytes: &ByteBuf| bytes.len() + 48;
        let logprobs: usize = self
            .logprobs
            .iter()
            .map(|logprob| token(&logprob.bytes) + logprob.top.iter().map(|top| token(&top.bytes)).sum::<usize>())
            .sum();
        let calls: usize = self
            .tool_calls
            .iter()
            .map(|call| call.id.len() + call.name.len() + call.arguments.len() + 72)
            .sum();
        let scored = |token_of: &PromptToken| {
            token(&token_of.bytes) + token_of.top.iter().map(|top| token(&top.bytes)).sum::<usize>()
        };
        let echo = self.echo.as_ref();
        let echo = echo.map_or(0, |echo| {
            echo.text.len() + echo.tokens.iter().map(scored).sum::<usize>()
        });
        self.text.len() + self.tokens.len() * 5 + logprobs + calls + echo + 64
    }
}

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// At an end token or a stop string.
    Stop,
    /// At the limit of tokens or of the context.
    Length,
    /// It called functions.
    ToolCalls,
    /// Something was left out.
    ContentFilter,
    /// A reason newer than this program; reads as `stop`.
    #[serde(other)]
    Unknown,
}

impl FinishReason {
    /// The reason as OpenAI's API says it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop | Self::Unknown => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::ContentFilter => "content_filter",
        }
    }
}

/// A prompt that comes before its answer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Echo {
    /// Its text.
    pub text: String,
    /// Its tokens, if log probabilities were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<PromptToken>,
}

/// How likely a token of a prompt was.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct PromptToken {
    /// The token's bytes, which need not be whole characters.
    #[schemars(with = "Vec<u8>")]
    pub bytes: ByteBuf,
    /// Natural logarithm of its probability; nothing is known of the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprob: Option<f32>,
    /// The likeliest tokens in its place, likeliest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<TopToken>,
}

/// How likely a drawn token was.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct TokenLogprob {
    /// The token's bytes, which need not be whole characters.
    #[schemars(with = "Vec<u8>")]
    pub bytes: ByteBuf,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The likeliest tokens, likeliest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<TopToken>,
}

/// One of the likeliest tokens.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct TopToken {
    /// The token's bytes.
    #[schemars(with = "Vec<u8>")]
    pub bytes: ByteBuf,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(json: &str) -> GenerateTask {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_prompt_is_enough() {
        let plain = task(r#"{"prompt":{"text":"a"}}"#);
        assert_eq!(
            (plain.choices, plain.sampling.temperature, plain.stream),
            (1, 1.0, false)
        );
        assert!(!plain.is_deterministic());
        let chat = task(r#"{"prompt":{"chat":{"messages":[{"role":"user","content":"a"}]}}}"#);
        let Prompt::Chat(chat) = chat.prompt else {
            panic!("not a chat")
        };
        assert!(chat.add_generation_prompt && chat.parallel_tool_calls && chat.tool_choice.is_auto());
    }

    #[test]
    fn every_delivery_of_a_request_draws_with_the_same_seed() {
        let (one, two) = (RequestId::new(), RequestId::new());
        let unseeded = task(r#"{"prompt":{"text":"a"}}"#);
        assert_eq!(unseeded.seed(&one), unseeded.seed(&one));
        assert_ne!(unseeded.seed(&one), unseeded.seed(&two));
        let seeded = task(r#"{"prompt":{"text":"a"},"sampling":{"seed":7}}"#);
        assert_eq!((seeded.seed(&one), seeded.seed(&two)), (7, 7));
        assert!(seeded.is_deterministic());
        assert!(task(r#"{"prompt":{"text":"a"},"sampling":{"temperature":0}}"#).is_deterministic());
    }

    #[test]
    fn tools_keep_the_order_of_their_keys() {
        let json =
            r#"{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"z":1,"a":2}}}}"#;
        let tool: Tool = serde_json::from_str(json).unwrap();
        let packed = crate::wire::encode(&tool).unwrap();
        let read: Tool = crate::wire::decode(&packed).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), json);
    }
}
