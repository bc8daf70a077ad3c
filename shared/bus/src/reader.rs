//! Batches of a stream for a reader that keeps the sequence itself, such as the ledger.
//! Input: the last sequence stored. Output: what comes after it, in order, without gaps.

use std::time::Duration;

use tokio::time::Instant;

use crate::cursor::{Cursor, Read, Scope, Start, Step};
use crate::{Bus, JetStreamError, StoredMessage};

/// Reads a stream from a sequence on, without acks; survives restarts of the broker.
#[derive(Debug)]
pub struct Reader {
    cursor: Cursor,
}

impl Bus {
    /// A reader of `stream` that begins after `after_sequence` (0 = from the start).
    #[must_use]
    pub fn reader(&self, stream: &str, after_sequence: u64) -> Reader {
        let scope = Scope {
            stream: stream.to_owned(),
            filter: None,
            headers_only: false,
            start_over: false,
        };
        Reader {
            cursor: Cursor::new(self, scope, Start::After(after_sequence)),
        }
    }
}

impl Reader {
    /// Up to `max` messages: waits up to `wait` for the first, then takes what is there. Empty when none came, also
    /// while the broker is away. Not cancel-safe: a batch in the making is lost; make a new reader then.
    ///
    /// # Errors
    /// [`JetStreamError::NotFound`] when the stream does not exist; [`JetStreamError::WentBack`] when it is shorter
    /// than what was read.
    pub async fn next_batch(&mut self, max: usize, wait: Duration) -> Result<Vec<StoredMessage>, JetStreamError> {
        let deadline = Instant::now() + wait;
        let mut batch = Vec::new();
        while batch.len() < max {
            match self.cursor.next(deadline).await {
                Ok(Some(Step::Read(Read { message, pending }))) => {
                    batch.push(message);
                    if pending == 0 {
                        break;
                    }
                }
                Ok(Some(Step::Opened { .. })) => {}
                Ok(None) => break,
                // What was read is good; the error shows again at the next call.
                Err(_) if !batch.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(batch)
    }

    /// Last sequence handed out.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.cursor.seen()
    }
}
