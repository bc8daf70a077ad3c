//! Documents made from the types. Input: this crate. Output: the files under `schemas/generated/`.

mod asyncapi;
mod body_examples;
mod generate_bodies;
mod generate_examples;
mod message_examples;
mod openapi;
mod ranking_examples;
mod registry;
mod responses_bodies;
mod service_examples;
mod tables;
mod translation_bodies;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::wire::WireError;

pub use openapi::RESPONSES;
pub use registry::{Entry, Example, bodies, messages};

/// The OpenAPI document as it is committed, for serving. [`all`] makes it anew; `portalis-schemas --check` compares.
pub const OPENAPI_JSON: &str = include_str!("../../generated/openapi.json");

/// The command that mends stale documents.
pub const WRITE_COMMAND: &str = "cargo run -q -p schemas --bin portalis-schemas -- --write schemas/generated";

/// One generated file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its path inside the folder of generated files, with `/`.
    pub path: String,
    /// Its whole text.
    pub text: String,
}

/// Why documents could not be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// An example cannot be written.
    #[error("an example cannot be encoded")]
    Example(#[from] WireError),
    /// A JSON text cannot be written.
    #[error("{path} cannot be written as JSON")]
    Json {
        /// Which document.
        path: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Two types of one name differ.
    #[error("two different types are named {name}")]
    SameName {
        /// The name.
        name: String,
    },
    /// A file or folder cannot be read or written.
    #[error("{path} cannot be read or written")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Every document, by path; the same types always give the same bytes.
///
/// # Errors
/// [`DocumentError`] when an example or a schema of this crate is broken, which its tests find.
pub fn all() -> Result<Vec<Document>, DocumentError> {
    let (messages, bodies) = (messages()?, bodies()?);
    let mut documents = vec![
        json("asyncapi.json", asyncapi::document(&messages)?)?,
        json("openapi.json", openapi::document(&bodies)?)?,
        text("errors.md", tables::errors()),
        text("subjects.md", tables::subjects()),
    ];
    for entry in messages.iter().chain(&bodies) {
        let path = format!("json-schema/{}.json", entry.name);
        documents.push(json(&path, entry.json_schema())?);
    }
    documents.sort_by(|a, b| a.path.cmp(&b.path));
    match documents.windows(2).find(|pair| pair[0].path == pair[1].path) {
        Some(pair) => Err(DocumentError::SameName {
            name: pair[0].path.clone(),
        }),
        None => Ok(documents),
    }
}

/// How a folder differs from what it should hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// A file holds something else.
    Stale(String),
    /// A file is not there.
    Missing(String),
    /// A file is there that nothing makes.
    Surplus(String),
}

impl std::fmt::Display for Difference {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stale(path) => write!(formatter, "stale: {path}"),
            Self::Missing(path) => write!(formatter, "missing: {path}"),
            Self::Surplus(path) => write!(formatter, "surplus: {path}"),
        }
    }
}

/// How `folder` differs from the documents.
///
/// # Errors
/// [`DocumentError`].
pub fn check(folder: &Path) -> Result<Vec<Difference>, DocumentError> {
    let documents = all()?;
    let mut differences = Vec::new();
    for document in &documents {
        let path = folder.join(&document.path);
        match fs::read(&path) {
            Ok(bytes) if bytes == document.text.as_bytes() => {}
            Ok(_) => differences.push(Difference::Stale(document.path.clone())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                differences.push(Difference::Missing(document.path.clone()));
            }
            Err(source) => return Err(DocumentError::File { path, source }),
        }
    }
    for path in files_under(folder)? {
        if !documents.iter().any(|document| document.path == path) {
            differences.push(Difference::Surplus(path));
        }
    }
    Ok(differences)
}

/// Makes `folder` hold the documents and nothing else; returns what was changed.
///
/// # Errors
/// [`DocumentError`].
pub fn write(folder: &Path) -> Result<Vec<Difference>, DocumentError> {
    let documents = all()?;
    fs::create_dir_all(folder).map_err(at(folder))?;
    let differences = check(folder)?;
    for difference in &differences {
        match difference {
            Difference::Surplus(path) => {
                let path = folder.join(path);
                fs::remove_file(&path).map_err(at(&path))?;
            }
            Difference::Stale(path) | Difference::Missing(path) => {
                let Some(document) = documents.iter().find(|document| &document.path == path) else {
                    continue;
                };
                let path = folder.join(path);
                let parent = path.parent().unwrap_or(folder);
                fs::create_dir_all(parent).map_err(at(parent))?;
                fs::write(&path, &document.text).map_err(at(&path))?;
            }
        }
    }
    Ok(differences)
}

/// Paths of all files under a folder, relative to it and sorted; none when there is no folder.
fn files_under(folder: &Path) -> Result<Vec<String>, DocumentError> {
    let mut found = Vec::new();
    let mut folders = vec![(folder.to_owned(), String::new())];
    while let Some((path, prefix)) = folders.pop() {
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(DocumentError::File { path, source }),
        };
        for entry in entries {
            let entry = entry.map_err(at(&path))?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type().map_err(at(&path))?.is_dir() {
                folders.push((entry.path(), format!("{name}/")));
            } else {
                found.push(name);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> DocumentError {
    let path = path.to_owned();
    move |source| DocumentError::File { path, source }
}

fn text(path: &str, text: String) -> Document {
    Document {
        path: path.to_owned(),
        text,
    }
}

/// A JSON document: keys sorted, because another crate of the build may switch serde_json to insertion order.
fn json(path: &str, mut value: Value) -> Result<Document, DocumentError> {
    plain_descriptions(&mut value);
    value.sort_all_objects();
    let json = serde_json::to_string_pretty(&value);
    let json = json.map_err(|source| DocumentError::Json {
        path: path.to_owned(),
        source,
    })?;
    Ok(text(path, format!("{json}\n")))
}

/// Turns rustdoc's links (``[`X`]``) in descriptions into plain code.
fn plain_descriptions(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(text) if key == "description" => {
                        *text = text.replace("[`", "`").replace("`]", "`");
                    }
                    _ => plain_descriptions(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(plain_descriptions),
        _ => {}
    }
}
