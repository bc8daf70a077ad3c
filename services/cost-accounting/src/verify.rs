//! Proof that the roll-ups say what the journal says. Input: a ledger file, only read. Output: a report of differences.

use std::collections::BTreeMap;
use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteRow};
use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection};

use crate::ledger::{DERIVED_SUMS, LedgerError, Position, ROLLUP_KEY, SUM_COLUMNS, failed, read_position};

/// Differences that are listed; the count goes on.
const MAX_LISTED: usize = 100;

/// What verification found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyReport {
    /// Facts in the journal.
    pub journal_rows: u64,
    /// Sums in the roll-ups.
    pub rollup_rows: u64,
    /// Messages and events kept as rejected.
    pub rejected_rows: u64,
    /// Where reading stands.
    pub position: Option<Position>,
    /// How many sums differ; 0 is a sound ledger.
    pub differences: u64,
    /// The first of them.
    pub listed: Vec<Difference>,
}

impl VerifyReport {
    /// Whether every sum is what the journal says.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.differences == 0
    }
}

/// One sum that is not what the journal says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Tenant, key, hour, model and operation.
    pub key: RollupKey,
    /// Which sum.
    pub column: &'static str,
    /// What the journal gives, `None` when it has no such row.
    pub journal: Option<i64>,
    /// What the roll-up says, `None` when it has no such row.
    pub rollup: Option<i64>,
}

/// What a roll-up row stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RollupKey {
    /// The tenant.
    pub tenant: String,
    /// The key.
    pub key_id: String,
    /// Hours since 1970.
    pub hour: i64,
    /// The model's true name.
    pub model: String,
    /// What was done.
    pub operation: String,
}

type Sums = [i64; SUM_COLUMNS.len()];

/// Derives all roll-ups from the journal again and compares. Reads one moment of the file, also while it is written.
///
/// # Errors
/// When the file cannot be opened or read.
pub async fn verify(path: &Path) -> Result<VerifyReport, LedgerError> {
    let options = SqliteConnectOptions::new().filename(path).read_only(true);
    let mut connection = SqliteConnection::connect_with(&options)
        .await
        .map_err(|source| LedgerError::Open {
            path: path.to_owned(),
            source,
        })?;
    // One transaction, so that all questions see the same moment.
    let mut moment = connection.begin().await.map_err(failed("begin"))?;
    let derived = format!(
        "SELECT tenant, key_id, occurred_at_ms / 3600000 AS hour, model, operation, {DERIVED_SUMS} \
         FROM journal WHERE kind <> 'unknown' GROUP BY {ROLLUP_KEY}"
    );
    let kept = format!("SELECT {ROLLUP_KEY}, {} FROM rollup_hour", SUM_COLUMNS.join(", "));
    let derived = read_sums(&mut moment, derived).await?;
    let kept = read_sums(&mut moment, kept).await?;
    let (differences, listed) = compare(&derived, &kept);
    let report = VerifyReport {
        journal_rows: count(&mut moment, "SELECT COUNT(*) FROM journal").await?,
        rollup_rows: kept.len() as u64,
        rejected_rows: count(&mut moment, "SELECT COUNT(*) FROM rejected").await?,
        position: read_position(&mut moment).await?,
        differences,
        listed,
    };
    moment.rollback().await.map_err(failed("end reading"))?;
    connection.close().await.map_err(failed("close"))?;
    Ok(report)
}

async fn count(connection: &mut SqliteConnection, question: &'static str) -> Result<u64, LedgerError> {
    let counted = sqlx::query_scalar(question).fetch_one(connection).await;
    counted.map_err(failed("count rows"))
}

async fn read_sums(
    connection: &mut SqliteConnection,
    question: String,
) -> Result<BTreeMap<RollupKey, Sums>, LedgerError> {
    let broken = failed("read sums");
    let rows = sqlx::query(AssertSqlSafe(question))
        .fetch_all(connection)
        .await
        .map_err(&broken)?;
    let sums = rows.iter().map(read_row).collect::<Result<_, _>>();
    sums.map_err(broken)
}

fn read_row(row: &SqliteRow) -> Result<(RollupKey, Sums), sqlx::Error> {
    let key = RollupKey {
        tenant: row.try_get(0)?,
        key_id: row.try_get(1)?,
        hour: row.try_get(2)?,
        model: row.try_get(3)?,
        operation: row.try_get(4)?,
    };
    let mut sums = Sums::default();
    for (sum, column) in sums.iter_mut().zip(SUM_COLUMNS) {
        *sum = row.try_get(column)?;
    }
    Ok((key, sums))
}

fn compare(derived: &BTreeMap<RollupKey, Sums>, kept: &BTreeMap<RollupKey, Sums>) -> (u64, Vec<Difference>) {
    let mut differences = 0;
    let mut listed = Vec::new();
    let only_kept = kept.keys().filter(|key| !derived.contains_key(key));
    for key in derived.keys().chain(only_kept) {
        let (journal, rollup) = (derived.get(key), kept.get(key));
        for (index, column) in SUM_COLUMNS.into_iter().enumerate() {
            let (journal, rollup) = (journal.map(|sums| sums[index]), rollup.map(|sums| sums[index]));
            if journal == rollup {
                continue;
            }
            differences += 1;
            if listed.len() < MAX_LISTED {
                listed.push(Difference {
                    key: key.clone(),
                    column,
                    journal,
                    rollup,
                });
            }
        }
    }
    (differences, listed)
}
