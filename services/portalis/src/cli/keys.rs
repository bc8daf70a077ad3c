//! `portalis keys`. Input: a command. Output: the answer of auth.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use bus::Bus;
use schemas::policy::{CreateKey, KeyInfo, KeyState, KeysReply, ListKeys, NameKey, RequestLimit};
use schemas::work::Lane;
use serde_json::json;

use super::show;
use crate::args::{CreateKeyArgs, KeysCommand, Mesh};
use crate::mesh;

/// Burst when none is named: a tenth of a minute's requests come at once without waiting.
const BURST_SHARE: u32 = 10;

pub(super) async fn run(command: &KeysCommand, mesh: &Mesh, bus: &Bus) -> anyhow::Result<()> {
    match command {
        KeysCommand::Create(args) => create(args, mesh, bus).await,
        KeysCommand::List { tenant } => {
            let keys = list(bus, tenant.as_deref()).await?;
            if mesh.json {
                return show::json(&keys);
            }
            let rows: Vec<_> = keys.iter().map(row).collect();
            let heading = ["ID", "TENANT", "NAME", "STATE", "MODELS", "LIMIT", "CREATED", "EXPIRES"];
            show::table(
                &heading,
                &rows,
                "no keys: make one with `portalis keys create --tenant T --name N`",
            )
        }
        KeysCommand::Disable(key) => change(bus, "disable", &key.kid, mesh).await,
        KeysCommand::Enable(key) => change(bus, "enable", &key.kid, mesh).await,
        KeysCommand::Delete(key) => change(bus, "delete", &key.kid, mesh).await,
    }
}

/// All keys, page by page.
pub(super) async fn list(bus: &Bus, tenant: Option<&str>) -> anyhow::Result<Vec<KeyInfo>> {
    let mut all: Vec<KeyInfo> = Vec::new();
    loop {
        let after = all.last().map(|key| key.kid.clone());
        let question = ListKeys {
            tenant: tenant.map(str::to_owned),
            after,
        };
        match mesh::keys(bus, "list", &question).await? {
            KeysReply::Listed { keys, more } => {
                let got_none = keys.is_empty();
                all.extend(keys);
                if !more || got_none {
                    return Ok(all);
                }
            }
            other => return Err(mesh::unexpected(other)),
        }
    }
}

async fn create(args: &CreateKeyArgs, mesh: &Mesh, bus: &Bus) -> anyhow::Result<()> {
    let expires_at_ms = match args.expires_in {
        None => None,
        Some(span) => {
            let at = SystemTime::now().duration_since(UNIX_EPOCH)?.checked_add(span);
            let at_ms = at.and_then(|at| u64::try_from(at.as_millis()).ok());
            Some(at_ms.context("--expires-in is too long")?)
        }
    };
    let question = CreateKey {
        tenant: args.tenant.clone(),
        name: args.name.clone(),
        models: args.models.clone(),
        scopes: Vec::new(),
        request_limit: args.rpm.map(|per_minute| limit(per_minute, args.burst)),
        priority_ceiling: Lane::Interactive,
        expires_at_ms,
    };
    match mesh::keys(bus, "create", &question).await? {
        KeysReply::Created { key, info } if mesh.json => show::json(&json!({"key": key, "info": info})),
        KeysReply::Created { key, info } => {
            show::line(&key)?;
            // Not on standard output, so that $(portalis keys create …) holds the key alone.
            remark(&format!(
                "key {} of tenant {}: keep it, it is not shown again",
                info.kid, info.tenant
            ));
            Ok(())
        }
        other => Err(mesh::unexpected(other)),
    }
}

/// A remark for people beside the output.
fn remark(text: &str) {
    use std::io::Write;
    // A terminal that is gone needs no remarks.
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn limit(per_minute: u32, burst: Option<u32>) -> RequestLimit {
    RequestLimit {
        per_minute,
        burst: burst.unwrap_or((per_minute / BURST_SHARE).max(1)),
    }
}

async fn change(bus: &Bus, verb: &str, kid: &str, mesh: &Mesh) -> anyhow::Result<()> {
    match mesh::keys(bus, verb, &NameKey { kid: kid.to_owned() }).await? {
        KeysReply::Changed(info) if mesh.json => show::json(&info),
        KeysReply::Changed(info) => show::line(&format!("key {} is {}", info.kid, state(info.state))),
        other => Err(mesh::unexpected(other)),
    }
}

fn row(key: &KeyInfo) -> Vec<String> {
    let limit = key.request_limit.map_or_else(
        || "-".to_owned(),
        |limit| format!("{}/min, {} at once", limit.per_minute, limit.burst),
    );
    vec![
        key.kid.clone(),
        key.tenant.clone(),
        key.name.clone(),
        state(key.state).to_owned(),
        key.models.join(","),
        limit,
        show::ago(key.created_at_ms),
        key.expires_at_ms.map_or_else(|| "never".to_owned(), show::ago),
    ]
}

fn state(state: KeyState) -> &'static str {
    match state {
        KeyState::Active => "active",
        KeyState::Disabled => "disabled",
        KeyState::Deleted => "deleted",
        KeyState::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_always_lets_one_request_through() {
        assert_eq!(limit(600, None).burst, 60);
        assert_eq!(limit(5, None).burst, 1);
        assert_eq!(limit(5, Some(3)).burst, 3);
    }
}
