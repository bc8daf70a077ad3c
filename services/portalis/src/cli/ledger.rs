//! `portalis ledger`. Input: the ledger file of the data folder. Output: whether its sums are what its journal says.

use anyhow::{bail, ensure};
use cost_accounting::{Difference, VerifyReport, verify};
use serde_json::json;

use super::show;
use crate::args::{LedgerCommand, Mesh};

/// The ledger in the data folder, as `portalis up` names it.
pub(crate) const LEDGER_FILE: &str = "ledger.db";

pub(super) async fn run(command: &LedgerCommand, mesh: &Mesh) -> anyhow::Result<()> {
    match command {
        LedgerCommand::Verify => {
            let path = mesh.data_dir.join(LEDGER_FILE);
            ensure!(
                path.is_file(),
                "no ledger at {}: name the data folder of a mesh with --data-dir",
                path.display()
            );
            let report = verify(&path).await?;
            print(&report, mesh.json)?;
            if report.is_sound() {
                Ok(())
            } else {
                bail!("{} sums differ from the journal", report.differences)
            }
        }
    }
}

fn print(report: &VerifyReport, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return show::json(&json!({
            "sound": report.is_sound(),
            "journal_rows": report.journal_rows,
            "rollup_rows": report.rollup_rows,
            "rejected_rows": report.rejected_rows,
            "differences": report.differences,
        }));
    }
    if !report.is_sound() {
        let rows: Vec<_> = report.listed.iter().map(row).collect();
        let heading = ["TENANT", "KEY", "HOUR", "MODEL", "SUM", "JOURNAL", "ROLL-UP"];
        show::table(&heading, &rows, "")?;
    }
    let sound = if report.is_sound() { "sound" } else { "NOT SOUND" };
    show::line(&format!(
        "the ledger is {sound}: {} facts, {} sums, {} rejected",
        report.journal_rows, report.rollup_rows, report.rejected_rows
    ))
}

fn row(difference: &Difference) -> Vec<String> {
    let number = |number: Option<i64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    vec![
        difference.key.tenant.clone(),
        difference.key.key_id.clone(),
        difference.key.hour.to_string(),
        difference.key.model.clone(),
        difference.column.to_owned(),
        number(difference.journal),
        number(difference.rollup),
    ]
}
