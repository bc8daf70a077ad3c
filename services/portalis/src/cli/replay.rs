//! `portalis dead replay`. Input: a dead letter and a key. Output: the same work queued again under a new id, and its
//! answer. The letter stays: it ages out by itself.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, anyhow, bail, ensure};
use bus::{Bus, Headers, Subscription};
use schemas::dead::DeadLetter;
use schemas::error::Failure;
use schemas::ids::RequestId;
use schemas::policy::Resolved;
use schemas::reply::{Frame, ReplyFrame};
use schemas::wire::{self, Format, WireError};
use schemas::work::Work;
use schemas::{headers, subjects};
use serde_json::json;
use tokio::time::Instant;

use super::show;
use crate::args::{Mesh, ReplayArgs};
use crate::mesh;

/// Longest wait for auth and for the broker.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The format of a letter's content.
pub(super) fn format(letter: &DeadLetter) -> Result<Format, WireError> {
    let header = letter
        .headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(headers::CONTENT_TYPE));
    Format::from_content_type(header.map(|(_, value)| value.as_str()))
}

pub(super) async fn run(args: &ReplayArgs, letter: &DeadLetter, mesh: &Mesh, bus: &Bus) -> anyhow::Result<()> {
    let (_, _, tenant) = subjects::parse_work(&letter.subject)
        .with_context(|| format!("{} is no subject of work, so it cannot be replayed", letter.subject))?;
    let identity = identity(args, tenant, mesh, bus).await?;
    let format = format(letter)?;
    let mut work: Work = wire::decode_as(format, &letter.payload)
        .context("the work cannot be read, so no worker could do it: see `portalis dead show`")?;
    // A new id: the old one is known to the queue as a duplicate, and its cost is booked.
    work.request_id = RequestId::new();
    let now_ms = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    work.submitted_at_ms = now_ms;
    let deadline_ms = now_ms.saturating_add(u64::try_from(args.wait.as_millis())?);

    let inbox = subjects::replay_inbox(&work.request_id.to_string());
    let answers = bus.subscribe(&inbox, None).await?;
    let headers = Headers::new()
        .with(headers::MESSAGE_ID, format!("{}:1", work.request_id))
        .with(headers::TTL, format!("{}s", args.wait.as_secs().max(1)))
        .with(headers::DEADLINE, deadline_ms)
        .with(headers::IDENTITY, identity)
        .with(headers::REPLY, &inbox)
        .with(headers::CONTENT_TYPE, format.content_type());
    let body = wire::encode_as(format, &work)?;
    bus.publish_acked(&letter.subject, headers, body.into(), TIMEOUT)
        .await
        .context("the work could not be queued again")?;
    let outcome = answer(answers, format, args.wait).await?;
    match outcome {
        Ok(()) if mesh.json => show::json(&json!({"request_id": work.request_id, "answered": true})),
        Ok(()) => show::line(&format!("replayed as request {}: answered", work.request_id)),
        Err(failure) => bail!("replayed as request {}: {}", work.request_id, failure.message),
    }
}

/// A fresh identity for the tenant whose work it is.
async fn identity(args: &ReplayArgs, tenant: &str, mesh: &Mesh, bus: &Bus) -> anyhow::Result<String> {
    let file: PathBuf = args.key_file.clone().unwrap_or_else(|| mesh.data_dir.join("demo-key"));
    let key = std::fs::read_to_string(&file).with_context(|| {
        format!(
            "no key in {}: name a file with an API key of tenant {tenant} with --key-file",
            file.display()
        )
    })?;
    match mesh::resolve(bus, key.trim(), TIMEOUT).await? {
        None => bail!("{} holds no API key", file.display()),
        Some(Resolved::Denied(failure)) => Err(anyhow!(failure.message).context("the key does not work")),
        Some(Resolved::Granted(grant)) => {
            ensure!(
                grant.tenant == tenant,
                "the work is of tenant {tenant}, the key of {}: name a key of {tenant} with --key-file",
                grant.tenant
            );
            Ok(grant.identity)
        }
    }
}

/// Waits for the last frame of the answer.
async fn answer(mut answers: Subscription, format: Format, wait: Duration) -> anyhow::Result<Result<(), Failure>> {
    let until = Instant::now() + wait;
    loop {
        let Ok(message) = tokio::time::timeout_at(until, answers.next()).await else {
            bail!("queued again, but not answered within {}", show::span(wait));
        };
        let message = message.context("the connection was closed")?;
        let frame: ReplyFrame = wire::decode_as(format, &message.payload).context("the answer cannot be read")?;
        match frame.frame {
            Frame::Done(_) => return Ok(Ok(())),
            Frame::Failed(failure) => return Ok(Err(failure)),
            Frame::Accepted(_) | Frame::Part(_) | Frame::Text(_) => {}
        }
    }
}
