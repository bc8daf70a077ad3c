//! Admission. Input: a message from the queue. Output: a request whose sender is known and may use the model, or the reason
//! why not.

use std::time::{SystemTime, UNIX_EPOCH};

use bus::Job;
use process::TraceContext;
use schemas::error::{ErrorCode, Failure};
use schemas::generate::GenerateTask;
use schemas::identity::Claims;
use schemas::wire::Format;
use schemas::work::{Task, Work};
use schemas::{headers, subjects, wire};

use crate::identity::{IdentityError, Verifier};
use crate::job::{ReplyTo, Request};

/// Why a message is not admitted.
#[derive(Debug)]
pub enum Refusal {
    /// It cannot be read; it is kept among the dead letters.
    Malformed(Failure),
    /// Its sender may not ask for this.
    Unauthorized(Failure),
    /// Its fields make no sense for the model.
    Invalid(Failure),
    /// Nobody waits for it any more.
    Expired,
}

/// Where a message wants its answer, as far as that can be read.
#[must_use]
pub fn reply_to(job: &Job) -> Option<ReplyTo> {
    let subject = job.headers.get(headers::REPLY)?;
    // The broker would take an empty subject or a wildcard for an error of this whole connection.
    let sound = !subject.is_empty() && !subject.contains(['*', '>', ' ', '\t']);
    let format = Format::from_content_type(job.headers.get(headers::CONTENT_TYPE)).unwrap_or_default();
    sound.then(|| ReplyTo {
        subject: subject.to_owned(),
        format,
    })
}

/// Reads a message and checks who sent it.
///
/// # Errors
/// [`Refusal`].
pub async fn admit(job: &Job, model: &str, verifier: &Verifier, now_ms: u64) -> Result<(Request, Task), Refusal> {
    let deadline_ms = job.headers.get_u64(headers::DEADLINE);
    if deadline_ms.is_some_and(|deadline_ms| deadline_ms <= now_ms) {
        return Err(Refusal::Expired);
    }
    let reply = reply_to(job).ok_or_else(|| malformed("header Portalis-Reply is missing or no subject"))?;
    let Some((_, lane, tenant)) = subjects::parse_work(job.subject()) else {
        return Err(malformed("the subject is not a work subject"));
    };
    let published_s = job
        .published_at()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let token = job.headers.get(headers::IDENTITY);
    let claims = verifier
        .verify(token, published_s)
        .await
        .map_err(|error| unauthorized(&error))?;
    let work = read(job)?;
    check_rights(&claims, &work, model, tenant, lane)?;
    let trace_id = tracing::enabled!(tracing::Level::DEBUG)
        .then(|| TraceContext::continue_from(job.headers.get(headers::TRACEPARENT)).trace_id_hex());
    let request = Request {
        request_id: work.request_id,
        reply,
        claims,
        lane,
        // A publisher that does not say counts from the moment the queue had it.
        submitted_at_ms: if work.submitted_at_ms == 0 {
            unix_ms(job.published_at())
        } else {
            work.submitted_at_ms
        },
        deadline_ms,
        trace_id,
    };
    Ok((request, work.task))
}

/// The task as one that generates.
///
/// # Errors
/// [`Refusal::Invalid`] when it is another.
pub fn generation(task: Task, model: &str) -> Result<GenerateTask, Refusal> {
    match task {
        Task::Generate(task) => Ok(*task),
        Task::Embed(_) | Task::Rank(_) => Err(unsupported(model, "writes text, it neither embeds nor ranks")),
    }
}

/// A task that a model does not do.
pub(crate) fn unsupported(model: &str, what: &str) -> Refusal {
    let message = format!("model '{model}' {what}");
    Refusal::Invalid(Failure::new(ErrorCode::UnsupportedWork, message).param("model"))
}

fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn malformed(message: &str) -> Refusal {
    Refusal::Malformed(Failure::new(ErrorCode::UnsupportedWork, message))
}

fn unauthorized(error: &IdentityError) -> Refusal {
    Refusal::Unauthorized(Failure::new(ErrorCode::Unauthorized, error.to_string()).param(headers::IDENTITY))
}

fn read(job: &Job) -> Result<Work, Refusal> {
    let format = Format::from_content_type(job.headers.get(headers::CONTENT_TYPE));
    let work = format.and_then(|format| wire::decode_as::<Work>(format, &job.payload));
    work.map_err(|error| {
        let cause = std::error::Error::source(&error)
            .map(|source| format!(": {source}"))
            .unwrap_or_default();
        malformed(&format!("{error}{cause}"))
    })
}

fn check_rights(
    claims: &Claims,
    work: &Work,
    model: &str,
    tenant: &str,
    lane: schemas::work::Lane,
) -> Result<(), Refusal> {
    let refuse = |message: String| Err(Refusal::Unauthorized(Failure::new(ErrorCode::Forbidden, message)));
    if claims.tnt != tenant {
        return refuse("the identity is not that of the tenant in the subject".to_owned());
    }
    if work.model != model {
        return Err(Refusal::Invalid(
            Failure::new(ErrorCode::ModelNotFound, format!("this queue is for model '{model}'")).param("model"),
        ));
    }
    if !claims.allows_model(model) || !claims.scp.contains(&schemas::policy::Scope::Inference) {
        return refuse(format!("this key may not use model '{model}'"));
    }
    if lane < claims.pri {
        return refuse(format!("this key may not use lane '{}'", lane.as_str()));
    }
    Ok(())
}
