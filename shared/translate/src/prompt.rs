//! What a model is asked. Input: a function, and what was wrong with an earlier answer. Output: messages of a chat.

use serde::{Deserialize, Serialize};

/// Longest part of the compiler's words that a model is told: the first error matters, and small models read little.
const MAX_PROBLEM_BYTES: usize = 800;

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The one who asks.
    User,
    /// The model.
    Assistant,
}

/// One message of a chat, in OpenAI's shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

fn says(role: Role, content: String) -> Message {
    Message { role, content }
}

/// The first question: the function, bare, as the model's card asks for it.
#[must_use]
pub fn first(python: &str) -> Vec<Message> {
    vec![says(Role::User, python.trim_end().to_owned())]
}

/// The question after an answer that was wrong.
#[must_use]
pub fn again(python: &str, answer: &str, problem: &str) -> Vec<Message> {
    let problem = problem.trim();
    let end = problem.floor_char_boundary(MAX_PROBLEM_BYTES);
    let mut messages = first(python);
    messages.push(says(Role::Assistant, answer.trim_end().to_owned()));
    let question = format!(
        "That is wrong:\n{}\n\nTranslate this Python function to Rust:\n\n{}",
        &problem[..end],
        python.trim_end()
    );
    messages.push(says(Role::User, question));
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_function_stands_alone_and_problems_are_cut_at_a_character() {
        let json = serde_json::to_value(first("def f() -> int:\n    return 1\n")).unwrap();
        assert_eq!(
            json,
            serde_json::json!([{ "role": "user", "content": "def f() -> int:\n    return 1" }])
        );
        let messages = again("def f()", "fn f() {}\n", &"é".repeat(MAX_PROBLEM_BYTES));
        assert_eq!((messages.len(), messages[1].role), (3, Role::Assistant));
        assert_eq!(messages[2].content.matches('é').count(), MAX_PROBLEM_BYTES / 2);
        assert!(messages[2].content.ends_with("def f()"));
    }
}
