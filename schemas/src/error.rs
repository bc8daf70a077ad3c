//! The closed set of failures a caller can see. Input: nothing. Output: codes with their type, retryability and help.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a request failed. The HTTP status of each is chosen in the gateway's `http/error.rs`, nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The body is not JSON.
    InvalidJson,
    /// A field is missing or has a wrong type or value; `param` names it.
    InvalidField,
    /// A field is not known; `param` names it.
    ExtraForbidden,
    /// An input is longer than the model takes and `truncate` is `NONE`.
    InputTooLong,
    /// The body's media type is not supported.
    UnsupportedMediaType,
    /// The body is larger than the gateway takes.
    BodyTooLarge,
    /// No API key came with the request.
    MissingKey,
    /// The API key is not known, malformed, disabled or expired.
    InvalidKey,
    /// The key may not use this model or operation.
    Forbidden,
    /// No such model.
    ModelNotFound,
    /// No such path.
    NotFound,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// The key's request limit is reached.
    RateLimited,
    /// The tenant has as much work queued for this model as one tenant may have.
    TenantQueueFull,
    /// The model's queue is full.
    QueueFull,
    /// No worker serves the model now.
    NoWorker,
    /// A part of the mesh that the request needs is away.
    Unavailable,
    /// The deadline passed before the answer.
    DeadlineExceeded,
    /// The client left; the work was stopped.
    Cancelled,
    /// The work failed on every attempt and lies in the dead-letter stream.
    Poisoned,
    /// The work could not be read or is of a kind the worker does not know.
    UnsupportedWork,
    /// The identity on the work is missing, expired or does not match.
    Unauthorized,
    /// A fault of ours.
    Internal,
    /// A code newer than this program.
    #[serde(other)]
    Unknown,
}

/// One row of the error page: code, OpenAI type, whether the same request may succeed later, help.
pub struct ErrorHelp {
    /// The code.
    pub code: ErrorCode,
    /// OpenAI's `error.type`.
    pub kind: &'static str,
    /// Whether the same request may succeed when sent again.
    pub retryable: bool,
    /// What the caller may do.
    pub help: &'static str,
}

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

const fn row(code: ErrorCode, kind: &'static str, retryable: bool, help: &'static str) -> ErrorHelp {
    ErrorHelp {
        code,
        kind,
        retryable,
        help,
    }
}

/// Every code, in the order of the generated page.
pub const ERRORS: &[ErrorHelp] = &[
    row(
        ErrorCode::InvalidJson,
        INVALID,
        false,
        "Send a body that is valid JSON.",
    ),
    row(
        ErrorCode::InvalidField,
        INVALID,
        false,
        "Correct the field that `param` names.",
    ),
    row(
        ErrorCode::ExtraForbidden,
        INVALID,
        false,
        "Leave out the field that `param` names.",
    ),
    row(
        ErrorCode::InputTooLong,
        INVALID,
        false,
        "Shorten the input or set `truncate` to START or END.",
    ),
    row(
        ErrorCode::UnsupportedMediaType,
        INVALID,
        false,
        "Send `Content-Type: application/json`.",
    ),
    row(
        ErrorCode::BodyTooLarge,
        INVALID,
        false,
        "Send fewer or shorter inputs in one request.",
    ),
    row(
        ErrorCode::MissingKey,
        "authentication_error",
        false,
        "Send `Authorization: Bearer <key>`, `x-api-key` or `api-key`.",
    ),
    row(
        ErrorCode::InvalidKey,
        "authentication_error",
        false,
        "Check the key; ask its owner whether it was disabled.",
    ),
    row(
        ErrorCode::Forbidden,
        "permission_error",
        false,
        "Use a model that GET /v1/models lists for this key.",
    ),
    row(
        ErrorCode::ModelNotFound,
        INVALID,
        false,
        "Use a model that GET /v1/models lists.",
    ),
    row(
        ErrorCode::NotFound,
        INVALID,
        false,
        "Check the path; /openapi.json lists all.",
    ),
    row(
        ErrorCode::MethodNotAllowed,
        INVALID,
        false,
        "Use a method that the Allow header lists.",
    ),
    row(
        ErrorCode::RateLimited,
        "rate_limit_error",
        true,
        "Wait as long as Retry-After says.",
    ),
    row(
        ErrorCode::TenantQueueFull,
        "rate_limit_error",
        true,
        "Wait as long as Retry-After says, or send less at once.",
    ),
    row(ErrorCode::QueueFull, SERVER, true, "Wait as long as Retry-After says."),
    row(
        ErrorCode::NoWorker,
        SERVER,
        true,
        "Wait as long as Retry-After says; operators: start a worker for the model.",
    ),
    row(
        ErrorCode::Unavailable,
        SERVER,
        true,
        "Wait as long as Retry-After says.",
    ),
    row(
        ErrorCode::DeadlineExceeded,
        "timeout_error",
        true,
        "Send less at once or allow more time with x-portalis-timeout-ms.",
    ),
    row(
        ErrorCode::Cancelled,
        INVALID,
        true,
        "Nothing; the client closed the connection.",
    ),
    row(
        ErrorCode::Poisoned,
        SERVER,
        false,
        "Report the request id; operators: portalis dead list.",
    ),
    row(
        ErrorCode::UnsupportedWork,
        INVALID,
        false,
        "Send a task that the worker's version knows.",
    ),
    row(
        ErrorCode::Unauthorized,
        "authentication_error",
        false,
        "Resolve the key again and send the fresh identity.",
    ),
    row(
        ErrorCode::Internal,
        SERVER,
        true,
        "Send the request again; report the request id when it lasts.",
    ),
];

impl ErrorCode {
    /// The code's row on the error page; unknown codes read as [`ErrorCode::Internal`].
    #[must_use]
    pub fn help(self) -> &'static ErrorHelp {
        const INTERNAL: &ErrorHelp = &ERRORS[ERRORS.len() - 1];
        ERRORS.iter().find(|row| row.code == self).unwrap_or(INTERNAL)
    }

    /// The code as it stands in messages, e.g. `model_not_found`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::InvalidField => "invalid_field",
            Self::ExtraForbidden => "extra_forbidden",
            Self::InputTooLong => "input_too_long",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::BodyTooLarge => "body_too_large",
            Self::MissingKey => "missing_key",
            Self::InvalidKey => "invalid_key",
            Self::Forbidden => "forbidden",
            Self::ModelNotFound => "model_not_found",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::RateLimited => "rate_limited",
            Self::TenantQueueFull => "tenant_queue_full",
            Self::QueueFull => "queue_full",
            Self::NoWorker => "no_worker",
            Self::Unavailable => "unavailable",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Cancelled => "cancelled",
            Self::Poisoned => "poisoned",
            Self::UnsupportedWork => "unsupported_work",
            Self::Unauthorized => "unauthorized",
            Self::Internal => "internal",
            Self::Unknown => "unknown",
        }
    }
}

/// A failure as it crosses the bus: the code, a text for the client (never internals) and the field at fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Why.
    pub code: ErrorCode,
    /// One sentence for the client.
    pub message: String,
    /// The field at fault, as a path (`input[3]`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub param: Option<String>,
    /// When to try again, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl Failure {
    /// A failure without a field or a wait.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            param: None,
            retry_after_ms: None,
        }
    }

    /// The same, naming the field at fault.
    #[must_use]
    pub fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// The same, saying when to try again.
    #[must_use]
    pub fn retry_after_ms(mut self, retry_after_ms: u64) -> Self {
        self.retry_after_ms = Some(retry_after_ms);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_help_and_its_wire_name() {
        for row in ERRORS {
            let json = serde_json::to_value(row.code).unwrap();
            assert_eq!(json, row.code.as_str());
            assert_eq!(row.code.help().code, row.code);
        }
        let newer: ErrorCode = serde_json::from_str("\"of_the_future\"").unwrap();
        assert_eq!(newer, ErrorCode::Unknown);
        assert_eq!(newer.help().code, ErrorCode::Internal);
    }
}
