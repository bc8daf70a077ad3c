//! `portalis status`. Input: heartbeats of one interval, the broker's figures. Output: services, workers, models, queues.

use std::collections::BTreeMap;
use std::time::Duration;

use bus::{Bus, JetStreamError};
use schemas::fleet::{BEAT_INTERVAL_MS, Beat, InstanceState, ModelCard};
use schemas::work::Lane;
use schemas::{streams, subjects, wire};
use serde::Serialize;
use tokio::time::Instant;

use super::show;
use crate::args::Mesh;

/// How long beats are listened for: everybody beats once in an interval, and a busy machine a little later.
const LISTEN: Duration = Duration::from_millis(BEAT_INTERVAL_MS + BEAT_INTERVAL_MS / 2);

#[derive(Debug, Serialize)]
struct StatusReport {
    instances: Vec<Beat>,
    models: Vec<ModelStatus>,
}

#[derive(Debug, Serialize)]
struct ModelStatus {
    card: ModelCard,
    ready_workers: usize,
    /// `null` = the queue does not exist.
    queued: Option<u64>,
    in_hand: Option<u64>,
}

pub(super) async fn run(mesh: &Mesh, bus: &Bus) -> anyhow::Result<()> {
    let instances = listen(bus).await?;
    let models = models(bus, &instances).await?;
    let report = StatusReport { instances, models };
    if mesh.json {
        return show::json(&report);
    }
    let rows: Vec<_> = report.instances.iter().map(instance_row).collect();
    show::table(
        &["SERVICE", "INSTANCE", "STATE", "STARTED", "WORK"],
        &rows,
        "nobody beats: no service runs",
    )?;
    show::line("")?;
    let rows: Vec<_> = report.models.iter().map(model_row).collect();
    show::table(
        &["MODEL", "READY WORKERS", "QUEUED", "IN HAND", "REVISION"],
        &rows,
        "no model was ever served",
    )
}

async fn listen(bus: &Bus) -> anyhow::Result<Vec<Beat>> {
    let mut beats = bus.subscribe(subjects::BEATS, None).await?;
    let until = Instant::now() + LISTEN;
    let mut seen = BTreeMap::new();
    while let Ok(Some(message)) = tokio::time::timeout_at(until, beats.next()).await {
        // What cannot be read is not a beat.
        if let Ok(beat) = wire::decode::<Beat>(&message.payload) {
            seen.insert((beat.service.clone(), beat.instance.clone()), beat);
        }
    }
    Ok(seen.into_values().collect())
}

async fn models(bus: &Bus, instances: &[Beat]) -> anyhow::Result<Vec<ModelStatus>> {
    let bucket = bus.kv(&streams::models_bucket()).await?;
    let mut models = Vec::new();
    for key in bucket.keys().await? {
        let Some(entry) = bucket.get(&key).await? else {
            continue;
        };
        let card: ModelCard = wire::decode(&entry.value)?;
        let serves = |beat: &&Beat| {
            beat.state == InstanceState::Ready && beat.worker.as_ref().is_some_and(|worker| worker.model == card.name)
        };
        let ready_workers = instances.iter().filter(serves).count();
        let depth = depth(bus, &card.slug).await?;
        models.push(ModelStatus {
            ready_workers,
            queued: depth.map(|(queued, _)| queued),
            in_hand: depth.map(|(_, in_hand)| in_hand),
            card,
        });
    }
    Ok(models)
}

/// Waiting and held messages of all lanes.
async fn depth(bus: &Bus, slug: &str) -> anyhow::Result<Option<(u64, u64)>> {
    let stream = streams::work_stream_name(slug);
    let mut depth = (0, 0);
    for lane in Lane::ALL {
        match bus.consumer_info(&stream, streams::lane_consumer_name(lane)).await {
            Ok(info) => depth = (depth.0 + info.pending, depth.1 + info.ack_pending),
            Err(JetStreamError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Some(depth))
}

fn instance_row(beat: &Beat) -> Vec<String> {
    let state = match beat.state {
        InstanceState::Starting => "starting",
        InstanceState::Ready => "ready",
        InstanceState::Draining => "draining",
        InstanceState::Unknown => "unknown",
    };
    let work = beat.worker.as_ref().map_or_else(String::new, |worker| {
        format!(
            "{}: {} of {} slots, {} done",
            worker.model, worker.in_hand, worker.slots, worker.finished_total
        )
    });
    vec![
        beat.service.clone(),
        beat.instance.clone(),
        state.to_owned(),
        show::ago(beat.started_at_ms),
        work,
    ]
}

fn model_row(model: &ModelStatus) -> Vec<String> {
    let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    vec![
        model.card.name.clone(),
        model.ready_workers.to_string(),
        number(model.queued),
        number(model.in_hand),
        model.card.revision.chars().take(16).collect(),
    ]
}
