//! What operations of the public API share. Input: the table of errors. Output: parameters, headers and error responses, and
//! references to them.

use serde_json::{Map, Value, json};

use super::super::tables::meaning;
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

pub(super) fn parameters() -> Value {
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

pub(super) fn response_headers() -> Map<String, Value> {
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

pub(super) fn header_references(names: &[&str]) -> Value {
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

pub(super) fn error_reference(status: u16) -> Value {
    json!({"$ref": format!("#/components/responses/error-{status}")})
}

pub(super) fn error_responses() -> Map<String, Value> {
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
