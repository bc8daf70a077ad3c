//! The statements of one booking transaction. Input: an open transaction and a batch. Output: rows; none of it counts
//! before the transaction is committed.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, AssertSqlSafe, QueryBuilder, Row, Sqlite, SqliteConnection, Transaction};

use super::{Batch, KindSums, LedgerError, Position, failed};
use crate::book::{Entry, is_paid_once};

/// The stream whose position is kept.
const STREAM: &str = "COST";
/// Rows of one INSERT, largest first: few distinct statements, each prepared once; 512 rows of 23 values stay below
/// SQLite's limit of 32,766.
const ROWS_PER_STATEMENT: [usize; 4] = [512, 64, 8, 1];
/// What a row of the journal says, but for its number.
const JOURNAL_COLUMNS: [&str; 23] = [
    "event_id",
    "kind",
    "tenant",
    "key_id",
    "model",
    "operation",
    "request_id",
    "requests",
    "input_tokens",
    "output_tokens",
    "compute_ns",
    "queue_us",
    "attempt",
    "device",
    "terms",
    "reporter",
    "occurred_at_ms",
    "booked_at_ms",
    "stream_sequence",
    "cost_nano_usd",
    "saved_nano_usd",
    "unpriced",
    "price_version",
];
/// Rejected messages that are kept for people to look at; a broken publisher must not fill the disk.
const MAX_REJECTED_ROWS: i64 = 10_000;
/// The sums of a roll-up row, derived from journal rows; booking and verification use the same text.
pub(crate) const DERIVED_SUMS: &str = "\
    SUM(CASE WHEN kind IN ('computed', 'cancelled') THEN requests ELSE 0 END) AS computed, \
    SUM(CASE WHEN kind = 'cached' THEN requests ELSE 0 END) AS cached, \
    SUM(CASE WHEN unpriced THEN requests ELSE 0 END) AS unpriced, \
    SUM(input_tokens) AS input_tokens, \
    SUM(output_tokens) AS output_tokens, \
    SUM(CASE WHEN kind = 'waste' THEN 0 ELSE compute_ns END) AS compute_ns, \
    SUM(CASE WHEN kind = 'waste' THEN compute_ns ELSE 0 END) AS wasted_ns, \
    SUM(cost_nano_usd) AS cost_nano_usd, \
    SUM(saved_nano_usd) AS saved_nano_usd";
/// The key of a roll-up row.
pub(crate) const ROLLUP_KEY: &str = "tenant, key_id, hour, model, operation";
/// The sums of a roll-up row, in the order of [`DERIVED_SUMS`].
pub(crate) const SUM_COLUMNS: [&str; 9] = [
    "computed",
    "cached",
    "unpriced",
    "input_tokens",
    "output_tokens",
    "compute_ns",
    "wasted_ns",
    "cost_nano_usd",
    "saved_nano_usd",
];

pub(crate) async fn read_position(connection: &mut SqliteConnection) -> Result<Option<Position>, LedgerError> {
    let row = sqlx::query("SELECT identity, sequence, message_at_ms FROM cursor WHERE stream = ?")
        .bind(STREAM)
        .fetch_optional(connection)
        .await
        .map_err(failed("read the cursor"))?;
    row.map(|row| {
        Ok(Position {
            identity: row.try_get(0)?,
            sequence: row.try_get(1)?,
            message_at_ms: row.try_get(2)?,
        })
    })
    .transpose()
    .map_err(failed("read the cursor"))
}

/// A 64-bit count as SQLite stores it; `book::check` has refused what does not fit.
fn stored(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Inserts rows that are new and says how many there were.
pub(crate) async fn insert_entries(
    transaction: &mut Transaction<'_, Sqlite>,
    entries: &[(u64, &Entry)],
    booked_at_ms: u64,
) -> Result<u64, LedgerError> {
    let mut inserted = 0;
    let mut rest = entries;
    let mut repeated = Repeated::default();
    for (rows, statement) in ROWS_PER_STATEMENT.into_iter().zip(insert_texts()) {
        while rest.len() >= rows {
            let (chunk, after) = rest.split_at(rows);
            rest = after;
            let values = row_values(chunk, booked_at_ms, &mut repeated).map_err(failed("bind journal rows"))?;
            // The text is built of constants only.
            let result = sqlx::query_with(AssertSqlSafe(Arc::clone(statement)), values)
                .execute(&mut **transaction)
                .await
                .map_err(failed("insert journal rows"))?;
            inserted += result.rows_affected();
        }
    }
    Ok(inserted)
}

/// The text of each INSERT, made once: at thousands of rows a second, writing it anew was a fifth of booking.
fn insert_texts() -> &'static [Arc<str>; ROWS_PER_STATEMENT.len()] {
    static TEXTS: OnceLock<[Arc<str>; ROWS_PER_STATEMENT.len()]> = OnceLock::new();
    TEXTS.get_or_init(|| {
        ROWS_PER_STATEMENT.map(|rows| {
            let row = format!("({})", vec!["?"; JOURNAL_COLUMNS.len()].join(", "));
            let columns = JOURNAL_COLUMNS.join(", ");
            let rows = vec![row.as_str(); rows].join(", ");
            format!("INSERT INTO journal ({columns}) VALUES {rows} ON CONFLICT (request_id, event_id) DO NOTHING")
                .into()
        })
    })
}

/// The values of rows, in the order of [`JOURNAL_COLUMNS`].
fn row_values(
    chunk: &[(u64, &Entry)],
    booked_at_ms: u64,
    repeated: &mut Repeated,
) -> Result<SqliteArguments, sqlx::Error> {
    let mut values = SqliteArguments::default();
    values.reserve(chunk.len() * JOURNAL_COLUMNS.len(), 0);
    for (sequence, entry) in chunk {
        add_row(&mut values, (*sequence, entry), booked_at_ms, repeated).map_err(sqlx::Error::Encode)?;
    }
    Ok(values)
}

fn add_row(
    values: &mut SqliteArguments,
    (sequence, entry): (u64, &Entry),
    booked_at_ms: u64,
    repeated: &mut Repeated,
) -> Result<(), sqlx::error::BoxDynError> {
    let event = &entry.event;
    values.add(event.event_id.as_str())?;
    values.add(repeated.text(0, event.kind.as_str()))?;
    values.add(repeated.text(1, &event.tenant))?;
    values.add(repeated.text(2, &event.key_id))?;
    values.add(repeated.text(3, &event.model))?;
    values.add(repeated.text(4, &event.operation))?;
    values.add(event.request_id.as_str())?;
    values.add(stored(event.requests))?;
    values.add(stored(event.input_tokens))?;
    values.add(stored(event.output_tokens))?;
    values.add(stored(event.compute_ns))?;
    values.add(stored(event.queue_us))?;
    values.add(i64::from(event.attempt))?;
    values.add(repeated.text(5, &event.device))?;
    values.add(repeated.text(6, terms_name(event.terms)))?;
    values.add(repeated.text(7, &event.reporter))?;
    values.add(stored(event.occurred_at_ms))?;
    values.add(stored(booked_at_ms))?;
    values.add(stored(sequence))?;
    values.add(entry.cost.0)?;
    values.add(entry.saved.0)?;
    values.add(i64::from(entry.unpriced))?;
    values.add(Arc::clone(&entry.price_version))
}

/// Texts that most neighbours in a batch share, by column: one allocation for a run of equal ones.
#[derive(Default)]
struct Repeated([Option<Arc<str>>; 8]);

impl Repeated {
    fn text(&mut self, column: usize, text: &str) -> Arc<str> {
        let last = &mut self.0[column];
        match last {
            Some(last) if **last == *text => Arc::clone(last),
            _ => Arc::clone(last.insert(text.into())),
        }
    }
}

fn terms_name(terms: schemas::cost::DeviceTerms) -> &'static str {
    match terms {
        schemas::cost::DeviceTerms::OnDemand => "on_demand",
        schemas::cost::DeviceTerms::Spot => "spot",
        schemas::cost::DeviceTerms::Unknown => "unknown",
    }
}

/// A request that was computed by two attempts is paid once; the device time of the later booked one is waste.
pub(crate) async fn book_time_spent_twice(
    transaction: &mut Transaction<'_, Sqlite>,
    batch: &Batch,
) -> Result<(), LedgerError> {
    let paid = batch.entries.iter().filter(|(_, entry)| is_paid_once(entry.event.kind));
    let paid: Vec<_> = paid.collect();
    let mut twice = Vec::new();
    for chunk in paid.chunks(ROWS_PER_STATEMENT[0]) {
        let mut statement = QueryBuilder::new("SELECT event_id, attempt, reporter FROM journal WHERE request_id IN (");
        let mut ids = statement.separated(", ");
        for (_, entry) in chunk {
            ids.push_bind(entry.event.request_id.as_str());
        }
        ids.push_unseparated(")");
        let rows = statement
            .build_query_as::<(String, i64, String)>()
            .fetch_all(&mut **transaction)
            .await
            .map_err(failed("look up who was paid"))?;
        let paid_for: HashMap<_, _> = rows
            .iter()
            .map(|(id, attempt, reporter)| (id.as_str(), (*attempt, reporter.as_str())))
            .collect();
        for (sequence, entry) in chunk {
            let event = &entry.event;
            let mine = (i64::from(event.attempt), event.reporter.as_str());
            if paid_for.get(event.event_id.as_str()).is_some_and(|paid| *paid != mine) {
                twice.push((*sequence, entry.spent_twice()));
            }
        }
    }
    let twice: Vec<_> = twice.iter().map(|(at, entry)| (*at, entry)).collect();
    insert_entries(transaction, &twice, batch.booked_at_ms).await?;
    Ok(())
}

pub(crate) async fn sum_kinds(
    transaction: &mut Transaction<'_, Sqlite>,
    after_row: i64,
) -> Result<Vec<KindSums>, LedgerError> {
    let rows = sqlx::query(
        "SELECT kind, COUNT(*), SUM(CASE WHEN unpriced THEN requests ELSE 0 END), SUM(compute_ns), \
         SUM(cost_nano_usd), SUM(saved_nano_usd) FROM journal WHERE id > ? GROUP BY kind",
    )
    .bind(after_row)
    .fetch_all(&mut **transaction)
    .await
    .map_err(failed("sum the new rows"))?;
    let sums = rows.iter().map(|row| {
        Ok(KindSums {
            kind: row.try_get(0)?,
            events: row.try_get(1)?,
            unpriced: row.try_get(2)?,
            compute_ns: row.try_get(3)?,
            cost_nano_usd: row.try_get(4)?,
            saved_nano_usd: row.try_get(5)?,
        })
    });
    sums.collect::<Result<_, _>>().map_err(failed("sum the new rows"))
}

/// Adds the rows that were really inserted to the sums of their hours.
pub(crate) async fn add_to_rollups(
    transaction: &mut Transaction<'_, Sqlite>,
    after_row: i64,
) -> Result<(), LedgerError> {
    // Sums stop at the end of the range: SQLite would turn them into fractions, and STRICT would then refuse the batch.
    let add = |column: &str| {
        format!(
            "{column} = CASE WHEN {column} > {max} - excluded.{column} THEN {max} ELSE {column} + excluded.{column} END",
            max = i64::MAX
        )
    };
    let statement = format!(
        "INSERT INTO rollup_hour ({ROLLUP_KEY}, {columns}) \
         SELECT tenant, key_id, occurred_at_ms / 3600000 AS hour, model, operation, {DERIVED_SUMS} \
         FROM journal WHERE id > ? AND kind <> 'unknown' GROUP BY {ROLLUP_KEY} \
         ON CONFLICT ({ROLLUP_KEY}) DO UPDATE SET {sums}",
        columns = SUM_COLUMNS.join(", "),
        sums = SUM_COLUMNS.map(add).join(", "),
    );
    sqlx::query(AssertSqlSafe(statement))
        .bind(after_row)
        .execute(&mut **transaction)
        .await
        .map_err(failed("add to the roll-ups"))?;
    Ok(())
}

pub(crate) async fn insert_rejected(
    transaction: &mut Transaction<'_, Sqlite>,
    batch: &Batch,
) -> Result<(), LedgerError> {
    if batch.rejected.is_empty() {
        return Ok(());
    }
    for rejected in &batch.rejected {
        sqlx::query(
            "INSERT INTO rejected (identity, stream_sequence, position, subject, reason, detail, body, rejected_at_ms) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(batch.position.identity.as_str())
        .bind(stored(rejected.sequence))
        .bind(i64::from(rejected.position))
        .bind(rejected.subject.as_str())
        .bind(rejected.reason)
        .bind(rejected.detail.as_str())
        .bind(rejected.body.as_slice())
        .bind(stored(batch.booked_at_ms))
        .execute(&mut **transaction)
        .await
        .map_err(failed("keep a rejected message"))?;
    }
    sqlx::query("DELETE FROM rejected WHERE id <= (SELECT MAX(id) FROM rejected) - ?")
        .bind(MAX_REJECTED_ROWS)
        .execute(&mut **transaction)
        .await
        .map_err(failed("forget old rejected messages"))?;
    Ok(())
}

pub(crate) async fn write_position(
    transaction: &mut Transaction<'_, Sqlite>,
    position: &Position,
) -> Result<(), LedgerError> {
    sqlx::query(
        "INSERT INTO cursor (stream, identity, sequence, message_at_ms) VALUES (?, ?, ?, ?) \
         ON CONFLICT (stream) DO UPDATE SET identity = excluded.identity, sequence = excluded.sequence, \
         message_at_ms = excluded.message_at_ms",
    )
    .bind(STREAM)
    .bind(position.identity.as_str())
    .bind(stored(position.sequence))
    .bind(stored(position.message_at_ms))
    .execute(&mut **transaction)
    .await
    .map_err(failed("move the cursor"))?;
    Ok(())
}
