//! A translation as server-sent events. Input: a job. Output: the body of the answer: one event per statement as soon as its
//! fate is known, comments while nothing happens, then the whole and `[DONE]`, or one event with the error.
//!
//! The job runs while the body is polled: a client that reads slowly slows its own job down, one that leaves drops it, and
//! with it the work in flight.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, header};
use bytes::Bytes;
use hyper::body::{Body, Frame};
use schemas::http::{TranslationEvent, TranslationItem};
use serde::Serialize;
use tokio::time::{Instant, Sleep};

use super::super::sse::{self, DONE, KEEP_ALIVE, Subject};
use super::super::{error, finish};
use super::Job;
use crate::Gateway;

/// The status of every stream that began.
const OK: u16 = 200;

/// Headers of a streamed answer; `x-accel-buffering` tells proxies of nginx's kind to pass on what comes at once.
pub(super) fn headers() -> [(HeaderName, HeaderValue); 3] {
    [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream; charset=utf-8"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (
            HeaderName::from_static("x-accel-buffering"),
            HeaderValue::from_static("no"),
        ),
    ]
}

/// Events that wait to be written: at most those of one module.
#[derive(Clone, Default)]
struct Outbox(Arc<Mutex<Vec<u8>>>);

impl Outbox {
    fn with<T>(&self, change: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn event(&self, data: &impl Serialize) {
        self.with(|bytes| sse::event(bytes, data));
    }
}

/// The body of a streamed answer.
pub(super) struct Events {
    subject: Subject,
    /// Ends after its last event.
    job: Pin<Box<dyn Future<Output = ()> + Send>>,
    outbox: Outbox,
    silence: Pin<Box<Sleep>>,
    keep_alive: Duration,
    over: bool,
}

impl Events {
    /// A stream of a job that has not begun.
    pub(super) fn new(subject: Subject, job: Job) -> Self {
        let keep_alive = Duration::from_millis(subject.gateway.config.stream.keep_alive_ms);
        subject.gateway.metrics.streams.inc();
        let outbox = Outbox::default();
        Self {
            job: Box::pin(run(Arc::clone(&subject.gateway), job, outbox.clone())),
            subject,
            outbox,
            silence: Box::pin(tokio::time::sleep(keep_alive)),
            keep_alive,
            over: false,
        }
    }
}

async fn run(gateway: Arc<Gateway>, job: Job, outbox: Outbox) {
    let asker = &job.asker;
    let told = |index: usize, item: &TranslationItem| {
        outbox.event(&TranslationEvent {
            id: job.heading.id.clone(),
            object: "translation.item".to_owned(),
            created: job.heading.created,
            model: job.heading.model.clone(),
            index: index as u64,
            item: item.clone(),
        });
    };
    let outcome = translate::translate(&job.module, &job.options, |messages| asker.ask(messages), told).await;
    match outcome {
        Ok(report) => {
            outbox.event(&job.whole(report));
            outbox.with(|bytes| bytes.extend_from_slice(DONE));
        }
        Err(error) => {
            let failure = asker.failure(&error);
            let code = failure.code.as_str();
            gateway.metrics.failures.with_label_values(&[code]).inc();
            outbox.event(&error::in_stream(failure));
        }
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        this.over = this.job.as_mut().poll(context).is_ready();
        let mut bytes = this.outbox.with(std::mem::take);
        if bytes.is_empty() {
            if this.over {
                return Poll::Ready(None);
            }
            if this.silence.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            bytes = KEEP_ALIVE.to_vec();
        }
        this.silence.as_mut().reset(Instant::now() + this.keep_alive);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.subject.gateway.metrics.streams.dec();
        finish::close(&self.subject.gateway, self.subject.route, &self.subject.call, OK);
    }
}
