//! Answers `portalis.v1.usage.get`. Input: a question, MessagePack or JSON. Output: a report in the same format, or a
//! `Failure`, which no asker can take for a report.

use bus::{Headers, Message};
use bytes::Bytes;
use schemas::cost::{UsageGet, UsageReport};
use schemas::error::{ErrorCode, Failure};
use schemas::headers::CONTENT_TYPE;
use schemas::wire::{self, Format};
use serde::Serialize;

use crate::consume::Progress;
use crate::metrics::Metrics;
use crate::usage::UsageStore;

/// What an answer is made from; clones share it.
#[derive(Debug, Clone)]
pub struct Answerer {
    /// The sums.
    pub store: UsageStore,
    /// How far they reach.
    pub progress: Progress,
    /// What is counted.
    pub metrics: Metrics,
}

impl Answerer {
    /// The answer to one question.
    pub async fn answer(&self, question: Message) -> Option<(Headers, Bytes)> {
        let format = Format::from_content_type(question.headers.get(CONTENT_TYPE));
        let (outcome, reply) = match self.report(&question).await {
            Ok(report) => ("ok", encode(format.unwrap_or_default(), &report)),
            Err(failure) => (failure.code.as_str(), encode(format.unwrap_or_default(), &failure)),
        };
        self.metrics.usage_requests.with_label_values(&[outcome]).inc();
        reply
    }

    async fn report(&self, question: &Message) -> Result<UsageReport, Failure> {
        let format = Format::from_content_type(question.headers.get(CONTENT_TYPE));
        let get: Result<UsageGet, _> = format.and_then(|format| wire::decode_as(format, &question.payload));
        let get = get.map_err(|error| {
            tracing::warn!(subject = question.subject(), %error, "question for usage cannot be read");
            Failure::new(ErrorCode::InvalidField, error.to_string())
        })?;
        // Read before the sums: they may hold more than is said, never less.
        let as_of_ms = self.progress.as_of_ms();
        self.store.usage(&get, as_of_ms).await.map_err(|error| {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::error!(tenant = get.tenant, error, "usage cannot be read");
            Failure::new(ErrorCode::Unavailable, "the ledger cannot be read now")
        })
    }
}

fn encode<T: Serialize>(format: Format, body: &T) -> Option<(Headers, Bytes)> {
    let payload = wire::encode_as(format, body).ok()?;
    let headers = Headers::new().with(CONTENT_TYPE, format.content_type());
    Some((headers, payload.into()))
}
