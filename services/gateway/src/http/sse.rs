//! Server-sent events. Input: a flight's text as it comes. Output: the body of a streamed answer: one event per part,
//! comments while nothing happens, then `[DONE]`, or one event with the error and nothing after it.
//!
//! Nothing is held back: what is there is written at once, several events in one write when they came together. A client
//! that leaves drops the body, and with it the waiter of the flight, which takes the work back. A client that reads slowly
//! lets its flight's queue fill up, which ends the flight; see `flight.rs`.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use schemas::error::{ErrorCode, Failure};
use schemas::generate::TextPart;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};

use super::finish;
use super::form::Form;
use crate::Gateway;
use crate::call::Call;
use crate::flight::Reader;
use crate::lookup::Waiter;

/// What is written while nothing happens.
pub(super) const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";
/// The end of a whole answer.
pub(super) const DONE: &[u8] = b"data: [DONE]\n\n";
/// Frames that one write takes at most; more follow in the next.
const MAX_FRAMES_PER_WRITE: usize = 64;
/// The status of every stream that began.
const OK: u16 = 200;

/// Writes one event.
pub(super) fn event<T: Serialize>(out: &mut Vec<u8>, data: &T) {
    let start = out.len();
    out.extend_from_slice(b"data: ");
    match serde_json::to_writer(&mut *out, data) {
        Ok(()) => out.extend_from_slice(b"\n\n"),
        Err(error) => {
            tracing::error!(%error, "event cannot be written");
            out.truncate(start);
        }
    }
}

/// Writes one event with a name.
pub(super) fn named_event<T: Serialize>(out: &mut Vec<u8>, name: &str, data: &T) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.push(b'\n');
    event(out, data);
}

/// The call that a stream answers.
pub(super) struct Subject {
    pub(super) gateway: Arc<Gateway>,
    pub(super) call: Call,
    pub(super) route: &'static str,
    /// Held until the last byte: streams count among the requests that are answered at once.
    pub(super) _place: OwnedSemaphorePermit,
}

/// The body of a streamed answer.
pub(super) struct EventStream {
    subject: Subject,
    waiter: Waiter,
    reader: Reader,
    form: Form,
    /// Text that came before the head was sent.
    first: Vec<TextPart>,
    silence: Pin<Box<Sleep>>,
    keep_alive: Duration,
    over: bool,
}

impl EventStream {
    /// A stream that begins with `first`.
    pub(super) fn new(subject: Subject, waiter: Waiter, reader: Reader, form: Form, first: Vec<TextPart>) -> Self {
        let keep_alive = Duration::from_millis(subject.gateway.config.stream.keep_alive_ms);
        subject.gateway.metrics.streams.inc();
        Self {
            subject,
            waiter,
            reader,
            form,
            first,
            silence: Box::pin(tokio::time::sleep(keep_alive)),
            keep_alive,
            over: false,
        }
    }

    /// What is to be written now, once there is something.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<Vec<u8>> {
        let mut out = Vec::new();
        self.form.parts(std::mem::take(&mut self.first), &mut out);
        for _ in 0..MAX_FRAMES_PER_WRITE {
            match self.reader.poll_recv(context) {
                Poll::Ready(Some(parts)) => self.form.parts(parts, &mut out),
                Poll::Ready(None) => {
                    self.end(&mut out);
                    return Poll::Ready(out);
                }
                Poll::Pending if out.is_empty() => return self.poll_keep_alive(context),
                Poll::Pending => return Poll::Ready(out),
            }
        }
        // Parts without any text write nothing; whoever wakes next goes on.
        if out.is_empty() {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(out)
    }

    fn poll_keep_alive(&mut self, context: &mut Context<'_>) -> Poll<Vec<u8>> {
        match self.silence.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(KEEP_ALIVE.to_vec()),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Writes the end: all text is written, the flight is over.
    fn end(&mut self, out: &mut Vec<u8>) {
        self.over = true;
        let outcome = self.waiter.flight.outcome_now().unwrap_or_else(|| {
            // A queue ends only with its flight.
            Err(Failure::new(ErrorCode::Internal, "the answer ended without an outcome"))
        });
        let answer = outcome.and_then(|answer| answer.text().map(|text| text.usage).ok_or_else(finish::wrong_answer));
        match answer {
            Ok(usage) => self.form.end(usage, out),
            Err(failure) => {
                let code = failure.code.as_str();
                self.subject.gateway.metrics.failures.with_label_values(&[code]).inc();
                self.form.fail(failure, out);
            }
        }
    }
}

impl Body for EventStream {
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
        this.poll_write(context).map(|out| {
            this.silence.as_mut().reset(Instant::now() + this.keep_alive);
            Some(Ok(Frame::data(Bytes::from(out))))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.subject.gateway.metrics.streams.dec();
        finish::close(&self.subject.gateway, self.subject.route, &self.subject.call, OK);
    }
}

#[cfg(test)]
mod tests {
    use testkit::SseReader;

    use super::*;

    #[test]
    fn events_are_read_by_any_reader() {
        let mut out = KEEP_ALIVE.to_vec();
        event(&mut out, &"line\nbreak");
        out.extend_from_slice(DONE);
        let mut reader = SseReader::new();
        let data: Vec<String> = reader.push(&out).into_iter().map(|event| event.data).collect();
        assert_eq!(data, ["\"line\\nbreak\"", "[DONE]"]);
        assert_eq!((reader.comments(), reader.is_cut()), (1, false));
    }
}
