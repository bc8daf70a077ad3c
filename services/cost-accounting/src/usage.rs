//! What was used and what it cost. Input: whose and when. Output: sums of the roll-ups, read beside the writer.

use std::path::Path;
use std::time::Duration;

use schemas::cost::{UsageGet, UsageReport};
use schemas::money::NanoUsd;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};
use sqlx::{QueryBuilder, Row, Sqlite};

use crate::ledger::{LedgerError, SUM_COLUMNS, failed};

/// Connections that read: usage is asked seldom, and one slow question must not hold up the next.
const READERS: u32 = 2;
/// How long a question waits for a free connection; below the time for which askers wait for the answer.
const READER_WAIT: Duration = Duration::from_secs(1);
const SECONDS_PER_HOUR: u64 = 3_600;

/// Reads the roll-ups. Clones share the connections.
#[derive(Debug, Clone)]
pub struct UsageStore {
    pool: SqlitePool,
}

impl UsageStore {
    /// Opens a ledger that exists, for reading only.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub async fn open(path: &Path) -> Result<Self, LedgerError> {
        let options = SqliteConnectOptions::new().filename(path).read_only(true);
        let pool = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(READER_WAIT)
            .connect_with(options)
            .await
            .map_err(|source| LedgerError::Open {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self { pool })
    }

    /// The sums for a question; `as_of_ms` is passed through.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn usage(&self, get: &UsageGet, as_of_ms: u64) -> Result<UsageReport, LedgerError> {
        let broken = failed("sum the usage");
        let row = question(get).build().fetch_one(&self.pool).await.map_err(&broken)?;
        let sum = |column: &str| row.try_get::<u64, _>(column).map_err(&broken);
        let money = |column: &str| row.try_get(column).map(NanoUsd).map_err(&broken);
        let (computed, cached) = (sum("computed")?, sum("cached")?);
        Ok(UsageReport {
            requests: computed.saturating_add(cached),
            computed,
            cached,
            unpriced: sum("unpriced")?,
            input_tokens: sum("input_tokens")?,
            output_tokens: sum("output_tokens")?,
            compute_ns: sum("compute_ns")?,
            wasted_ns: sum("wasted_ns")?,
            cost: money("cost_nano_usd")?,
            saved: money("saved_nano_usd")?,
            as_of_ms,
        })
    }

    /// Closes the connections.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

fn question(get: &UsageGet) -> QueryBuilder<Sqlite> {
    let sums = SUM_COLUMNS.map(|column| format!("COALESCE(SUM({column}), 0) AS {column}"));
    let mut question = QueryBuilder::new(format!("SELECT {} FROM rollup_hour WHERE tenant = ", sums.join(", ")));
    question.push_bind(get.tenant.as_str());
    if let Some(key_id) = &get.key_id {
        question.push(" AND key_id = ").push_bind(key_id.as_str());
    }
    // Hours that a number of this size names fit in 64 bits with sign.
    let hour = |hour: u64| i64::try_from(hour).unwrap_or(i64::MAX);
    if let Some(start_s) = get.start_s {
        question
            .push(" AND hour >= ")
            .push_bind(hour(start_s / SECONDS_PER_HOUR));
    }
    if let Some(end_s) = get.end_s {
        question
            .push(" AND hour < ")
            .push_bind(hour(end_s.div_ceil(SECONDS_PER_HOUR)));
    }
    question
}
