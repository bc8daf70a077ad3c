//! The demo key. Input: the file of a run before, auth. Output: a key that works, in a file that only its owner can read.

use std::path::Path;
use std::time::Duration;

use bus::Bus;
use schemas::policy::{CreateKey, KeysReply, Resolved};
use schemas::work::Lane;

use super::data_dir::write_private;
use crate::mesh;

/// Who pays for the demo.
const TENANT: &str = "demo";
/// Longest wait for auth, which has just said that it is ready.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The key in the file if it still works, else a new one, which is written there.
///
/// # Errors
/// When auth does not answer or the file cannot be written.
pub async fn obtain(bus: &Bus, path: &Path) -> anyhow::Result<String> {
    if let Ok(text) = std::fs::read_to_string(path) {
        let key = text.trim();
        if let Some(Resolved::Granted(_)) = mesh::resolve(bus, key, TIMEOUT).await? {
            return Ok(key.to_owned());
        }
        tracing::info!("the demo key of an earlier run does not work any more, making another");
    }
    let create = CreateKey {
        tenant: TENANT.to_owned(),
        name: "portalis up".to_owned(),
        models: Vec::new(),
        scopes: Vec::new(),
        request_limit: None,
        priority_ceiling: Lane::Interactive,
        expires_at_ms: None,
    };
    match mesh::keys(bus, "create", &create).await? {
        KeysReply::Created { key, .. } => {
            write_private(path, &format!("{key}\n"))?;
            Ok(key)
        }
        other => Err(mesh::unexpected(other)),
    }
}
