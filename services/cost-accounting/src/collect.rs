//! From messages to one transaction. Input: messages of the COST stream, in order. Output: a batch for the ledger; what
//! cannot be read or booked is set aside with its reason and never stops the rest.

use std::time::{SystemTime, UNIX_EPOCH};

use bus::StoredMessage;
use schemas::cost::CostBatch;
use schemas::headers::CONTENT_TYPE;
use schemas::subjects::parse_cost_tenant;
use schemas::wire::{self, Format, WireError};

use crate::book::{Booker, Refusal};
use crate::ledger::{Batch, Position, Rejected};

/// How much of an unreadable message is kept, in bytes: enough to see what it is.
const MAX_KEPT_BYTES: usize = 1_024;

/// What was read since the last transaction.
#[derive(Debug)]
pub struct Collected {
    batch: Batch,
    messages: u64,
    lost_messages: u64,
}

impl Collected {
    /// Nothing yet, after a position.
    #[must_use]
    pub fn after(position: Position) -> Self {
        Self {
            batch: Batch {
                entries: Vec::new(),
                rejected: Vec::new(),
                position,
                booked_at_ms: 0,
            },
            messages: 0,
            lost_messages: 0,
        }
    }

    /// Takes the next message of the stream.
    pub fn take(&mut self, booker: &mut Booker, message: &StoredMessage) {
        self.messages += 1;
        let expected = self.batch.position.sequence + 1;
        self.lost_messages += message.sequence.saturating_sub(expected);
        self.batch.position.sequence = message.sequence;
        self.batch.position.message_at_ms = message.time.map_or(0, unix_ms);
        let Some(tenant) = parse_cost_tenant(&message.subject) else {
            self.reject_message(message, "subject", "no subject of a cost message".to_owned());
            return;
        };
        match decode(message) {
            Ok(facts) => self.book(booker, tenant, message, facts),
            Err(error) => self.reject_message(message, "undecodable", chain(&error)),
        }
    }

    fn book(&mut self, booker: &mut Booker, tenant: &str, message: &StoredMessage, facts: CostBatch) {
        for (position, event) in (0_u32..).zip(facts.events) {
            let event_id = event.event_id.clone();
            match booker.book(tenant, event) {
                Ok(entry) => self.batch.entries.push((message.sequence, entry)),
                Err(refusal) => {
                    let reason = match &refusal {
                        Refusal::Tenant { .. } => "tenant",
                        _ => "impossible",
                    };
                    let why = (reason, refusal.to_string());
                    self.reject(message, position, why, event_id.as_bytes());
                }
            }
        }
    }

    fn reject_message(&mut self, message: &StoredMessage, reason: &'static str, detail: String) {
        self.reject(message, 0, (reason, detail), &message.payload);
    }

    fn reject(
        &mut self,
        message: &StoredMessage,
        position: u32,
        (reason, detail): (&'static str, String),
        body: &[u8],
    ) {
        self.batch.rejected.push(Rejected {
            sequence: message.sequence,
            position,
            subject: message.subject.chars().take(MAX_KEPT_BYTES).collect(),
            reason,
            detail,
            body: body.iter().copied().take(MAX_KEPT_BYTES).collect(),
        });
    }

    /// Facts so far.
    #[must_use]
    pub fn events(&self) -> usize {
        self.batch.entries.len() + self.batch.rejected.len()
    }

    /// Whether no message was read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Messages that should have stood between those that were read.
    #[must_use]
    pub fn lost_messages(&self) -> u64 {
        self.lost_messages
    }

    /// The batch, to be booked now.
    #[must_use]
    pub fn into_batch(self, booked_at_ms: u64) -> Batch {
        Batch {
            booked_at_ms,
            ..self.batch
        }
    }
}

fn decode(message: &StoredMessage) -> Result<CostBatch, WireError> {
    let format = Format::from_content_type(message.headers.get(CONTENT_TYPE))?;
    wire::decode_as(format, &message.payload)
}

/// An error with its causes, for the table of rejected messages.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A broker's time in Unix milliseconds.
#[must_use]
pub fn unix_ms(time: SystemTime) -> u64 {
    // Before 1970 is 1970; u64 holds milliseconds for 580 million years.
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bus::Headers;
    use schemas::cost::CostEvent;

    use super::*;
    use crate::example;
    use crate::prices::{DEFAULT_PRICES, Prices};

    fn message(sequence: u64, subject: &str, payload: Vec<u8>) -> StoredMessage {
        StoredMessage {
            sequence,
            subject: subject.to_owned(),
            headers: Headers::new(),
            payload: payload.into(),
            time: Some(UNIX_EPOCH + Duration::from_micros(sequence * 1_000_999)),
        }
    }

    #[test]
    fn what_cannot_be_booked_is_set_aside_and_the_rest_goes_on() {
        let mut booker = Booker::new(Prices::parse(DEFAULT_PRICES).unwrap());
        let start = Position {
            identity: "i".to_owned(),
            sequence: 4,
            message_at_ms: 0,
        };
        let mut collected = Collected::after(start);
        assert!(collected.is_empty());
        let other = CostEvent {
            tenant: "other".to_owned(),
            ..example::event(2)
        };
        let huge = CostEvent {
            requests: u64::MAX,
            ..example::event(3)
        };
        let facts = CostBatch {
            events: vec![example::event(1), other, huge, example::event(4)],
        };
        let packed = wire::encode(&facts).unwrap();
        let mut trailing = packed.clone();
        trailing.push(0);
        let mut json = message(8, "portalis.v1.cost.demo.m", serde_json::to_vec(&facts).unwrap());
        json.headers.insert(CONTENT_TYPE, "application/json");
        let mut text = message(9, "portalis.v1.cost.demo.m", packed.clone());
        text.headers.insert(CONTENT_TYPE, "text/plain");
        let messages = [
            message(5, "portalis.v1.cost.demo.m", packed.clone()),
            message(6, "portalis.v1.cost.demo.m", trailing),
            message(7, "portalis.v1.cost.demo.m.x", packed),
            json,
            text,
            message(12, "portalis.v1.cost.demo.m", vec![0xc1; 5_000]),
        ];
        messages.iter().for_each(|message| collected.take(&mut booker, message));
        assert_eq!((collected.events(), collected.lost_messages()), (12, 2));
        let batch = collected.into_batch(77);
        let booked: Vec<_> = batch
            .entries
            .iter()
            .map(|(sequence, entry)| (*sequence, entry.event.request_id.as_str()))
            .collect();
        assert_eq!(
            booked,
            [(5, "request-1"), (5, "request-4"), (8, "request-1"), (8, "request-4")]
        );
        let rejected: Vec<_> = batch
            .rejected
            .iter()
            .map(|row| (row.sequence, row.position, row.reason))
            .collect();
        let expected = [
            (5, 1, "tenant"),
            (5, 2, "impossible"),
            (6, 0, "undecodable"),
            (7, 0, "subject"),
            (8, 1, "tenant"),
            (8, 2, "impossible"),
            (9, 0, "undecodable"),
            (12, 0, "undecodable"),
        ];
        assert_eq!(rejected, expected);
        assert!(batch.rejected.iter().all(|row| row.body.len() <= MAX_KEPT_BYTES));
        assert_eq!(
            (
                batch.position.sequence,
                batch.position.message_at_ms,
                batch.booked_at_ms
            ),
            (12, 12_011, 77)
        );
    }
}
