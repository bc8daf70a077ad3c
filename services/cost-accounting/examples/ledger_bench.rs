//! How many facts a second the ledger books. Input: a folder for the file (default: a temporary one), on the disk that
//! is to be measured. Output: one line per batch size. Run: `cargo run --release -p cost-accounting --example ledger_bench`.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use bus::{Headers, StoredMessage};
use cost_accounting::book::Booker;
use cost_accounting::collect::Collected;
use cost_accounting::ledger::{Ledger, Position};
use cost_accounting::prices::{DEFAULT_PRICES, Prices};
use schemas::cost::{CostBatch, CostEvent, CostKind, DeviceTerms, computed_event_id};
use schemas::wire;

/// Facts of one message: what a batch of a worker finishes.
const FACTS_PER_MESSAGE: u64 = 32;
/// Facts of one measurement.
const FACTS: u64 = 400_000;

fn main() -> anyhow::Result<()> {
    let temporary = tempfile::tempdir()?;
    let folder = std::env::args_os()
        .nth(1)
        .map_or_else(|| temporary.path().to_owned(), Into::into);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    println!("decode + price + book, {FACTS} facts, {FACTS_PER_MESSAGE} per message, journal grows from empty");
    for batch in [256, 1_024, 4_096, 16_384] {
        let messages = messages()?;
        let path = folder.join(format!("bench-{batch}.db"));
        anyhow::ensure!(!path.exists(), "{} is in the way", path.display());
        let seconds = runtime.block_on(measure(&path, &messages, batch))?;
        let rate = FACTS as f64 / seconds;
        println!(
            "{batch:>6} facts per transaction: {rate:>9.0} facts/s, {:.1} µs per fact",
            1e6 / rate
        );
        for suffix in ["", "-wal", "-shm"] {
            // The last two are gone when the file was closed well.
            let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
        }
    }
    Ok(())
}

async fn measure(path: &std::path::Path, messages: &[StoredMessage], batch: usize) -> anyhow::Result<f64> {
    let mut ledger = Ledger::open(path).await?;
    let mut booker = Booker::new(Prices::parse(DEFAULT_PRICES)?);
    let started = Instant::now();
    let mut position = Position {
        identity: "bench".to_owned(),
        sequence: 0,
        message_at_ms: 0,
    };
    let mut messages = messages.iter().peekable();
    while messages.peek().is_some() {
        let mut collected = Collected::after(position);
        while collected.events() < batch
            && let Some(message) = messages.next()
        {
            collected.take(&mut booker, message);
        }
        let batch = collected.into_batch(0);
        position = batch.position.clone();
        ledger.book(&batch).await?;
    }
    ledger.close().await?;
    Ok(started.elapsed().as_secs_f64())
}

fn messages() -> anyhow::Result<Vec<StoredMessage>> {
    let now_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock is before 1970")?
        .as_millis() as u64;
    let message = |sequence: u64| {
        let first = (sequence - 1) * FACTS_PER_MESSAGE;
        let events = (first..first + FACTS_PER_MESSAGE)
            .map(|number| event(number, now_ms))
            .collect();
        Ok(StoredMessage {
            sequence,
            subject: "portalis.v1.cost.demo.all-minilm-l6-v2".to_owned(),
            headers: Headers::new(),
            payload: wire::encode(&CostBatch { events })?.into(),
            time: Some(SystemTime::now()),
        })
    };
    (1..=FACTS / FACTS_PER_MESSAGE).map(message).collect()
}

fn event(number: u64, now_ms: u64) -> CostEvent {
    let request_id = format!("0192f5a1-7c00-7000-8000-{number:012x}");
    CostEvent {
        event_id: computed_event_id(&request_id),
        kind: CostKind::Computed,
        tenant: "demo".to_owned(),
        // As many keys as busy tenants have.
        key_id: format!("key{:09}", number % 50),
        model: "all-minilm-l6-v2".to_owned(),
        operation: "embed".to_owned(),
        request_id,
        requests: 1,
        input_tokens: number % 256,
        output_tokens: 0,
        compute_ns: 1_000_000 + number % 1_000,
        queue_us: 500,
        attempt: 1,
        device: "cpu".to_owned(),
        terms: DeviceTerms::OnDemand,
        reporter: "gpu-worker-3f9a1c2b".to_owned(),
        occurred_at_ms: now_ms,
    }
}
