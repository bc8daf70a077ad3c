//! Failures as HTTP. Input: a [`Failure`]. Output: status, OpenAI's error envelope, `Retry-After`.
//! The only place of the mesh where an error code meets an HTTP status.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemas::error::{ErrorCode, Failure};
use schemas::http::{ErrorBody, ErrorObject, StreamErrorBody, StreamErrorObject};

/// Wait that is named when a retryable failure does not name one, in milliseconds.
const DEFAULT_RETRY_AFTER_MS: u64 = 1_000;

/// A failure on its way to a client.
#[derive(Debug)]
pub struct HttpError(pub Failure);

impl From<Failure> for HttpError {
    fn from(failure: Failure) -> Self {
        Self(failure)
    }
}

/// The status of each code.
#[must_use]
pub fn status(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::InvalidJson | ErrorCode::InvalidField | ErrorCode::InputTooLong | ErrorCode::UnsupportedWork => {
            StatusCode::BAD_REQUEST
        }
        // NIM's validator answers unknown fields with 422, "extra_forbidden".
        ErrorCode::ExtraForbidden => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorCode::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ErrorCode::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::MissingKey | ErrorCode::InvalidKey | ErrorCode::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorCode::Forbidden => StatusCode::FORBIDDEN,
        ErrorCode::ModelNotFound | ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        ErrorCode::RateLimited | ErrorCode::TenantQueueFull => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::QueueFull | ErrorCode::NoWorker | ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        // Nobody reads it: the client has left. 408 is what a proxy in between would log.
        ErrorCode::Cancelled => StatusCode::REQUEST_TIMEOUT,
        ErrorCode::Poisoned | ErrorCode::Internal | ErrorCode::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Whether a client should hear when to come back.
fn names_wait(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::SERVICE_UNAVAILABLE
}

/// A failure in the middle of a stream, where there is no status any more: readable by clients that look for an error
/// object and by those that look for any `error`.
#[must_use]
pub fn in_stream(failure: Failure) -> StreamErrorBody {
    StreamErrorBody {
        error: StreamErrorObject {
            object: "error".to_owned(),
            message: failure.message,
            kind: failure.code.help().kind.to_owned(),
            param: failure.param,
            code: Some(failure.code.as_str().to_owned()),
        },
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let Self(failure) = self;
        let status = status(failure.code);
        let body = ErrorBody {
            error: ErrorObject {
                message: failure.message,
                kind: failure.code.help().kind.to_owned(),
                param: failure.param,
                code: Some(failure.code.as_str().to_owned()),
            },
        };
        let mut response = (status, Json(body)).into_response();
        if names_wait(status) {
            let wait_ms = failure.retry_after_ms.unwrap_or(DEFAULT_RETRY_AFTER_MS).max(1);
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait_ms.div_ceil(1_000)));
            headers.insert("retry-after-ms", HeaderValue::from(wait_ms));
        }
        if status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use schemas::error::ERRORS;

    use super::*;

    #[test]
    fn every_code_is_an_error_and_retryable_ones_are_never_plain_client_faults() {
        for row in ERRORS {
            let status = status(row.code);
            assert!(status.is_client_error() || status.is_server_error(), "{:?}", row.code);
            assert_ne!(status, StatusCode::NOT_IMPLEMENTED, "SDKs retry 501");
            if names_wait(status) {
                assert!(row.retryable, "{:?}", row.code);
            }
        }
    }

    #[test]
    fn the_published_document_names_the_same_statuses() {
        for (documented, codes) in schemas::documents::RESPONSES {
            for code in *codes {
                assert_eq!(status(*code).as_u16(), *documented, "{code:?}");
            }
        }
        let documented: usize = schemas::documents::RESPONSES.iter().map(|(_, codes)| codes.len()).sum();
        assert_eq!(documented, ERRORS.len(), "every code is documented once");
    }

    #[test]
    fn waits_round_up_to_whole_seconds() {
        let failure = Failure::new(ErrorCode::RateLimited, "slow down").retry_after_ms(1_200);
        let response = HttpError(failure).into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
        assert_eq!(response.headers()["retry-after-ms"], "1200");
    }
}
