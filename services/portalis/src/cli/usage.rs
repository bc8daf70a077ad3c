//! `portalis usage`. Input: a key or a tenant. Output: what it used and what it cost.

use std::time::Duration;

use anyhow::Context;
use bus::Bus;
use schemas::cost::{UsageGet, UsageReport};
use schemas::error::Failure;
use schemas::{subjects, wire};

use super::{keys, show};
use crate::args::{Mesh, UsageArgs};
use crate::mesh;

/// Longest wait for the ledger: a tenant's roll-ups are summed while it books.
const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn run(args: &UsageArgs, mesh: &Mesh, bus: &Bus) -> anyhow::Result<()> {
    let tenant = match (&args.tenant, &args.key) {
        (Some(tenant), _) => tenant.clone(),
        (None, Some(kid)) => tenant_of(bus, kid).await?,
        (None, None) => anyhow::bail!("name a key with --key or a tenant with --tenant"),
    };
    let question = UsageGet {
        key_id: args.key.clone(),
        tenant,
        start_s: None,
        end_s: None,
    };
    let answer = mesh::request(bus, subjects::USAGE_GET, &question, TIMEOUT).await?;
    let report: UsageReport = match wire::decode(&answer) {
        Ok(report) => report,
        // A refusal has no field of a report.
        Err(error) => match wire::decode::<Failure>(&answer) {
            Ok(failure) => anyhow::bail!(failure.message),
            Err(_) => return Err(error).context("the answer of cost-accounting cannot be read"),
        },
    };
    if mesh.json {
        return show::json(&report);
    }
    let rows = [
        ("requests", report.requests.to_string()),
        ("  computed", report.computed.to_string()),
        ("  cached", report.cached.to_string()),
        ("input tokens", report.input_tokens.to_string()),
        ("output tokens", report.output_tokens.to_string()),
        (
            "compute time",
            format!("{:.3} s", Duration::from_nanos(report.compute_ns).as_secs_f64()),
        ),
        ("cost", format!("${}", report.cost)),
        ("saved by cache", format!("${}", report.saved)),
        ("as of", show::ago(report.as_of_ms)),
    ];
    rows.iter()
        .try_for_each(|(name, value)| show::line(&format!("{name:16}{value}")))
}

/// Who pays for a key.
async fn tenant_of(bus: &Bus, kid: &str) -> anyhow::Result<String> {
    let all = keys::list(bus, None).await?;
    let key = all.into_iter().find(|key| key.kid == kid);
    Ok(key
        .with_context(|| format!("no key {kid}, see `portalis keys list`"))?
        .tenant)
}
