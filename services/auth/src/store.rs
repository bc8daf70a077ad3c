//! The table of keys in SQLite. Input: a file path, new keys and changes. Output: rows; what is acknowledged is on the disk.
//!
//! Write-ahead log with `synchronous = FULL`: a commit is synced before its answer, readers never wait for a writer.
//! Every change is one statement, so no transaction is open across an await of ours.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemas::policy::{KeyInfo, KeyState, RequestLimit};
use schemas::work::Lane;
use sqlx::Row;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};

/// Statements that lead from one version of the tables to the next, never changed once released.
const MIGRATIONS: &[&str] = &[include_str!("migrations/0001_keys.sql")];

/// Readers beside the one writer that SQLite allows; look-ups take microseconds, so few are enough.
const CONNECTIONS: u32 = 4;

/// Longest wait for the writer or for a connection: far over any commit, below the patience of who asks.
const PATIENCE: Duration = Duration::from_secs(3);

/// One key as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyRow {
    /// What people may know of it.
    pub(crate) info: KeyInfo,
    /// HMAC of its digest.
    pub(crate) mac: Vec<u8>,
    /// Version of the pepper in `mac`.
    pub(crate) pepper_version: u32,
}

/// What came of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// The key has the state now, and a new policy version.
    Done(KeyRow),
    /// It had it already.
    Already(KeyRow),
    /// It was deleted and never changes again.
    Deleted,
    /// There is no such key.
    NoSuchKey,
}

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The folder or the file cannot be made.
    #[error("cannot make key store {}", path.display())]
    Make {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The file is not a database, or the disk fails.
    #[error("cannot open key store {place}")]
    Open {
        place: String,
        #[source]
        source: sqlx::Error,
    },
    /// A newer program wrote it.
    #[error("key store has version {found}, this program knows {known}: start a newer one")]
    Newer { found: usize, known: usize },
    /// A statement failed.
    #[error("cannot {attempt} in the key store")]
    Query {
        attempt: &'static str,
        #[source]
        source: sqlx::Error,
    },
    /// A row does not say what it should.
    #[error("key store holds {value:?} as {column} of key {kid}")]
    Row {
        kid: String,
        column: &'static str,
        value: String,
    },
}

/// The open store; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pool: SqlitePool,
}

impl Store {
    /// The store in a file, made if it is not there; without a path one in memory that ends with the process.
    pub(crate) async fn open(path: Option<&Path>) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new();
        let (options, connections) = match path {
            Some(path) => {
                make_private(path).map_err(|source| StoreError::Make {
                    path: path.to_owned(),
                    source,
                })?;
                (options.filename(path), CONNECTIONS)
            }
            // Each connection to memory would be a database of its own.
            None => (options.in_memory(true), 1),
        };
        let options = options
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(PATIENCE);
        let pool = SqlitePoolOptions::new()
            .max_connections(connections)
            .min_connections(1)
            .acquire_timeout(PATIENCE)
            // The database in memory lives as long as its connection.
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .connect_with(options)
            .await;
        let place = path.map_or_else(|| "in memory".to_owned(), |path| path.display().to_string());
        let pool = pool.map_err(|source| StoreError::Open { place, source })?;
        let store = Self { pool };
        store.migrate().await?;
        Ok(store)
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        let failed = query("bring the tables up to date");
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        sqlx::query("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL) STRICT")
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        let found: Option<i64> = sqlx::query_scalar("SELECT max(version) FROM schema_version")
            .fetch_one(&mut *transaction)
            .await
            .map_err(failed)?;
        let found = found.map_or(0, |version| usize::try_from(version).unwrap_or(usize::MAX));
        let known = MIGRATIONS.len();
        let Some(missing) = MIGRATIONS.get(found..) else {
            return Err(StoreError::Newer { found, known });
        };
        for statements in missing {
            sqlx::raw_sql(*statements)
                .execute(&mut *transaction)
                .await
                .map_err(failed)?;
        }
        if !missing.is_empty() {
            sqlx::query("INSERT INTO schema_version (version) VALUES (?1)")
                .bind(known as i64)
                .execute(&mut *transaction)
                .await
                .map_err(failed)?;
        }
        transaction.commit().await.map_err(failed)
    }

    /// Adds a key.
    pub(crate) async fn insert(&self, row: &KeyRow) -> Result<(), StoreError> {
        let info = &row.info;
        sqlx::query(
            "INSERT INTO keys (kid, mac, pepper_version, tenant, name, models, scopes, priority_ceiling, per_minute, \
             burst, state, created_at_ms, changed_at_ms, expires_at_ms, policy_version) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?12, ?13, ?14)",
        )
        .bind(&info.kid)
        .bind(&row.mac)
        .bind(row.pepper_version)
        .bind(&info.tenant)
        .bind(&info.name)
        .bind(json(&info.models))
        .bind(json(&info.scopes))
        .bind(info.priority_ceiling.as_str())
        .bind(info.request_limit.map(|limit| limit.per_minute))
        .bind(info.request_limit.map(|limit| limit.burst))
        .bind(state_name(info.state))
        .bind(info.created_at_ms as i64)
        .bind(info.expires_at_ms.map(|at| at as i64))
        .bind(info.policy_version as i64)
        .execute(&self.pool)
        .await
        .map_err(query("add a key"))?;
        Ok(())
    }

    /// One key, tombstones included.
    pub(crate) async fn find(&self, kid: &str) -> Result<Option<KeyRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM keys WHERE kid = ?1")
            .bind(kid)
            .fetch_optional(&self.pool)
            .await
            .map_err(query("find a key"))?;
        row.as_ref().map(read).transpose()
    }

    /// A page of keys by id, tombstones included, and whether more follow.
    pub(crate) async fn list(
        &self,
        tenant: Option<&str>,
        after: Option<&str>,
        page: usize,
    ) -> Result<(Vec<KeyInfo>, bool), StoreError> {
        let rows =
            sqlx::query("SELECT * FROM keys WHERE (?1 IS NULL OR tenant = ?1) AND kid > ?2 ORDER BY kid LIMIT ?3")
                .bind(tenant)
                .bind(after.unwrap_or_default())
                // One more than asked for says whether there is another page.
                .bind(page.saturating_add(1) as i64)
                .fetch_all(&self.pool)
                .await
                .map_err(query("list keys"))?;
        let more = rows.len() > page;
        let keys = rows.iter().take(page).map(|row| Ok(read(row)?.info));
        Ok((keys.collect::<Result<_, StoreError>>()?, more))
    }

    /// Gives a key a state. A deleted one also loses its mac: nothing can ever match it again.
    pub(crate) async fn set_state(&self, kid: &str, state: KeyState, now_ms: u64) -> Result<Change, StoreError> {
        let changed = sqlx::query(
            "UPDATE keys SET state = ?2, changed_at_ms = ?3, policy_version = policy_version + 1, \
             mac = CASE ?2 WHEN 'deleted' THEN x'' ELSE mac END \
             WHERE kid = ?1 AND state <> ?2 AND state <> 'deleted' RETURNING *",
        )
        .bind(kid)
        .bind(state_name(state))
        .bind(now_ms as i64)
        // All rows, of which there is at most one: only a statement run to its end is committed.
        .fetch_all(&self.pool)
        .await
        .map_err(query("change a key"))?;
        if let Some(row) = changed.first() {
            return Ok(Change::Done(read(row)?));
        }
        Ok(match self.find(kid).await? {
            Some(row) if row.info.state == state => Change::Already(row),
            Some(_) => Change::Deleted,
            None => Change::NoSuchKey,
        })
    }

    /// Forgets keys that were deleted before a time; gives their number.
    pub(crate) async fn purge_deleted_before(&self, at_ms: u64) -> Result<u64, StoreError> {
        let done = sqlx::query("DELETE FROM keys WHERE state = 'deleted' AND changed_at_ms < ?1")
            .bind(at_ms as i64)
            .execute(&self.pool)
            .await
            .map_err(query("forget deleted keys"))?;
        Ok(done.rows_affected())
    }

    /// Versions of the pepper that keys need.
    pub(crate) async fn pepper_versions(&self) -> Result<Vec<u32>, StoreError> {
        sqlx::query_scalar("SELECT DISTINCT pepper_version FROM keys WHERE state <> 'deleted'")
            .fetch_all(&self.pool)
            .await
            .map_err(query("read pepper versions"))
    }

    /// Whether the store answers.
    pub(crate) async fn check(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT kid FROM keys LIMIT 1")
            .fetch_optional(&self.pool)
            .await
            .map_err(query("read"))?;
        Ok(())
    }

    /// Closes all connections; the write-ahead log is folded into the file.
    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }
}

/// Makes folder and file so that only their owner can read what the database and its log will hold.
fn make_private(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    Ok(())
}

fn query(attempt: &'static str) -> impl Fn(sqlx::Error) -> StoreError + Copy {
    move |source| StoreError::Query { attempt, source }
}

#[expect(
    clippy::expect_used,
    reason = "strings and plain enums have no value that JSON lacks"
)]
fn json<T: serde::Serialize>(values: &[T]) -> String {
    serde_json::to_string(values).expect("a list of names is JSON")
}

fn state_name(state: KeyState) -> &'static str {
    match state {
        KeyState::Active => "active",
        KeyState::Deleted => "deleted",
        // A state we do not know does not work.
        KeyState::Disabled | KeyState::Unknown => "disabled",
    }
}

fn read(row: &SqliteRow) -> Result<KeyRow, StoreError> {
    let failed = query("read a key");
    let kid: String = row.try_get("kid").map_err(failed)?;
    let text = |column| row.try_get::<String, _>(column).map_err(failed);
    let number = |column| row.try_get::<i64, _>(column).map_err(failed);
    let bad = |column, value: String| StoreError::Row {
        kid: kid.clone(),
        column,
        value,
    };
    let unsigned = |column| {
        let value = number(column)?;
        u64::try_from(value).map_err(|_| bad(column, value.to_string()))
    };
    let (models, scopes, lane, state) = (
        text("models")?,
        text("scopes")?,
        text("priority_ceiling")?,
        text("state")?,
    );
    let per_minute: Option<u32> = row.try_get("per_minute").map_err(failed)?;
    let burst: Option<u32> = row.try_get("burst").map_err(failed)?;
    let expires: Option<i64> = row.try_get("expires_at_ms").map_err(failed)?;
    let info = KeyInfo {
        tenant: text("tenant")?,
        name: text("name")?,
        state: match state.as_str() {
            "active" => KeyState::Active,
            "disabled" => KeyState::Disabled,
            "deleted" => KeyState::Deleted,
            _ => return Err(bad("state", state)),
        },
        models: serde_json::from_str(&models).map_err(|_| bad("models", models))?,
        scopes: serde_json::from_str(&scopes).map_err(|_| bad("scopes", scopes))?,
        request_limit: per_minute
            .zip(burst)
            .map(|(per_minute, burst)| RequestLimit { per_minute, burst }),
        priority_ceiling: Lane::parse(&lane).ok_or_else(|| bad("priority_ceiling", lane))?,
        created_at_ms: unsigned("created_at_ms")?,
        expires_at_ms: expires
            .map(|at| u64::try_from(at).map_err(|_| bad("expires_at_ms", at.to_string())))
            .transpose()?,
        policy_version: unsigned("policy_version")?,
        kid: kid.clone(),
    };
    Ok(KeyRow {
        info,
        mac: row.try_get("mac").map_err(failed)?,
        pepper_version: row.try_get("pepper_version").map_err(failed)?,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use schemas::policy::Scope;

    use super::*;

    fn row(kid: &str, tenant: &str) -> KeyRow {
        let info = KeyInfo {
            kid: kid.to_owned(),
            tenant: tenant.to_owned(),
            name: "it's \"one\"".to_owned(),
            state: KeyState::Active,
            models: vec!["a*".to_owned()],
            scopes: vec![Scope::Inference, Scope::UsageRead],
            request_limit: Some(RequestLimit {
                per_minute: 60,
                burst: u32::MAX,
            }),
            priority_ceiling: Lane::Batch,
            created_at_ms: 1_000,
            expires_at_ms: Some(2_000),
            policy_version: 1,
        };
        KeyRow {
            info,
            mac: vec![1, 2, 3],
            pepper_version: 1,
        }
    }

    #[tokio::test]
    async fn keys_live_change_and_die() {
        let store = Store::open(None).await.unwrap();
        let first = row("a", "t");
        store.insert(&first).await.unwrap();
        assert!(store.insert(&first).await.is_err(), "a kid is used once");
        assert_eq!(store.find("a").await.unwrap(), Some(first));
        assert_eq!(store.find("b").await.unwrap(), None);

        let set = async |state| store.set_state("a", state, 5_000).await.unwrap();
        let Change::Done(disabled) = set(KeyState::Disabled).await else {
            panic!("it was active");
        };
        assert_eq!(
            (disabled.info.state, disabled.info.policy_version),
            (KeyState::Disabled, 2)
        );
        assert_eq!(set(KeyState::Disabled).await, Change::Already(disabled));
        assert!(matches!(set(KeyState::Active).await, Change::Done(row) if row.info.policy_version == 3));
        let Change::Done(deleted) = set(KeyState::Deleted).await else {
            panic!("it was active");
        };
        assert_eq!((deleted.mac.len(), deleted.info.policy_version), (0, 4));
        assert_eq!(set(KeyState::Active).await, Change::Deleted);
        assert_eq!(
            store.set_state("b", KeyState::Active, 0).await.unwrap(),
            Change::NoSuchKey
        );

        assert_eq!(store.purge_deleted_before(5_000).await.unwrap(), 0);
        assert_eq!(store.purge_deleted_before(5_001).await.unwrap(), 1);
        assert_eq!(store.find("a").await.unwrap(), None);
        store.check().await.unwrap();
    }

    #[tokio::test]
    async fn pages() {
        let store = Store::open(None).await.unwrap();
        for (kid, tenant) in [("c", "t"), ("a", "t"), ("b", "u"), ("d", "t")] {
            store.insert(&row(kid, tenant)).await.unwrap();
        }
        let page = async |tenant, after| {
            let (keys, more) = store.list(tenant, after, 2).await.unwrap();
            let kids: Vec<String> = keys.into_iter().map(|key| key.kid).collect();
            (kids.join(""), more)
        };
        assert_eq!(page(None, None).await, ("ab".to_owned(), true));
        assert_eq!(page(None, Some("b")).await, ("cd".to_owned(), false));
        assert_eq!(page(Some("t"), None).await, ("ac".to_owned(), true));
        assert_eq!(page(Some("t"), Some("c")).await, ("d".to_owned(), false));
        assert_eq!(page(Some("x"), None).await, (String::new(), false));
    }

    #[tokio::test]
    async fn files_are_private_durable_and_versioned() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/auth.sqlite3");
        let store = Store::open(Some(&path)).await.unwrap();
        store.insert(&row("a", "t")).await.unwrap();
        for entry in fs::read_dir(path.parent().unwrap()).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{:?}", entry.path());
        }
        let pragma = async |name: &'static str| {
            let row = sqlx::query(name).fetch_one(&store.pool).await.unwrap();
            row.try_get_unchecked::<String, _>(0)
                .or_else(|_| row.try_get::<i64, _>(0).map(|number| number.to_string()))
                .unwrap()
        };
        assert_eq!(pragma("PRAGMA journal_mode").await, "wal");
        assert_eq!(pragma("PRAGMA synchronous").await, "2", "2 is FULL");
        store.close().await;

        let again = Store::open(Some(&path)).await.unwrap();
        assert_eq!(again.find("a").await.unwrap(), Some(row("a", "t")));
        assert_eq!(again.pepper_versions().await.unwrap(), [1]);
        sqlx::query("INSERT INTO schema_version (version) VALUES (99)")
            .execute(&again.pool)
            .await
            .unwrap();
        again.close().await;
        assert!(matches!(
            Store::open(Some(&path)).await,
            Err(StoreError::Newer { found: 99, .. })
        ));

        fs::write(&path, "this is no database, and it is long enough to be seen").unwrap();
        assert!(Store::open(Some(&path)).await.is_err());
    }
}
