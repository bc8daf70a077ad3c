//! Questions about tokens. Input: a parsed request, the model's card. Output: what a worker is asked; or a failure that names the
//! field. Pure.

use schemas::error::Failure;
use schemas::fleet::ModelCard;
use schemas::http::{ChatRequest, TokenizeRequest};
use schemas::tokens::{Tokenize, TokenizeText};

use super::{chat, generate, invalid};

/// Plans a question for the tokens of a text or a conversation.
///
/// # Errors
/// `invalid_field` naming the field.
pub fn tokenize(request: TokenizeRequest, card: &ModelCard) -> Result<Tokenize, Failure> {
    let spellings = request.return_token_strs == Some(true);
    let add_special = request.add_special_tokens;
    match (request.prompt, request.messages) {
        (Some(_), Some(_)) => Err(invalid(
            "messages",
            "'messages' and 'prompt' cannot both be given; leave one out",
        )),
        (None, None) => Err(invalid("prompt", "'prompt' or 'messages' is required")),
        (Some(prompt), None) => {
            let of_chat = [
                ("add_generation_prompt", request.add_generation_prompt.is_some()),
                ("continue_final_message", request.continue_final_message.is_some()),
                ("tools", request.tools.is_some()),
                ("chat_template_kwargs", request.chat_template_kwargs.is_some()),
            ];
            if let Some((field, _)) = of_chat.into_iter().find(|(_, given)| *given) {
                return Err(invalid(field, format!("'{field}' needs 'messages'")));
            }
            Ok(Tokenize {
                text: TokenizeText::Text(prompt),
                add_special_tokens: add_special.unwrap_or(true),
                spellings,
            })
        }
        (None, Some(messages)) => {
            generate::check_model(card)?;
            let conversation = ChatRequest {
                messages,
                tools: request.tools,
                add_generation_prompt: request.add_generation_prompt,
                continue_final_message: request.continue_final_message,
                chat_template_kwargs: request.chat_template_kwargs,
                ..ChatRequest::default()
            };
            Ok(Tokenize {
                text: TokenizeText::Chat(Box::new(chat::prompt(conversation)?)),
                add_special_tokens: add_special.unwrap_or(false),
                spellings,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn plan(body: &Value, operation: &str) -> Result<Tokenize, Failure> {
        let card = json!({
            "name": "m", "slug": "m", "operations": [operation], "family": "llama", "dimensions": 0, "max_tokens": 8,
            "revision": "r", "precision": "f32", "parameters": 1, "created_s": 1
        });
        let request = serde_json::from_value(body.clone()).unwrap();
        tokenize(request, &serde_json::from_value(card).unwrap())
    }

    #[test]
    fn special_tokens_are_around_texts_and_inside_templates() {
        let text = plan(&json!({"model": "m", "prompt": "a"}), "embed").unwrap();
        assert!(text.add_special_tokens && !text.spellings);
        let chat = json!({"model": "m", "messages": [{"role": "user", "content": "a"}], "return_token_strs": true});
        let chat = plan(&chat, "generate").unwrap();
        assert!(!chat.add_special_tokens && chat.spellings);
        assert!(matches!(chat.text, TokenizeText::Chat(prompt) if prompt.add_generation_prompt));
    }

    #[test]
    fn fields_that_cannot_be_met_are_named() {
        let messages = json!([{"role": "user", "content": "a"}]);
        for (body, operation, param) in [
            (json!({"model": "m"}), "generate", "prompt"),
            (
                json!({"model": "m", "prompt": "a", "messages": messages}),
                "generate",
                "messages",
            ),
            (json!({"model": "m", "prompt": "a", "tools": []}), "generate", "tools"),
            (json!({"model": "m", "messages": []}), "generate", "messages"),
            (json!({"model": "m", "messages": messages}), "embed", "model"),
        ] {
            assert_eq!(
                plan(&body, operation).unwrap_err().param.as_deref(),
                Some(param),
                "{body}"
            );
        }
    }
}
