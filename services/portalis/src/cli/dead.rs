//! `portalis dead`. Input: the stream of dead letters. Output: a list, one letter whole, or a replay.

use anyhow::Context as _;
use bus::{Bus, JetStreamError, StoredMessage};
use schemas::dead::DeadLetter;
use schemas::work::Work;
use schemas::{streams, wire};
use serde_json::{Value, json};

use super::scale::read_all;
use super::{replay, show};
use crate::args::{DeadCommand, Mesh};

pub(super) async fn run(command: &DeadCommand, mesh: &Mesh, bus: &Bus) -> anyhow::Result<()> {
    match command {
        DeadCommand::List { limit } => list(*limit, mesh, bus).await,
        DeadCommand::Show { sequence } => {
            let letter = get(bus, *sequence).await?;
            show::json(&summary(*sequence, &letter, true))
        }
        DeadCommand::Replay(args) => {
            let letter = get(bus, args.sequence).await?;
            replay::run(args, &letter, mesh, bus).await
        }
    }
}

/// One letter.
async fn get(bus: &Bus, sequence: u64) -> anyhow::Result<DeadLetter> {
    match bus.get_message(&streams::dead().name, sequence).await {
        Ok(message) => letter(&message),
        Err(JetStreamError::NotFound { .. }) => {
            anyhow::bail!("no dead letter {sequence}, see `portalis dead list`")
        }
        Err(error) => Err(error.into()),
    }
}

fn letter(message: &StoredMessage) -> anyhow::Result<DeadLetter> {
    wire::decode(&message.payload).with_context(|| format!("dead letter {} cannot be read", message.sequence))
}

async fn list(limit: usize, mesh: &Mesh, bus: &Bus) -> anyhow::Result<()> {
    let mut letters = Vec::new();
    for message in read_all(bus, &streams::dead().name).await?.iter().rev().take(limit) {
        letters.push((message.sequence, letter(message)?));
    }
    if mesh.json {
        let all: Vec<Value> = letters
            .iter()
            .map(|(sequence, letter)| summary(*sequence, letter, false))
            .collect();
        return show::json(&all);
    }
    let rows: Vec<_> = letters
        .iter()
        .map(|(sequence, letter)| {
            vec![
                sequence.to_string(),
                show::ago(letter.died_at_ms),
                letter.subject.clone(),
                letter.deliveries.to_string(),
                letter.reason.clone(),
            ]
        })
        .collect();
    show::table(
        &["NUMBER", "DIED", "SUBJECT", "DELIVERIES", "REASON"],
        &rows,
        "no dead letters",
    )
}

/// A letter as JSON; whole, with its content as far as it can be read.
fn summary(sequence: u64, letter: &DeadLetter, whole: bool) -> Value {
    let mut value = json!({
        "number": sequence,
        "subject": letter.subject,
        "stream": letter.stream,
        "stream_sequence": letter.stream_sequence,
        "deliveries": letter.deliveries,
        "reason": letter.reason,
        "died_at_ms": letter.died_at_ms,
    });
    if whole && let Some(fields) = value.as_object_mut() {
        fields.insert("headers".to_owned(), json!(letter.headers));
        let format = replay::format(letter).unwrap_or_default();
        let content = match wire::decode_as::<Work>(format, &letter.payload) {
            Ok(work) => json!(work),
            Err(_) => json!({"unreadable_hex": schemas::policy::hex(&letter.payload)}),
        };
        fields.insert("work".to_owned(), content);
    }
    value
}
