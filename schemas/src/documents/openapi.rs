//! The public API as OpenAPI 3.1. Input: the body entries and the table of errors. Output: one JSON document.

mod components;
mod operations;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::{DocumentError, Entry};

pub use components::RESPONSES;

pub(super) fn document(bodies: &[Entry]) -> Result<Value, DocumentError> {
    Ok(json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Portalis",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "Embeddings, rankings, chat and completions in the shape of OpenAI's API with the fields of NVIDIA NIM. \
                Unknown fields of a request are refused by name.",
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"x-api-key": []}, {"api-key": []}],
        "paths": operations::paths(bodies),
        "components": {
            "schemas": schemas(bodies)?,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "The API key."},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
            },
            "parameters": components::parameters(),
            "headers": components::response_headers(),
            "responses": components::error_responses(),
        },
    }))
}

/// Schemas of what is read and of what is written: they differ in which fields are needed.
fn schemas(bodies: &[Entry]) -> Result<Map<String, Value>, DocumentError> {
    let settings = || SchemaSettings::draft2020_12().with(|s| s.definitions_path = "/components/schemas".into());
    let mut reading = settings().into_generator();
    let mut writing = settings().for_serialize().into_generator();
    for entry in bodies {
        if entry.is_written() {
            entry.register(&mut writing);
        } else {
            entry.register(&mut reading);
        }
    }
    let mut schemas = reading.take_definitions(true);
    for (name, schema) in writing.take_definitions(true) {
        match schemas.get(&name) {
            Some(other) if *other != schema => return Err(DocumentError::SameName { name }),
            _ => schemas.insert(name, schema),
        };
    }
    Ok(schemas)
}
