//! The public API as OpenAPI 3.1. Input: the body entries and the table of errors. Output: one JSON document.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::tables::meaning;
use super::{DocumentError, Entry};
use crate::error::ErrorCode;

/// Which codes come with which HTTP status, for the document. The gateway's `http/error.rs` decides; its tests compare.
pub const RESPONSES: &[(u16, &[ErrorCode])] = &[
    (
        400,
        &[
            ErrorCode::InvalidJson,
            ErrorCode::InvalidField,
            ErrorCode::InputTooLong,
            ErrorCode::UnsupportedWork,
        ],
    ),
    (
        401,
        &[ErrorCode::MissingKey, ErrorCode::InvalidKey, ErrorCode::Unauthorized],
    ),
    (403, &[ErrorCode::Forbidden]),
    (404, &[ErrorCode::ModelNotFound, ErrorCode::NotFound]),
    (405, &[ErrorCode::MethodNotAllowed]),
    (408, &[ErrorCode::Cancelled]),
    (413, &[ErrorCode::BodyTooLarge]),
    (415, &[ErrorCode::UnsupportedMediaType]),
    (422, &[ErrorCode::ExtraForbidden]),
    (429, &[ErrorCode::RateLimited, ErrorCode::TenantQueueFull]),
    (500, &[ErrorCode::Poisoned, ErrorCode::Internal]),
    (
        503,
        &[ErrorCode::QueueFull, ErrorCode::NoWorker, ErrorCode::Unavailable],
    ),
    (504, &[ErrorCode::DeadlineExceeded]),
];

/// Statuses of any request with a key.
const WITH_KEY: &[u16] = &[401, 403, 429, 500, 503, 504];
/// Statuses of a request that computes.
const COMPUTING: &[u16] = &[400, 401, 403, 404, 413, 415, 422, 429, 500, 503, 504];

/// Headers of answers: name, type, what it says.
const RESPONSE_HEADERS: &[(&str, &str, &str)] = &[
    (
        "x-request-id",
        "string",
        "Id of the request: the client's own if it sent one, else made by the gateway. Name it in reports.",
    ),
    (
        "x-portalis-cache",
        "string",
        "`hit`: answered from the cache; `miss`: computed; `coalesced`: answered by an identical request in flight.",
    ),
    (
        "x-ratelimit-limit-requests",
        "integer",
        "Requests per minute that the key may send.",
    ),
    (
        "x-ratelimit-remaining-requests",
        "integer",
        "Requests that the key may send now.",
    ),
    (
        "x-ratelimit-reset-requests",
        "string",
        "When the limit is whole again, e.g. `6m0s`.",
    ),
    (
        "retry-after",
        "integer",
        "Seconds to wait before the same request may succeed.",
    ),
    ("retry-after-ms", "integer", "The same in milliseconds."),
];

pub(super) fn document(bodies: &[Entry]) -> Result<Value, DocumentError> {
    Ok(json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Portalis",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "Embeddings, chat and completions in the shape of OpenAI's API with the fields of NVIDIA NIM. \
                Unknown fields of a request are refused by name.",
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"x-api-key": []}, {"api-key": []}],
        "paths": paths(bodies),
        "components": {
            "schemas": schemas(bodies)?,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "The API key."},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
            },
            "parameters": parameters(),
            "headers": response_headers(),
            "responses": error_responses(),
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

fn paths(bodies: &[Entry]) -> Value {
    let get = |id: &str, summary: &str, body: &str| operation(bodies, id, summary, body);
    json!({
        "/v1/embeddings": {"post": embeddings(bodies)},
        "/v1/chat/completions": {"post": chat(bodies)},
        "/v1/completions": {"post": completions(bodies)},
        "/v1/translations": {"post": translations(bodies)},
        "/v1/models": {"get": with_key(get("listModels", "The models that the key may use.", "ModelList"), WITH_KEY)},
        "/v1/models/{model}": {"get": one_model(get("getModel", "One model.", "ModelObject"))},
        "/v1/usage": {"get": usage(get("getUsage", "What the key used and what it cost.", "UsageBody"))},
        "/v1/health/live": {"get": open(get("live", "Whether the process works.", "HealthBody"))},
        "/v1/health/ready": {"get": ready(open(get("ready", "Whether requests can be answered.", "HealthBody")))},
        "/v1/metadata": {"get": open(get("metadata", "What is served, as NIM says it.", "MetadataBody"))},
        "/v1/version": {"get": open(get("version", "Versions of the program and the API.", "VersionBody"))},
        "/v1/metrics": {"get": open(plain("metrics", "Metrics in Prometheus' text format.", "text/plain"))},
        "/openapi.json": {"get": open(plain("openapi", "This document.", "application/json"))},
    })
}

fn operation(bodies: &[Entry], id: &str, summary: &str, body: &str) -> Value {
    json!({
        "operationId": id,
        "summary": summary,
        "parameters": [{"$ref": "#/components/parameters/traceparent"}],
        "responses": {"200": {
            "description": summary,
            "headers": header_references(&["x-request-id"]),
            "content": {"application/json": content(bodies, body)},
        }},
    })
}

fn plain(id: &str, summary: &str, media_type: &str) -> Value {
    json!({
        "operationId": id,
        "summary": summary,
        "responses": {"200": {"description": summary, "content": {media_type: {}}}},
    })
}

fn embeddings(bodies: &[Entry]) -> Value {
    let about = "One vector per input. Answers are cached per tenant; identical requests in flight are computed once.";
    let operation = operation(bodies, "createEmbeddings", "Embed texts.", "EmbeddingsResponse");
    computing(bodies, operation, "EmbeddingsRequest", about)
}

fn chat(bodies: &[Entry]) -> Value {
    let about = "Answer a conversation. With `stream` the answer comes as server-sent events: one `ChatChunk` each, \
                 comments while nothing happens, `data: [DONE]` at the end, or one `StreamErrorBody` and nothing after it. \
                 Answers that would be the same again (`temperature` 0 or a `seed`) are cached per tenant unless streamed.";
    let operation = operation(
        bodies,
        "createChatCompletion",
        "Answer a conversation.",
        "ChatCompletion",
    );
    streamed(bodies, computing(bodies, operation, "ChatRequest", about), "ChatChunk")
}

fn completions(bodies: &[Entry]) -> Value {
    let about = "Go on from a text. With `stream` the answer comes as server-sent events, each in the shape of the whole \
                 answer, as for chat. Answers that would be the same again are cached per tenant unless streamed.";
    let operation = operation(bodies, "createCompletion", "Go on from a text.", "TextCompletion");
    streamed(
        bodies,
        computing(bodies, operation, "CompletionsRequest", about),
        "TextCompletion",
    )
}

fn translations(bodies: &[Entry]) -> Value {
    let about = "Translate a Python module to Rust. Each top-level function is one question to the model, which counts, is \
                 cached and is charged as a chat request with `temperature` 0 of its own; all else is told in `items` and \
                 stands as a comment in the file. Answers have to parse as Rust; nothing is compiled or run here. With \
                 `stream` each statement comes as a `TranslationEvent` as soon as its fate is known, then the whole as a \
                 `Translation`, then `data: [DONE]`.";
    let operation = operation(
        bodies,
        "createTranslation",
        "Translate a Python module to Rust.",
        "Translation",
    );
    streamed(
        bodies,
        computing(bodies, operation, "TranslationRequest", about),
        "TranslationEvent",
    )
}

/// Says that the answer may come as events.
fn streamed(bodies: &[Entry], mut operation: Value, chunk: &str) -> Value {
    let mut events = content(bodies, chunk);
    events["x-portalis-error-event"] = json!({"$ref": "#/components/schemas/StreamErrorBody"});
    operation["responses"]["200"]["content"]["text/event-stream"] = events;
    operation
}

/// Adds body, headers and errors of a request that computes.
fn computing(bodies: &[Entry], operation: Value, body: &str, about: &str) -> Value {
    let mut operation = with_key(operation, COMPUTING);
    operation["description"] = json!(about);
    let parameters = [
        "traceparent",
        "x-portalis-timeout-ms",
        "x-request-timeout-ms",
        "cache-control",
    ];
    operation["parameters"] = parameters
        .iter()
        .map(|name| json!({"$ref": format!("#/components/parameters/{name}")}))
        .collect();
    operation["requestBody"] = json!({
        "required": true,
        "content": {"application/json": content(bodies, body)},
    });
    operation["responses"]["200"]["headers"] = header_references(&[
        "x-request-id",
        "x-portalis-cache",
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
    ]);
    operation
}

fn usage(operation: Value) -> Value {
    let mut operation = with_key(operation, &[400, 401, 403, 429, 500, 503, 504]);
    if let Some(parameters) = operation["parameters"].as_array_mut() {
        let query = ["start_time", "end_time"];
        parameters.extend(query.map(|name| json!({"$ref": format!("#/components/parameters/{name}")})));
    }
    operation
}

fn one_model(operation: Value) -> Value {
    let mut operation = with_key(operation, WITH_KEY);
    operation["responses"]["404"] = error_reference(404);
    if let Some(parameters) = operation["parameters"].as_array_mut() {
        parameters.push(json!({
            "name": "model",
            "in": "path",
            "required": true,
            "schema": {"type": "string"},
            "description": "The model's name.",
        }));
    }
    operation
}

/// Adds the errors of a request that needs a key.
fn with_key(mut operation: Value, statuses: &[u16]) -> Value {
    for status in statuses {
        operation["responses"][status.to_string()] = error_reference(*status);
    }
    operation
}

/// Says that no key is needed.
fn open(mut operation: Value) -> Value {
    operation["security"] = json!([]);
    operation
}

fn ready(mut operation: Value) -> Value {
    operation["responses"]["503"] = json!({
        "description": "Not ready.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/HealthBody"}}},
    });
    operation
}

fn content(bodies: &[Entry], name: &str) -> Value {
    let examples = bodies.iter().filter(|entry| entry.name == name);
    let examples: Map<String, Value> = examples
        .flat_map(|entry| &entry.examples)
        .map(|example| {
            let name = if example.name.is_empty() { "plain" } else { example.name };
            // A client leaves out what it does not set; `null` reads the same.
            (name.to_owned(), json!({"value": without_nulls(&example.json)}))
        })
        .collect();
    json!({"schema": {"$ref": format!("#/components/schemas/{name}")}, "examples": examples})
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), without_nulls(value)))
            .collect(),
        other => other.clone(),
    }
}

fn parameters() -> Value {
    let header = |name: &str, schema: Value, about: &str| json!({"name": name, "in": "header", "required": false, "schema": schema, "description": about});
    let seconds = |name: &str, about: &str| {
        let schema = json!({"type": "integer", "minimum": 0});
        json!({"name": name, "in": "query", "required": false, "schema": schema, "description": about})
    };
    json!({
        "traceparent": header(
            "traceparent",
            json!({"type": "string"}),
            "W3C trace context; the request becomes a part of that trace.",
        ),
        "start_time": seconds("start_time", "From this Unix second, rounded down to the hour."),
        "end_time": seconds("end_time", "Up to this Unix second, rounded up to the hour."),
        "x-portalis-timeout-ms": header(
            "x-portalis-timeout-ms",
            json!({"type": "integer", "minimum": 1}),
            "How long the client waits, in milliseconds; the work is dropped after that.",
        ),
        "x-request-timeout-ms": header(
            "x-request-timeout-ms",
            json!({"type": "integer", "minimum": 1}),
            "The same under the name that other servers use; `x-portalis-timeout-ms` counts when both are sent.",
        ),
        "cache-control": header(
            "Cache-Control",
            json!({"type": "string"}),
            "`no-cache`: do not answer from the cache; `no-store`: do not keep the answer either.",
        ),
    })
}

fn response_headers() -> Map<String, Value> {
    RESPONSE_HEADERS
        .iter()
        .map(|(name, kind, about)| {
            (
                (*name).to_owned(),
                json!({"description": about, "schema": {"type": kind}}),
            )
        })
        .collect()
}

fn header_references(names: &[&str]) -> Value {
    names
        .iter()
        .map(|name| {
            (
                (*name).to_owned(),
                json!({"$ref": format!("#/components/headers/{name}")}),
            )
        })
        .collect::<Map<_, _>>()
        .into()
}

fn error_reference(status: u16) -> Value {
    json!({"$ref": format!("#/components/responses/error-{status}")})
}

fn error_responses() -> Map<String, Value> {
    RESPONSES
        .iter()
        .map(|(status, codes)| (format!("error-{status}"), error_response(*status, codes)))
        .collect()
}

fn error_response(status: u16, codes: &[ErrorCode]) -> Value {
    let about: Vec<String> = codes
        .iter()
        .map(|code| format!("`{}`: {}", code.as_str(), meaning(*code)))
        .collect();
    let examples: Map<String, Value> = codes
        .iter()
        .map(|code| (code.as_str().to_owned(), json!({"value": error_example(*code)})))
        .collect();
    let headers: &[&str] = match status {
        429 => &[
            "x-request-id",
            "retry-after",
            "retry-after-ms",
            "x-ratelimit-limit-requests",
            "x-ratelimit-remaining-requests",
            "x-ratelimit-reset-requests",
        ],
        503 => &["x-request-id", "retry-after", "retry-after-ms"],
        _ => &["x-request-id"],
    };
    json!({
        "description": about.join("\n"),
        "headers": header_references(headers),
        "content": {"application/json": {
            "schema": {"$ref": "#/components/schemas/ErrorBody"},
            "examples": examples,
        }},
    })
}

fn error_example(code: ErrorCode) -> Value {
    let param = match code {
        ErrorCode::InvalidField | ErrorCode::InputTooLong => Some("input"),
        ErrorCode::ExtraForbidden => Some("temprature"),
        ErrorCode::ModelNotFound | ErrorCode::Forbidden => Some("model"),
        _ => None,
    };
    json!({"error": {
        "message": meaning(code),
        "type": code.help().kind,
        "param": param,
        "code": code.as_str(),
    }})
}
