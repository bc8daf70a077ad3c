//! Request bodies. Input: an HTTP body with its headers. Output: a typed value, or a failure that names the field.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use schemas::error::{ErrorCode, Failure};
use serde::de::DeserializeOwned;

/// Reads a whole body within limits of size and time.
///
/// # Errors
/// `unsupported_media_type`, `body_too_large` or `deadline_exceeded`.
pub async fn read(headers: &HeaderMap, body: Body, limit_bytes: usize, limit: Duration) -> Result<Bytes, Failure> {
    check_media_type(headers)?;
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit_bytes) {
        return Err(too_large(limit_bytes));
    }
    match tokio::time::timeout(limit, Limited::new(body, limit_bytes).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.downcast_ref::<http_body_util::LengthLimitError>().is_some() => {
            Err(too_large(limit_bytes))
        }
        Ok(Err(_)) => Err(Failure::new(
            ErrorCode::InvalidJson,
            "the body ended before its announced length",
        )),
        Err(_) => Err(Failure::new(
            ErrorCode::DeadlineExceeded,
            format!("the body did not arrive within {} ms", limit.as_millis()),
        )),
    }
}

fn too_large(limit_bytes: usize) -> Failure {
    Failure::new(
        ErrorCode::BodyTooLarge,
        format!("the body is over the limit of {limit_bytes} bytes; send fewer or shorter inputs in one request"),
    )
}

fn check_media_type(headers: &HeaderMap) -> Result<(), Failure> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(()); // Clients that leave it out mean JSON; the parser decides.
    };
    let essence = value
        .to_str()
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim();
    if essence.eq_ignore_ascii_case("application/json") {
        Ok(())
    } else {
        let message = format!("content type {essence:?} is not supported; send application/json");
        Err(Failure::new(ErrorCode::UnsupportedMediaType, message))
    }
}

/// Reads JSON, naming the field at fault.
///
/// # Errors
/// `invalid_json`, `invalid_field` or `extra_forbidden`.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    // Tracking the path costs time, so it is done only for bodies that are known to be bad.
    serde_json::from_slice(body).or_else(|_| parse_tracking_path(body))
}

fn parse_tracking_path<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| explain(&error))?;
    deserializer
        .end()
        .map_err(|error| Failure::new(ErrorCode::InvalidJson, format!("body is not valid JSON: {error}")))?;
    Ok(value)
}

fn explain(error: &serde_path_to_error::Error<serde_json::Error>) -> Failure {
    let inner = error.inner();
    if !inner.is_data() {
        return Failure::new(ErrorCode::InvalidJson, format!("body is not valid JSON: {inner}"));
    }
    let text = without_position(&inner.to_string());
    let path = error.path().to_string();
    if let Some(field) = quoted_after(&text, "unknown field ") {
        let message = format!("Extra inputs are not permitted: unknown field '{field}' (extra_forbidden)");
        return Failure::new(ErrorCode::ExtraForbidden, message).param(field);
    }
    if let Some(field) = quoted_after(&text, "missing field ") {
        return Failure::new(ErrorCode::InvalidField, format!("field '{field}' is required")).param(field);
    }
    if path == "." {
        return Failure::new(
            ErrorCode::InvalidField,
            format!("the body must be a JSON object: {text}"),
        );
    }
    Failure::new(ErrorCode::InvalidField, format!("invalid '{path}': {text}")).param(path)
}

/// The text without serde_json's position, which the path already says.
fn without_position(text: &str) -> String {
    text.rsplit_once(" at line ")
        .map_or_else(|| text.to_owned(), |(head, _)| head.to_owned())
}

fn quoted_after<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    text.strip_prefix(prefix)?.strip_prefix('`')?.split('`').next()
}

#[cfg(test)]
mod tests {
    use schemas::http::EmbeddingsRequest;

    use super::*;

    fn failure(body: &str) -> (ErrorCode, Option<String>, String) {
        let failure = parse::<EmbeddingsRequest>(body.as_bytes()).unwrap_err();
        (failure.code, failure.param, failure.message)
    }

    #[test]
    fn bad_bodies_name_the_field() {
        use ErrorCode::{ExtraForbidden, InvalidField, InvalidJson};
        let cases: [(&str, ErrorCode, Option<&str>); 11] = [
            ("", InvalidJson, None),
            ("{", InvalidJson, None),
            (r#"{"model":"m","input":"a"} x"#, InvalidJson, None),
            ("\"text\"", InvalidField, None),
            (r#"{"input":"a"}"#, InvalidField, Some("model")),
            (r#"{"model":"m"}"#, InvalidField, Some("input")),
            (r#"{"model":1,"input":"a"}"#, InvalidField, Some("model")),
            (r#"{"model":"m","input":{}}"#, InvalidField, Some("input")),
            (
                r#"{"model":"m","input":"a","encoding_format":"hex"}"#,
                InvalidField,
                Some("encoding_format"),
            ),
            (
                r#"{"model":"m","input":"a","truncate":"MIDDLE"}"#,
                InvalidField,
                Some("truncate"),
            ),
            (
                r#"{"model":"m","input":"a","temperature":1}"#,
                ExtraForbidden,
                Some("temperature"),
            ),
        ];
        for (body, code, param) in cases {
            let (actual, actual_param, message) = failure(body);
            assert_eq!((actual, actual_param.as_deref()), (code, param), "{body}: {message}");
            assert!(!message.contains(" at line ") || code == InvalidJson, "{message}");
        }
        let (_, param, message) = failure(r#"{"model":"m","input":["a",7]}"#);
        assert_eq!(param.as_deref(), Some("input"));
        assert!(message.contains("element 1"), "{message}");
    }

    #[tokio::test]
    async fn size_and_media_type_are_bounded() {
        let json = HeaderMap::from_iter([(header::CONTENT_TYPE, "application/json; charset=utf-8".parse().unwrap())]);
        let limit = Duration::from_secs(5);
        let body = read(&json, Body::from("12345"), 5, limit).await.unwrap();
        assert_eq!(&body[..], b"12345");
        let over = read(&json, Body::from("123456"), 5, limit).await.unwrap_err();
        assert_eq!(over.code, ErrorCode::BodyTooLarge);
        assert!(over.message.contains("5 bytes"));
        let text = HeaderMap::from_iter([(header::CONTENT_TYPE, "text/plain".parse().unwrap())]);
        let refused = read(&text, Body::from("1"), 5, limit).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::UnsupportedMediaType);
    }
}
