//! Puts layers of settings on each other: tables and single keys in, one table out, with the origin of each key.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::error::{ConfigError, Origin};

/// A value, or a text that stands for one.
#[derive(Clone, Debug)]
pub(super) enum Setting {
    Text(String),
    Value(Value),
}

/// A table under construction that remembers who set what.
pub(super) struct Merge {
    pub(super) table: Table,
    pub(super) origins: BTreeMap<Vec<String>, Origin>,
    pub(super) service: &'static str,
}

impl Merge {
    /// Puts a table over this one, key by key; lists are replaced as a whole.
    pub(super) fn overlay(&mut self, over: Table, origin: &Origin) -> Result<(), ConfigError> {
        let mut open: Vec<(Vec<String>, Table)> = vec![(Vec::new(), over)];
        while let Some((section, entries)) = open.pop() {
            for (key, value) in entries {
                let mut path = section.clone();
                path.push(key);
                match value {
                    // An empty section still exists.
                    Value::Table(inner) if !inner.is_empty() => open.push((path, inner)),
                    value => self.set(&path, Setting::Value(value), origin)?,
                }
            }
        }
        Ok(())
    }

    pub(super) fn set(&mut self, path: &[String], setting: Setting, origin: &Origin) -> Result<(), ConfigError> {
        let Some((last, sections)) = path.split_last() else {
            return Ok(());
        };
        let mut table = &mut self.table;
        for (depth, section) in sections.iter().enumerate() {
            let inner = table
                .entry(section.clone())
                .or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(inner) = inner else {
                let blocked = path[..=depth].join(".");
                let reason = format!("`{blocked}` is a value, not a section");
                return Err(ConfigError::Key {
                    key: path.join("."),
                    origin: origin.clone(),
                    reason,
                });
            };
            table = inner;
        }
        let value = match setting {
            Setting::Text(text) => from_text(text, table.get(last)),
            Setting::Value(value) => value,
        };
        match (table.get(last), &value) {
            // An empty section over a section changes nothing.
            (Some(Value::Table(_)), Value::Table(new)) if new.is_empty() => {}
            _ => {
                table.insert(last.clone(), value);
                if *origin != Origin::Default(self.service) {
                    self.origins.insert(path.to_vec(), origin.clone());
                }
            }
        }
        Ok(())
    }
}

/// The value that a text stands for: TOML where it is TOML, else itself; what is a text by default stays one, such as a password of digits.
fn from_text(text: String, default: Option<&Value>) -> Value {
    // The parser drops a byte order mark, so a text that begins with one would lose it.
    let parsed = if text.starts_with('\u{feff}') {
        None
    } else {
        text.parse::<Value>().ok()
    };
    match (parsed, default) {
        (Some(Value::String(quoted)), _) => Value::String(quoted),
        (Some(_), Some(Value::String(_))) | (None, _) => Value::String(text),
        (Some(value), _) => value,
    }
}
