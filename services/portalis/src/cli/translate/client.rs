//! Questions to a gateway over HTTP. Input: its base URL, a key, a model and messages. Output: the model's text, or why there is
//! none and whether another question could end better.

use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use schemas::error::ErrorCode;
use schemas::generate::FinishReason;
use schemas::http::{ChatCompletion, ErrorBody, ErrorObject};
use serde::Serialize;
use tokio::net::TcpStream;
use translate::{AskError, Message, Said};

/// Longest wait for a connection: the gateway runs, or it does not.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest time that the mesh may take for one answer: minutes for a long function on a slow machine.
const ANSWER_TIMEOUT_MS: u64 = 300_000;
/// Longest wait for one answer: the mesh says by itself when it took too long.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(ANSWER_TIMEOUT_MS + 10_000);
/// Longest answer: far more than any function.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// How often a question is sent when the mesh is full: with the longest waits, five minutes.
const MAX_SENDS: u32 = 10;
/// Longest wait that the mesh may ask for before the next try.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
/// What is waited when the mesh does not say.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);

/// A gateway, a key and a model.
#[derive(Debug, Clone)]
pub(super) struct Client {
    address: String,
    path: String,
    key: String,
    model: String,
}

#[derive(Serialize)]
struct Question<'a> {
    model: &'a str,
    messages: &'a [Message],
    /// Always the likeliest word: the same function gives the same Rust, and the mesh may keep it.
    temperature: f32,
}

/// One try.
enum Try {
    Said(Said),
    Refused {
        error: AskError,
        retry_after: Option<Duration>,
    },
}

impl Client {
    /// A client of the gateway at this base URL, which ends in `/v1`.
    pub(super) fn new(base_url: &str, key: String, model: String) -> anyhow::Result<Self> {
        let uri: Uri = base_url.parse().with_context(|| format!("{base_url} is no URL"))?;
        ensure!(
            uri.scheme_str() == Some("http"),
            "{base_url} is no http:// URL; for https put a proxy on this machine"
        );
        let host = uri.host().with_context(|| format!("{base_url} names no host"))?;
        ensure!(
            key.bytes().all(|byte| byte.is_ascii_graphic()) && !key.is_empty(),
            "the API key is empty or holds characters that no key has"
        );
        Ok(Self {
            address: format!("{host}:{}", uri.port_u16().unwrap_or(80)),
            path: format!("{}/chat/completions", uri.path().trim_end_matches('/')),
            key,
            model,
        })
    }

    /// Asks the model; waits and asks again while the mesh is full.
    pub(super) async fn ask(&self, messages: Vec<Message>) -> Result<Said, AskError> {
        let mut sends = 0;
        loop {
            sends += 1;
            let answered = tokio::time::timeout(ANSWER_TIMEOUT, self.send(&messages)).await;
            let tried = answered.map_err(|_| anyhow!("no answer in {ANSWER_TIMEOUT:?}"));
            let (error, retry_after) = match tried.flatten() {
                Ok(Try::Said(said)) => return Ok(said),
                Ok(Try::Refused { error, retry_after }) => (error, retry_after),
                Err(error) => {
                    let message = format!("{} does not answer: {error:#}", self.address);
                    return Err(AskError { message, fatal: true });
                }
            };
            match retry_after {
                Some(wait) if sends < MAX_SENDS => tokio::time::sleep(wait.min(MAX_RETRY_AFTER)).await,
                _ => return Err(error),
            }
        }
    }

    async fn send(&self, messages: &[Message]) -> anyhow::Result<Try> {
        let body = serde_json::to_vec(&Question {
            model: &self.model,
            messages,
            temperature: 0.0,
        })?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.path)
            .header(HOST, &self.address)
            .header(AUTHORIZATION, format!("Bearer {}", self.key))
            .header(CONTENT_TYPE, "application/json")
            .header("x-request-timeout-ms", ANSWER_TIMEOUT_MS)
            .body(Full::new(Bytes::from(body)))?;
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&self.address)).await;
        let stream = connecting.context("the connection takes too long")??;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let exchange = async move {
            let (head, body) = sender.send_request(request).await?.into_parts();
            let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
            let body = body.map_err(|error| anyhow!("the answer breaks off: {error}"))?;
            anyhow::Ok(Response::from_parts(head, body.to_bytes()))
        };
        tokio::pin!(exchange);
        // The connection is driven here, so that it ends with the question.
        let answer = tokio::select! {
            biased;
            answer = &mut exchange => answer?,
            closed = connection => {
                closed?;
                exchange.await?
            }
        };
        read(&answer)
    }
}

fn read(answer: &Response<Bytes>) -> anyhow::Result<Try> {
    if !answer.status().is_success() {
        let body: ErrorBody = serde_json::from_slice(answer.body())
            .with_context(|| format!("HTTP {} without an error of the mesh", answer.status().as_u16()))?;
        let retry_after = answer.headers().get(RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
        return Ok(refused(body.error, retry_after.map(Duration::from_secs)));
    }
    let body: ChatCompletion = serde_json::from_slice(answer.body()).context("the answer is no chat completion")?;
    let Some(choice) = body.choices.into_iter().next() else {
        bail!("the answer holds no choice");
    };
    if choice.finish_reason == FinishReason::Length.as_str() {
        let message = format!(
            "the model did not come to an end in {} tokens",
            body.usage.completion_tokens
        );
        let error = AskError { message, fatal: false };
        return Ok(Try::Refused {
            error,
            retry_after: None,
        });
    }
    let cache = answer.headers().get("x-portalis-cache");
    Ok(Try::Said(Said {
        text: choice.message.content.unwrap_or_default(),
        cached: cache.is_some_and(|found| found != "miss"),
    }))
}

fn refused(error: ErrorObject, retry_after: Option<Duration>) -> Try {
    let code = error.code.map(serde_json::Value::from);
    let code = code.and_then(|code| serde_json::from_value(code).ok());
    let code: ErrorCode = code.unwrap_or(ErrorCode::Unknown);
    let of_all = [
        ErrorCode::MissingKey,
        ErrorCode::InvalidKey,
        ErrorCode::Forbidden,
        ErrorCode::ModelNotFound,
        ErrorCode::NotFound,
    ];
    let fatal = of_all.contains(&code) || error.param.as_deref() == Some("model");
    Try::Refused {
        error: AskError {
            message: error.message,
            fatal,
        },
        // What took too long once would do so again.
        retry_after: (code.help().retryable && code != ErrorCode::DeadlineExceeded)
            .then(|| retry_after.unwrap_or(DEFAULT_RETRY_AFTER)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        let client = |url: &str, key: &str| Client::new(url, key.to_owned(), "m".to_owned());
        let good = client("http://localhost/v1/", "k").unwrap();
        assert_eq!(
            (good.address.as_str(), good.path.as_str()),
            ("localhost:80", "/v1/chat/completions")
        );
        assert_eq!(client("http://[::1]:8000/v1", "k").unwrap().address, "[::1]:8000");
        for (url, key) in [
            ("https://h/v1", "k"),
            ("/v1", "k"),
            ("http://h", ""),
            ("http://h", "a\nb"),
        ] {
            assert!(client(url, key).is_err(), "{url} {key}");
        }
    }

    #[test]
    fn refusals_say_whether_to_go_on() {
        let read = |code: &str, param: Option<&str>| {
            let error = ErrorObject {
                message: "no".to_owned(),
                kind: "server_error".to_owned(),
                param: param.map(str::to_owned),
                code: Some(code.to_owned()),
            };
            match refused(error, None) {
                Try::Refused { error, retry_after } => (error.fatal, retry_after.is_some()),
                Try::Said(said) => panic!("{said:?}"),
            }
        };
        let cases = [
            (("invalid_key", None), (true, false)),
            (("invalid_field", Some("model")), (true, false)),
            (("input_too_long", Some("messages")), (false, false)),
            (("queue_full", None), (false, true)),
            (("deadline_exceeded", None), (false, false)),
        ];
        for ((code, param), expected) in cases {
            assert_eq!(read(code, param), expected, "{code}");
        }
    }
}
