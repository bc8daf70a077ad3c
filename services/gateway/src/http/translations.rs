//! `POST /v1/translations`: the spine. Input: an HTTP request with a Python module. Output: a report with a Rust file, whole
//! or as events, or one failure.
//!
//! Each function of the module is a question of its own (`translations/asker.rs`), with all that a chat request has. What a
//! model answers has to parse as Rust; it is not compiled and never run here.

mod asker;
mod events;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use schemas::error::{ErrorCode, Failure};
use schemas::http::{Translation, TranslationRequest};
use translate::{JobError, Module, Options, Report, assemble};

use self::asker::Asker;
use self::events::Events;
use super::form::Heading;
use super::sse::Subject;
use super::streamable::{self, Reply};
use super::{body, finish, model};
use crate::Gateway;
use crate::config::TranslationConfig;
use crate::lookup::Source;
use crate::permits::LimitState;
use crate::plan;

const ROUTE: &str = "translations";
/// Times that a function is asked for again when the client does not say: the models that learn from a compiler's words do
/// so at once.
const DEFAULT_RETRIES: u32 = 1;
/// Most times; each is paid for.
const MAX_RETRIES: i64 = 3;

/// A module on its way.
struct Job {
    module: Module,
    options: Options,
    asker: Asker,
    heading: Heading,
}

/// Translates a module.
pub(super) async fn create(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let answered = |subject, request| async move {
        let mut limit = None;
        let reply = answer(subject, request, &mut limit).await;
        (reply, limit)
    };
    streamable::serve(gateway, request, ROUTE, answered).await
}

async fn answer(subject: Subject, request: Request, limit: &mut Option<LimitState>) -> Result<Reply, Failure> {
    let (parts, body) = request.into_parts();
    let (job, stream) = prepare(&subject, parts.headers, body, limit).await?;
    if stream {
        let response = (events::headers(), Body::new(Events::new(subject, job))).into_response();
        return Ok(Reply::Stream(response));
    }
    let asker = &job.asker;
    let outcome = translate::translate(&job.module, &job.options, |messages| asker.ask(messages), |_, _| ()).await;
    *limit = asker.limit().or(*limit);
    let report = outcome.map_err(|error| asker.failure(&error))?;
    let source = if asker.computed_nothing() {
        Source::Local
    } else {
        Source::Computed
    };
    let body = serde_json::to_vec(&job.whole(report)).map_err(|error| {
        tracing::error!(%error, "answer cannot be written");
        Failure::new(ErrorCode::Internal, "the answer could not be written")
    })?;
    Ok(Reply::Whole((finish::json_headers(source), body).into_response()))
}

/// All that can be refused before the model is asked; also whether the answer comes as events.
async fn prepare(
    subject: &Subject,
    headers: HeaderMap,
    body: Body,
    limit: &mut Option<LimitState>,
) -> Result<(Job, bool), Failure> {
    let (gateway, call) = (&subject.gateway, &subject.call);
    let caller = gateway.authorizer.authorize(&headers).await?;
    *limit = gateway.admit(&caller).await.map_err(|(failure, state)| {
        *limit = state;
        failure
    })?;
    let limit_bytes = gateway.config.http.body_limit_bytes;
    let bytes = body::read(&headers, body, limit_bytes, gateway.read_timeout).await?;
    let request: TranslationRequest = body::parse(&bytes)?;
    let config = gateway.config.translation;
    let retries = retries(&request)?;
    check(&request, config)?;
    let (card, ()) = model::find(gateway, std::iter::once((request.model.as_str(), ())), &caller.grant)?;
    plan::check_model(&card)?;
    let stream = request.stream == Some(true);
    // A long module takes milliseconds, in which this thread would serve nobody.
    let parsed = tokio::task::spawn_blocking(move || Module::parse(&request.source)).await;
    let parsed = parsed.map_err(|error| {
        tracing::error!(%error, "a module cannot be parsed");
        Failure::new(ErrorCode::Internal, "the source could not be parsed")
    })?;
    let module = parsed.map_err(|error| invalid("source", format!("'source' cannot be split: {error}")))?;
    check_size(&module, config)?;
    let job = Job {
        module,
        options: Options {
            parallel: config.parallel,
            retries,
            verifier: None,
            cases: None,
        },
        heading: Heading::new("translation", call, &card),
        asker: Asker::new(Arc::clone(gateway), call.clone(), headers, card),
    };
    Ok((job, stream))
}

fn invalid(field: &str, message: impl Into<String>) -> Failure {
    Failure::new(ErrorCode::InvalidField, message).param(field)
}

fn retries(request: &TranslationRequest) -> Result<u32, Failure> {
    match request.retries {
        None => Ok(DEFAULT_RETRIES),
        Some(retries) => u32::try_from(retries)
            .ok()
            .filter(|_| retries <= MAX_RETRIES)
            .ok_or_else(|| {
                let message = format!("'retries' is {retries}; it must be from 0 to {MAX_RETRIES}");
                invalid("retries", message)
            }),
    }
}

fn check(request: &TranslationRequest, config: TranslationConfig) -> Result<(), Failure> {
    if request.verify == Some(true) {
        return Err(invalid(
            "verify",
            "'verify' is only false here: what a model wrote is not compiled and run on a server; use `portalis translate --verify`",
        ));
    }
    if request.source.trim().is_empty() {
        return Err(invalid(
            "source",
            "'source' is empty: a Python module with at least one function is needed",
        ));
    }
    if request.source.len() > config.max_source_bytes {
        let message = format!(
            "'source' has {} bytes; at most {} are taken at once",
            request.source.len(),
            config.max_source_bytes
        );
        return Err(invalid("source", message));
    }
    Ok(())
}

fn check_size(module: &Module, config: TranslationConfig) -> Result<(), Failure> {
    let sizes = [
        (module.functions(), config.max_functions, "functions"),
        (module.items.len(), config.max_statements, "top-level statements"),
    ];
    for (found, most, what) in sizes {
        if found > most {
            let message = format!("'source' has {found} {what}; at most {most} are taken at once");
            return Err(invalid("source", message));
        }
    }
    Ok(())
}

impl Job {
    /// The whole answer.
    fn whole(&self, report: Report) -> Translation {
        Translation {
            id: self.heading.id.clone(),
            object: "translation".to_owned(),
            created: self.heading.created,
            model: self.heading.model.clone(),
            complete: report.complete,
            summary: report.summary,
            rust: assemble(&self.module, &report),
            items: report.items,
            usage: self.asker.usage(),
        }
    }
}

/// The failure of a job that has none of its own: without a verifier it can only fail to ask.
fn of_job(error: &JobError) -> Failure {
    tracing::error!(%error, "a translation ended without a failure");
    Failure::new(ErrorCode::Internal, "the translation could not go on")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: TranslationConfig = TranslationConfig {
        max_source_bytes: 64,
        max_functions: 2,
        max_statements: 3,
        parallel: 1,
    };

    fn request(more: &str) -> TranslationRequest {
        let text = format!(r#"{{"model": "m", "source": "a = 1"{more}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn what_cannot_be_met_is_named() {
        let param = |outcome: Result<(), Failure>| outcome.unwrap_err().param.unwrap();
        assert_eq!(param(check(&request(r#", "verify": true"#), CONFIG)), "verify");
        assert!(check(&request(r#", "verify": false"#), CONFIG).is_ok());
        let source = |source: &str| TranslationRequest {
            source: source.to_owned(),
            ..request("")
        };
        assert_eq!(param(check(&source(" \n"), CONFIG)), "source");
        assert_eq!(param(check(&source(&"#".repeat(65)), CONFIG)), "source");
        assert_eq!(retries(&request("")).unwrap(), DEFAULT_RETRIES);
        assert_eq!(retries(&request(r#", "retries": 3"#)).unwrap(), 3);
        for bad in ["-1", "4", "4294967296"] {
            let failure = retries(&request(&format!(r#", "retries": {bad}"#))).unwrap_err();
            assert_eq!(failure.param.as_deref(), Some("retries"), "{bad}");
        }
        let size = |source: &str| check_size(&Module::parse(source).unwrap(), CONFIG);
        let function = "def f() -> int:\n    return 1\n";
        assert!(size(&function.repeat(2)).is_ok());
        assert!(size(&function.repeat(3)).unwrap_err().message.contains("3 functions"));
        assert!(size("a\nb\nc\nd\n").unwrap_err().message.contains("4 top-level"));
    }
}
