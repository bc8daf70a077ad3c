//! `portalis scale`. Input: a model. Output: the last decisions on it, with what was seen and why.

use std::time::Duration;

use bus::{Bus, JetStreamError};
use schemas::fleet::{ScaleDecision, ScaleReason};
use schemas::{ids, streams, subjects, wire};

use super::show;
use crate::args::Mesh;

/// Messages read in one go.
const BATCH: usize = 256;
/// Longest wait for the broker to hand out what is there.
const WAIT: Duration = Duration::from_secs(2);

pub(super) async fn explain(model: &str, limit: usize, mesh: &Mesh, bus: &Bus) -> anyhow::Result<()> {
    let subject = subjects::scale(&ids::model_slug(model));
    let mut decisions: Vec<ScaleDecision> = Vec::new();
    for message in read_all(bus, &streams::events().name).await? {
        if message.subject == subject {
            decisions.push(wire::decode(&message.payload)?);
        }
    }
    // Newest last, as in a log; only the last ones.
    decisions.drain(..decisions.len().saturating_sub(limit));
    if mesh.json {
        return show::json(&decisions);
    }
    let rows: Vec<_> = decisions.iter().map(row).collect();
    let heading = [
        "WHEN", "WORKERS", "WHY", "QUEUED", "IN HAND", "OLDEST", "READY", "STARTING", "BUSY",
    ];
    show::table(&heading, &rows, &format!("no decision on {model} in the last 7 days"))
}

/// Everything that a stream holds now; nothing when it does not exist.
pub(super) async fn read_all(bus: &Bus, stream: &str) -> anyhow::Result<Vec<bus::StoredMessage>> {
    let last = match bus.stream_info(stream).await {
        Ok(info) if info.messages > 0 => info.last_sequence,
        Ok(_) | Err(JetStreamError::NotFound { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut reader = bus.reader(stream, 0);
    let mut all: Vec<bus::StoredMessage> = Vec::new();
    while reader.last_sequence() < last {
        let batch = reader.next_batch(BATCH, WAIT).await?;
        // The last ones may have been removed meanwhile.
        if batch.is_empty() {
            break;
        }
        all.extend(batch);
    }
    Ok(all)
}

fn row(decision: &ScaleDecision) -> Vec<String> {
    let seen = &decision.observed;
    vec![
        show::ago(decision.decided_at_ms),
        format!("{} to {}", decision.from, decision.to),
        why(decision.reason).to_owned(),
        seen.queued.to_string(),
        seen.in_hand.to_string(),
        format!("{} ms", seen.oldest_ms),
        seen.ready_workers.to_string(),
        seen.starting_workers.to_string(),
        format!("{:.0} %", seen.busy * 100.0),
    ]
}

fn why(reason: ScaleReason) -> &'static str {
    match reason {
        ScaleReason::BelowMinimum => "fewer ran than must",
        ScaleReason::AboveMaximum => "more ran than may",
        ScaleReason::QueueTooOld => "work waited too long",
        ScaleReason::Backlog => "more work than the workers clear in time",
        ScaleReason::Idle => "the workers were idle",
        ScaleReason::Unknown => "a reason newer than this program",
    }
}
