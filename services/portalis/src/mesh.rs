//! A running mesh, as the command line sees it. Input: where it is. Output: a connection, and questions to its services.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bus::{Bus, BusConfig, BusError, Headers};
use schemas::policy::{self, KeysReply, Resolve, Resolved};
use schemas::{subjects, wire};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::args::Mesh;

/// Longest wait for the connection: the mesh runs, or it does not.
const CONNECT_TIMEOUT_MS: u64 = 3_000;
/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// File in the data folder with the broker's URL, credentials included.
pub const NATS_URL_FILE: &str = "nats-url";

/// Connects to the mesh that was named, else to the one of the data folder.
///
/// # Errors
/// Says what to do when there is none.
pub async fn connect(mesh: &Mesh) -> anyhow::Result<Bus> {
    let url = match &mesh.nats_url {
        Some(url) => url.clone(),
        None => url_of(&mesh.data_dir)?,
    };
    let config = BusConfig {
        connect_timeout_ms: CONNECT_TIMEOUT_MS,
        ..BusConfig::for_url(&url)
    };
    Bus::connect(&config, "portalis-cli", None)
        .await
        .context("the mesh cannot be reached, start it with `make up` or name its broker with --nats-url")
}

fn url_of(data_dir: &Path) -> anyhow::Result<String> {
    let path = data_dir.join(NATS_URL_FILE);
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!(
            "no running mesh in {}: start it with `make up`, or name it with --data-dir or --nats-url",
            data_dir.display()
        )
    })?;
    Ok(text.trim().to_owned())
}

/// Asks a service and reads its answer.
///
/// # Errors
/// When nobody answers or the answer cannot be read.
pub async fn ask<Q: Serialize, A: DeserializeOwned>(bus: &Bus, subject: &str, question: &Q) -> anyhow::Result<A> {
    let payload = request(bus, subject, question, TIMEOUT).await?;
    wire::decode(&payload).with_context(|| format!("the answer on {subject} cannot be read"))
}

/// Asks a service and gives the bytes of its answer.
///
/// # Errors
/// When nobody answers.
pub async fn request<Q: Serialize>(
    bus: &Bus,
    subject: &str,
    question: &Q,
    timeout: Duration,
) -> anyhow::Result<Vec<u8>> {
    let body = wire::encode(question)?;
    match bus.request(subject, Headers::new(), body.into(), timeout).await {
        Ok(answer) => Ok(answer.payload.to_vec()),
        Err(BusError::NoResponders { subject }) => {
            bail!("nobody answers on {subject}: that service does not run, see `portalis status`")
        }
        Err(error) => Err(error.into()),
    }
}

/// Asks auth to do something with keys.
///
/// # Errors
/// When auth does not answer or refuses.
pub async fn keys<Q: Serialize>(bus: &Bus, verb: &str, question: &Q) -> anyhow::Result<KeysReply> {
    match ask(bus, &subjects::keys(verb), question).await? {
        KeysReply::Failed(failure) => Err(anyhow!(failure.message)),
        reply => Ok(reply),
    }
}

/// Asks auth who a key is; `None` when the text is no key at all.
///
/// # Errors
/// When auth does not answer.
pub async fn resolve(bus: &Bus, key: &str, timeout: Duration) -> anyhow::Result<Option<Resolved>> {
    let Some(kid) = policy::key_id(key) else {
        return Ok(None);
    };
    let question = Resolve {
        kid: kid.to_owned(),
        key_sha256: policy::hex(&Sha256::digest(key.as_bytes())),
    };
    let answer = request(bus, &subjects::resolve(kid), &question, timeout).await?;
    Ok(Some(
        wire::decode(&answer).context("the answer of auth cannot be read")?,
    ))
}

/// A reply that does not answer the question.
#[must_use]
pub fn unexpected(reply: KeysReply) -> anyhow::Error {
    let kind = match reply {
        KeysReply::Created { .. } => "created",
        KeysReply::Listed { .. } => "listed",
        KeysReply::Changed(_) => "changed",
        KeysReply::Failed(failure) => return anyhow!(failure.message),
    };
    anyhow!("auth answered another question ({kind}): it may be of another version")
}
