//! The ledger's file and its one writer. Input: batches of priced facts with the stream position behind them.
//! Output: journal, roll-ups and cursor moved together in one transaction, or not at all.

mod statements;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Connection, SqliteConnection};

use self::statements::{
    add_to_rollups, book_time_spent_twice, insert_entries, insert_rejected, sum_kinds, write_position,
};
use crate::book::Entry;

pub(crate) use self::statements::{DERIVED_SUMS, ROLLUP_KEY, SUM_COLUMNS, read_position};

/// The migrations in order; the version of a file is how many of them it has seen.
const MIGRATIONS: &[&str] = &[include_str!("migrations/0001_journal.sql")];
/// How long a statement waits for another process that holds the file, e.g. a backup.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the ledger could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Its folder cannot be made.
    #[error("cannot make the folder of ledger {}", path.display())]
    Folder {
        /// The ledger.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file cannot be opened.
    #[error("cannot open ledger {}", path.display())]
    Open {
        /// The ledger.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: sqlx::Error,
    },
    /// The file was written by a newer program.
    #[error("ledger {} has version {found}, this program knows up to {known}; use a newer program", path.display())]
    Newer {
        /// The ledger.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: usize,
    },
    /// A statement failed.
    #[error("cannot {attempt} in the ledger")]
    Statement {
        /// What was attempted.
        attempt: &'static str,
        /// What SQLite said.
        #[source]
        source: sqlx::Error,
    },
}

/// Names what was attempted when a statement fails.
pub(crate) fn failed(attempt: &'static str) -> impl Fn(sqlx::Error) -> LedgerError {
    move |source| LedgerError::Statement { attempt, source }
}

/// How far a stream was booked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The stream's creation as the broker tells it.
    pub identity: String,
    /// Sequence of the last message that was booked or rejected.
    pub sequence: u64,
    /// When that message was stored by the broker, Unix milliseconds.
    pub message_at_ms: u64,
}

/// A message, or an event in it, that cannot be booked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The message.
    pub sequence: u64,
    /// The event's place in the message.
    pub position: u32,
    /// The message's subject.
    pub subject: String,
    /// Why, from a closed set.
    pub reason: &'static str,
    /// Why, for people.
    pub detail: String,
    /// The beginning of the message, or the event's id.
    pub body: Vec<u8>,
}

/// What is booked together.
#[derive(Debug)]
pub struct Batch {
    /// Priced facts with the sequence of their message, in the stream's order.
    pub entries: Vec<(u64, Entry)>,
    /// What could not be booked.
    pub rejected: Vec<Rejected>,
    /// Where reading stands after all of it.
    pub position: Position,
    /// Now, Unix milliseconds.
    pub booked_at_ms: u64,
}

/// What really changed, for the metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Booked {
    /// Sums by kind.
    pub kinds: Vec<KindSums>,
    /// Facts that were booked before.
    pub duplicates: u64,
}

/// Sums over the rows of one kind that were inserted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KindSums {
    /// The kind's name.
    pub kind: String,
    /// Rows.
    pub events: u64,
    /// Requests without a price.
    pub unpriced: u64,
    /// Device time.
    pub compute_ns: u64,
    /// Cost in nano-dollars.
    pub cost_nano_usd: i64,
    /// Savings in nano-dollars.
    pub saved_nano_usd: i64,
}

/// The one writer.
#[derive(Debug)]
pub struct Ledger {
    connection: SqliteConnection,
}

impl Ledger {
    /// Opens the file, makes it when there is none, and brings it to this program's version.
    ///
    /// # Errors
    /// When the file cannot be opened or is newer than this program.
    pub async fn open(path: &Path) -> Result<Self, LedgerError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|source| LedgerError::Folder {
                path: path.to_owned(),
                source,
            })?;
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // Each commit is on the disk before the cursor counts as moved.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            // 32 MiB: the pages of the last minutes, where retried facts are looked for.
            .pragma("cache_size", "-32768")
            // A checkpoint per 16 MiB of log, instead of one per one or two full batches.
            .pragma("wal_autocheckpoint", "4096");
        let open = |source| LedgerError::Open {
            path: path.to_owned(),
            source,
        };
        let mut connection = SqliteConnection::connect_with(&options).await.map_err(open)?;
        migrate(&mut connection, path).await?;
        Ok(Self { connection })
    }

    /// Where reading stands, `None` when nothing was ever read.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn position(&mut self) -> Result<Option<Position>, LedgerError> {
        read_position(&mut self.connection).await
    }

    /// Books a batch: all of it or nothing. Facts that are booked already change nothing.
    ///
    /// Cancel-safe: dropped before its end, nothing was booked.
    ///
    /// # Errors
    /// When the file cannot be written; the same batch may be tried again.
    pub async fn book(&mut self, batch: &Batch) -> Result<Booked, LedgerError> {
        // IMMEDIATE: a transaction that begins as a reader cannot wait for another writer.
        let mut transaction = self
            .connection
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(failed("begin"))?;
        let last_row: i64 = sqlx::query_scalar("SELECT COALESCE(MAX(id), 0) FROM journal")
            .fetch_one(&mut *transaction)
            .await
            .map_err(failed("read the last row"))?;
        let entries: Vec<_> = batch.entries.iter().map(|(at, entry)| (*at, entry)).collect();
        let inserted = insert_entries(&mut transaction, &entries, batch.booked_at_ms).await?;
        let duplicates = (entries.len() as u64).saturating_sub(inserted);
        if duplicates > 0 {
            book_time_spent_twice(&mut transaction, batch).await?;
        }
        let kinds = sum_kinds(&mut transaction, last_row).await?;
        add_to_rollups(&mut transaction, last_row).await?;
        insert_rejected(&mut transaction, batch).await?;
        write_position(&mut transaction, &batch.position).await?;
        transaction.commit().await.map_err(failed("commit"))?;
        Ok(Booked { kinds, duplicates })
    }

    /// Closes the file, its log folded in.
    ///
    /// # Errors
    /// When the last pages cannot be written; committed rows are safe all the same.
    pub async fn close(self) -> Result<(), LedgerError> {
        self.connection.close().await.map_err(failed("close"))
    }
}

async fn migrate(connection: &mut SqliteConnection, path: &Path) -> Result<(), LedgerError> {
    let broken = failed("migrate");
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(&broken)?;
    sqlx::raw_sql("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL) STRICT")
        .execute(&mut *transaction)
        .await
        .map_err(&broken)?;
    let found: i64 = sqlx::query_scalar("SELECT COALESCE(MAX(version), 0) FROM schema_version")
        .fetch_one(&mut *transaction)
        .await
        .map_err(&broken)?;
    let seen = usize::try_from(found).unwrap_or(usize::MAX);
    let Some(missing) = MIGRATIONS.get(seen..) else {
        return Err(LedgerError::Newer {
            path: path.to_owned(),
            found,
            known: MIGRATIONS.len(),
        });
    };
    for (number, migration) in (found + 1..).zip(missing) {
        sqlx::raw_sql(*migration)
            .execute(&mut *transaction)
            .await
            .map_err(&broken)?;
        sqlx::query("INSERT INTO schema_version (version) VALUES (?)")
            .bind(number)
            .execute(&mut *transaction)
            .await
            .map_err(&broken)?;
    }
    transaction.commit().await.map_err(&broken)
}

#[cfg(test)]
mod tests;
