//! Hides secrets: takes a merged configuration or a text, gives the same with secret values and credentials in URLs replaced.

use toml::{Table, Value};

/// What stands in the place of a secret.
const REDACTED: &str = "[redacted]";

/// Words of a key that make its value a secret. `key` alone is not one: many keys are only names.
const SECRET_WORDS: [&str; 13] = [
    "secret",
    "secrets",
    "token",
    "tokens",
    "password",
    "passwords",
    "passwd",
    "passphrase",
    "pepper",
    "credential",
    "credentials",
    "private",
    "apikey",
];

/// The words that also count things in this product: a number under them is a limit, not a secret.
const COUNTED_WORDS: [&str; 2] = ["token", "tokens"];

/// How far a key makes what is below it a secret.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Secrecy {
    Open,
    Text,
    TextAndNumbers,
}

/// Whether a value under this key must not be shown.
pub(crate) fn is_secret(key: &str) -> bool {
    secrecy(key) != Secrecy::Open
}

fn secrecy(key: &str) -> Secrecy {
    let key = key.to_ascii_lowercase();
    let words: Vec<&str> = key.split(|letter: char| !letter.is_ascii_alphanumeric()).collect();
    let api_key = words
        .windows(2)
        .any(|pair| pair[0] == "api" && pair[1].starts_with("key"));
    let secret = |word: &&str| SECRET_WORDS.contains(word);
    if api_key
        || words
            .iter()
            .filter(|word| secret(word))
            .any(|word| !COUNTED_WORDS.contains(word))
    {
        Secrecy::TextAndNumbers
    } else if words.iter().any(secret) {
        Secrecy::Text
    } else {
        Secrecy::Open
    }
}

/// The table with every secret replaced; empty texts stay, so that one sees what is not set.
pub(crate) fn table(table: &Table) -> Table {
    let entries = table.iter();
    entries
        .map(|(key, below)| (key.clone(), value(below, secrecy(key))))
        .collect()
}

fn value(shown: &Value, outer: Secrecy) -> Value {
    match shown {
        Value::String(text) if text.is_empty() => shown.clone(),
        Value::String(_) if outer != Secrecy::Open => REDACTED.into(),
        Value::String(text) => urls(text).into(),
        Value::Integer(_) | Value::Float(_) | Value::Datetime(_) if outer == Secrecy::TextAndNumbers => REDACTED.into(),
        Value::Array(items) => items.iter().map(|item| value(item, outer)).collect::<Vec<_>>().into(),
        Value::Table(below) => {
            let inner = |key: &str| {
                if outer == Secrecy::Open { secrecy(key) } else { outer }
            };
            Value::Table(
                below
                    .iter()
                    .map(|(key, item)| (key.clone(), value(item, inner(key))))
                    .collect(),
            )
        }
        Value::Integer(_) | Value::Float(_) | Value::Datetime(_) | Value::Boolean(_) => shown.clone(),
    }
}

/// The text with user and password of each URL in it, and secret query parameters, replaced.
pub(crate) fn urls(text: &str) -> String {
    let mut parts = text.split("://");
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        shown.push_str("://");
        // Up to the last at-sign, not up to the first slash: passwords are not always escaped.
        match part.rsplit_once('@') {
            Some((_, rest)) => {
                shown.push_str(REDACTED);
                shown.push('@');
                shown.push_str(&query(rest));
            }
            None => shown.push_str(&query(part)),
        }
    }
    shown
}

fn query(part: &str) -> String {
    let Some((before, parameters)) = part.split_once('?') else {
        return part.to_owned();
    };
    let hide = |parameter: &str| match parameter.split_once('=') {
        Some((name, _)) if is_secret(name) => format!("{name}={REDACTED}"),
        _ => parameter.to_owned(),
    };
    let shown: Vec<String> = parameters.split('&').map(hide).collect();
    format!("{before}?{}", shown.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hides_secrets_and_shows_the_rest() {
        let config = r#"
            admin_token = "s1"
            password = 12345
            unset_password = ""
            max_batch_tokens = 8192
            tokenizer = "bert.json"
            key_prefix = "pk-"
            [nats]
            url = "nats://user:s2@h1:4222,nats://user:s/3@h2:4222"
            credentials = { file = "s4", names = ["s5"], seed = 77 }
            [store]
            url = "postgres://db.example/portalis?sslmode=on&password=s6"
            API_KEY = "s7"
            signing = { private_key = "s8", kid = "k1" }
            allow = true
        "#;
        let shown = toml::to_string(&table(&config.parse().unwrap())).unwrap();
        for secret in ["s1", "12345", "s2", "s/3", "s4", "s5", "77", "s6", "s7", "s8", "user"] {
            assert!(!shown.contains(secret), "{secret} is visible in\n{shown}");
        }
        let visible = [
            "8192",
            "bert.json",
            "pk-",
            "h1:4222,nats://",
            "h2:4222",
            "sslmode=on",
            "k1",
            "unset_password = \"\"",
        ];
        for open in visible {
            assert!(shown.contains(open), "{open} is missing from\n{shown}");
        }
    }
}
