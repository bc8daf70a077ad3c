//! `portalis cache`. Input: perhaps a tenant. Output: word to every cache to forget answers.

use bus::{Bus, Headers};
use schemas::cache::CachePurge;
use schemas::{subjects, wire};
use serde_json::json;

use super::show;
use crate::args::Mesh;

pub(super) async fn purge(tenant: Option<&str>, mesh: &Mesh, bus: &Bus) -> anyhow::Result<()> {
    let body = wire::encode(&CachePurge {
        tenant: tenant.map(str::to_owned),
    })?;
    bus.publish(subjects::CACHE_PURGE, Headers::new(), body.into()).await?;
    // The broker has it once it answers.
    bus.round_trip(bus.request_timeout()).await?;
    if mesh.json {
        return show::json(&json!({"purged": tenant.unwrap_or("*")}));
    }
    match tenant {
        Some(tenant) => show::line(&format!("cached answers of {tenant} are forgotten")),
        None => show::line("all cached answers are forgotten"),
    }
}
