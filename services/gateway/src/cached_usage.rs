//! Reports of cached answers. Input: one note per answer that was not computed. Output: one cost event per key and model
//! and interval, on the COST stream. Nothing is charged for them, but the bill shows what was saved; a gateway that is
//! killed loses at most one interval of these notes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bus::{Headers, PublishError};
use process::CancellationToken;
use schemas::cost::{CostBatch, CostEvent, CostKind, DeviceTerms, cached_event_id};
use schemas::ids::model_slug;
use schemas::policy::Grant;
use schemas::{headers, subjects, wire};
use tokio::time::MissedTickBehavior;

use crate::Gateway;
use crate::answer::Answer;

/// Reports that may wait for the broker; older ones are dropped first, counted in the log.
const MAX_WAITING: usize = 1_024;
/// Longest wait for the broker to take a report.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(2);

/// Notes since the last report.
#[derive(Debug, Default)]
pub struct CachedUsage {
    notes: Mutex<HashMap<Payer, Sums>>,
}

/// Whose answers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Payer {
    tenant: String,
    key_id: String,
    model: String,
    operation: &'static str,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sums {
    requests: u64,
    input_tokens: u64,
    output_tokens: u64,
}

/// One report on its way.
#[derive(Debug)]
struct Report {
    subject: String,
    event_id: String,
    payload: bytes::Bytes,
}

impl CachedUsage {
    /// Notes one answer that was not computed.
    pub fn note(&self, grant: &Grant, answer: &Answer) {
        let payer = Payer {
            tenant: grant.tenant.clone(),
            key_id: grant.kid.clone(),
            model: answer.model().to_owned(),
            operation: answer.operation(),
        };
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let sums = notes.entry(payer).or_default();
        sums.requests += 1;
        sums.input_tokens += answer.input_tokens();
        sums.output_tokens += answer.output_tokens();
    }

    fn take(&self) -> HashMap<Payer, Sums> {
        std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Reports until the gateway stops, then once more.
///
/// # Errors
/// Never; the signature is that of a task.
pub(crate) async fn run(gateway: Arc<Gateway>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(Duration::from_millis(gateway.config.usage.report_interval_ms));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut waiting = Vec::new();
    let mut number = 0;
    loop {
        let last = tokio::select! {
            _ = tick.tick() => false,
            () = stop.cancelled() => true,
        };
        gateway.collect(&mut waiting, &mut number);
        gateway.deliver(&mut waiting).await;
        if last {
            if !waiting.is_empty() {
                tracing::warn!(reports = waiting.len(), "reports of cached answers not delivered");
            }
            return Ok(());
        }
    }
}

impl Gateway {
    fn collect(&self, waiting: &mut Vec<Report>, number: &mut u64) {
        for (payer, sums) in self.cached_usage.take() {
            *number += 1;
            let event_id = cached_event_id(&self.instance, *number);
            let event = CostEvent {
                event_id: event_id.clone(),
                kind: CostKind::Cached,
                tenant: payer.tenant,
                key_id: payer.key_id,
                model: payer.model,
                operation: payer.operation.to_owned(),
                request_id: format!("{}-{number}", self.instance),
                requests: sums.requests,
                input_tokens: sums.input_tokens,
                output_tokens: sums.output_tokens,
                compute_ns: 0,
                queue_us: 0,
                attempt: 1,
                device: "cache".to_owned(),
                terms: DeviceTerms::OnDemand,
                reporter: self.instance.clone(),
                occurred_at_ms: self.clock.now_unix_ms(),
            };
            let subject = subjects::cost(&event.tenant, &model_slug(&event.model));
            match wire::encode(&CostBatch { events: vec![event] }) {
                Ok(payload) => waiting.push(Report {
                    subject,
                    event_id,
                    payload: payload.into(),
                }),
                Err(error) => tracing::error!(%error, "report of cached answers cannot be encoded"),
            }
        }
        if waiting.len() > MAX_WAITING {
            let dropped = waiting.len() - MAX_WAITING;
            waiting.drain(..dropped);
            tracing::warn!(
                dropped,
                "reports of cached answers dropped, the broker does not take them"
            );
        }
    }

    /// Sends what waits; what the broker does not take stays for the next time, under the same id.
    async fn deliver(&self, waiting: &mut Vec<Report>) {
        while let Some(report) = waiting.first() {
            let message_headers = Headers::new().with(headers::MESSAGE_ID, &report.event_id);
            let sent = self
                .bus
                .publish_acked(
                    &report.subject,
                    message_headers,
                    report.payload.clone(),
                    PUBLISH_TIMEOUT,
                )
                .await;
            match sent {
                Ok(_) => self.metrics.cached_reports.inc(),
                Err(PublishError::Bus(error)) => {
                    tracing::debug!(%error, "report of cached answers waits");
                    return;
                }
                Err(PublishError::NoStream { .. }) => return, // The ledger makes the stream when it starts.
                Err(error) => tracing::error!(%error, "report of cached answers refused"),
            }
            waiting.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::reply::Usage;
    use schemas::work::Lane;

    use super::*;
    use crate::received::Content;

    fn grant(tenant: &str) -> Grant {
        Grant {
            kid: "k".to_owned(),
            tenant: tenant.to_owned(),
            models: Vec::new(),
            scopes: Vec::new(),
            priority_ceiling: Lane::Interactive,
            request_limit: None,
            policy_version: 1,
            identity: String::new(),
            identity_expires_at_ms: 0,
        }
    }

    fn answer(content: Content, input_tokens: u64) -> Answer {
        let usage = Usage {
            input_tokens,
            output_tokens: 5,
            ..Usage::default()
        };
        Answer::new("m".to_owned(), content, usage)
    }

    #[test]
    fn notes_add_up_per_payer_and_operation_and_are_taken_once() {
        let usage = CachedUsage::default();
        let vectors = |tokens| answer(Content::Vectors(Vec::new()), tokens);
        usage.note(&grant("t"), &vectors(3));
        usage.note(&grant("t"), &vectors(4));
        usage.note(&grant("u"), &vectors(1));
        usage.note(&grant("t"), &answer(Content::Text(Vec::new()), 2));
        let taken = usage.take();
        let payer = |operation| Payer {
            tenant: "t".to_owned(),
            key_id: "k".to_owned(),
            model: "m".to_owned(),
            operation,
        };
        let sums = |requests, input_tokens, output_tokens| Sums {
            requests,
            input_tokens,
            output_tokens,
        };
        assert_eq!(taken[&payer("embed")], sums(2, 7, 0));
        assert_eq!(taken[&payer("generate")], sums(1, 2, 5));
        assert_eq!(taken.len(), 3);
        assert!(usage.take().is_empty());
    }
}
