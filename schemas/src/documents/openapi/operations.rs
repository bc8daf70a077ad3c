//! The operations of the public API. Input: the body entries. Output: one JSON object per path.

use serde_json::{Map, Value, json};

use super::super::Entry;
use super::components::{error_reference, header_references};

pub(super) fn paths(bodies: &[Entry]) -> Value {
    let get = |id: &str, summary: &str, body: &str| operation(bodies, id, summary, body);
    json!({
        "/v1/embeddings": {"post": embeddings(bodies)},
        "/v1/chat/completions": {"post": chat(bodies)},
        "/v1/completions": {"post": completions(bodies)},
        "/v1/responses": {"post": responses(bodies)},
        "/v1/translations": {"post": translations(bodies)},
        "/v1/ranking": {"post": ranking(bodies)},
        "/v1/rerank": {"post": rerank(bodies)},
        "/v1/tokenize": {"post": tokenize(bodies)},
        "/v1/detokenize": {"post": detokenize(bodies)},
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

/// Statuses of any request with a key.
const WITH_KEY: &[u16] = &[401, 403, 429, 500, 503, 504];

/// Statuses of a request that computes.
const COMPUTING: &[u16] = &[400, 401, 403, 404, 413, 415, 422, 429, 500, 503, 504];

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

fn responses(bodies: &[Entry]) -> Value {
    let about = "Answer a text or a conversation. With `stream` the answer comes as server-sent events named after their \
                 `type`, `response.completed` or `response.incomplete` last, or one `error` and nothing after it. Nothing is \
                 stored. Answers that would be the same again (`temperature` 0) are cached per tenant unless streamed.";
    let operation = operation(
        bodies,
        "createResponse",
        "Answer a text or a conversation.",
        "ResponsesBody",
    );
    let mut operation = computing(bodies, operation, "ResponsesRequest", about);
    operation["responses"]["200"]["content"]["text/event-stream"] = content(bodies, "ResponsesEvent");
    operation
}

fn ranking(bodies: &[Entry]) -> Value {
    let about = "Say how well passages answer a query, the best first, with the model's raw scores. Answers are cached per \
                 tenant; identical requests in flight are computed once.";
    let operation = operation(bodies, "createRanking", "Rank passages.", "RankingResponse");
    computing(bodies, operation, "RankingRequest", about)
}

fn rerank(bodies: &[Entry]) -> Value {
    let about = "The same in the shape of Cohere and Jina, with scores from 0 to 1. Documents that are too long are cut \
                 unless `truncate` says otherwise. Shares its cache with `/v1/ranking`.";
    let operation = operation(bodies, "createRerank", "Rank documents.", "RerankResponse");
    computing(bodies, operation, "RerankRequest", about)
}

fn tokenize(bodies: &[Entry]) -> Value {
    let about = "Which tokens a text or a conversation is, by the model's own tokenizer. It counts towards the key's request \
                 limit and costs nothing.";
    let operation = operation(bodies, "tokenize", "Text to tokens.", "TokenizeResponse");
    asking(bodies, operation, "TokenizeRequest", about)
}

fn detokenize(bodies: &[Entry]) -> Value {
    let about = "Which text token ids are, by the model's own tokenizer. It counts towards the key's request limit and costs \
                 nothing.";
    let operation = operation(bodies, "detokenize", "Tokens to text.", "DetokenizeResponse");
    asking(bodies, operation, "DetokenizeRequest", about)
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
    let mut operation = asking(bodies, operation, body, about);
    if let Some(parameters) = operation["parameters"].as_array_mut() {
        parameters.push(json!({"$ref": "#/components/parameters/cache-control"}));
    }
    operation["responses"]["200"]["headers"] = header_references(&[
        "x-request-id",
        "x-portalis-cache",
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
    ]);
    operation
}

/// Adds body, headers and errors of a request that a worker answers.
fn asking(bodies: &[Entry], operation: Value, body: &str, about: &str) -> Value {
    let mut operation = with_key(operation, COMPUTING);
    operation["description"] = json!(about);
    let parameters = ["traceparent", "x-portalis-timeout-ms", "x-request-timeout-ms"];
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
