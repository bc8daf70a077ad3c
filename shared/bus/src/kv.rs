//! Key-value buckets. Input: keys and bytes. Output: entries with revisions, compare-and-set writes, and watches that
//! survive a restart of the broker.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use schemas::streams::BucketSpec;
use tokio::time::Instant;

use crate::cursor::{Cursor, Read, Scope, Start, Step};
use crate::{Bus, Headers, JetStreamError, KvError, PublishError, StoredMessage};

const OPERATION: &str = "KV-Operation";
const MARKER_REASON: &str = "Nats-Marker-Reason";
const EXPECTED_SEQUENCE: &str = "Nats-Expected-Last-Subject-Sequence";
/// A watch looks up from waiting this often; nothing depends on it.
const WATCH_TURN: Duration = Duration::from_secs(60);

/// A key's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Key.
    pub key: String,
    /// Value.
    pub value: Bytes,
    /// Its revision, for [`Bucket::update`].
    pub revision: u64,
}

/// What a watch sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// A key has a new value.
    Put(Entry),
    /// A key is gone: deleted, purged or expired.
    Delete {
        /// Key.
        key: String,
        /// Revision of the deletion.
        revision: u64,
    },
    /// Everything that was there at the start has been shown. Comes once.
    InitialDone,
    /// The bucket was lost and is read from the start: forget what was shown before.
    Reset,
}

/// A bucket.
#[derive(Debug, Clone)]
pub struct Bucket {
    bus: Bus,
    name: String,
}

impl Bus {
    /// Creates the bucket, or changes it to what is asked.
    ///
    /// # Errors
    /// As [`Bus::ensure_stream`].
    pub async fn kv(&self, spec: &BucketSpec) -> Result<Bucket, JetStreamError> {
        self.ensure_bucket(spec).await?;
        Ok(Bucket {
            bus: self.clone(),
            name: spec.name.clone(),
        })
    }
}

impl Bucket {
    /// The bucket's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A key's value; `None` when it has none.
    ///
    /// # Errors
    /// [`KvError::InvalidKey`], [`KvError::JetStream`].
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, KvError> {
        Ok(self
            .last(key)
            .await?
            .and_then(|(entry, deleted)| (!deleted).then_some(entry)))
    }

    /// Sets a value whatever was there; gives its revision.
    ///
    /// # Errors
    /// [`KvError::InvalidKey`], [`KvError::Publish`].
    pub async fn put(&self, key: &str, value: Bytes) -> Result<u64, KvError> {
        self.write(key, Headers::new(), value).await
    }

    /// Sets a value where there is none; gives its revision.
    ///
    /// # Errors
    /// [`KvError::WrongRevision`] when there is one.
    pub async fn create(&self, key: &str, value: Bytes) -> Result<u64, KvError> {
        match self.update(key, value.clone(), 0).await {
            // The last thing under the key may be the mark of a deletion: then the key has no value.
            Err(KvError::WrongRevision { key }) => match self.last(&key).await? {
                Some((entry, true)) => self.update(&key, value, entry.revision).await,
                _ => Err(KvError::WrongRevision { key }),
            },
            other => other,
        }
    }

    /// Sets a value if the key still has this revision (0 = never written); gives the new one.
    ///
    /// # Errors
    /// [`KvError::WrongRevision`] when somebody was faster.
    pub async fn update(&self, key: &str, value: Bytes, revision: u64) -> Result<u64, KvError> {
        self.write(key, Headers::new().with(EXPECTED_SEQUENCE, revision), value)
            .await
    }

    /// Deletes a key; does nothing harmful when it has no value.
    ///
    /// # Errors
    /// [`KvError::InvalidKey`], [`KvError::Publish`].
    pub async fn delete(&self, key: &str) -> Result<(), KvError> {
        self.write(key, Headers::new().with(OPERATION, "DEL"), Bytes::new())
            .await
            .map(drop)
    }

    /// All keys that have a value, sorted.
    ///
    /// # Errors
    /// [`KvError::JetStream`]; [`crate::BusError::Timeout`] when the bucket could not be read in the request timeout.
    pub async fn keys(&self) -> Result<Vec<String>, KvError> {
        let mut watch = self.watch_scoped(None, true);
        let timeout = self.bus.request_timeout();
        let mut keys = std::collections::BTreeSet::new();
        let read = async {
            loop {
                match watch.next().await? {
                    WatchEvent::Put(entry) => drop(keys.insert(entry.key)),
                    WatchEvent::Delete { key, .. } => drop(keys.remove(&key)),
                    WatchEvent::Reset => keys.clear(),
                    WatchEvent::InitialDone => return Ok::<_, JetStreamError>(()),
                }
            }
        };
        match tokio::time::timeout(timeout, read).await {
            Ok(read) => read?,
            Err(_) => {
                return Err(crate::request::timed_out(&format!("bucket {}", self.name), timeout).into());
            }
        }
        Ok(keys.into_iter().collect())
    }

    /// Follows all keys: first what is there, then [`WatchEvent::InitialDone`], then every change, also those made
    /// while the connection was away (of several changes to one key perhaps only the last).
    #[must_use]
    pub fn watch(&self) -> Watch {
        self.watch_scoped(None, false)
    }

    /// Follows one key.
    ///
    /// # Errors
    /// [`KvError::InvalidKey`].
    pub fn watch_key(&self, key: &str) -> Result<Watch, KvError> {
        Ok(self.watch_scoped(Some(self.subject(key)?), false))
    }

    fn watch_scoped(&self, filter: Option<String>, headers_only: bool) -> Watch {
        let scope = Scope {
            stream: format!("KV_{}", self.name),
            filter,
            headers_only,
            start_over: true,
        };
        Watch {
            cursor: Cursor::new(&self.bus, scope, Start::LastPerSubject),
            prefix_length: "$KV.".len() + self.name.len() + 1,
            initial_done: false,
            ready: VecDeque::new(),
        }
    }

    async fn write(&self, key: &str, headers: Headers, value: Bytes) -> Result<u64, KvError> {
        let subject = self.subject(key)?;
        match self
            .bus
            .publish_acked(&subject, headers, value, self.bus.request_timeout())
            .await
        {
            Ok(ack) => Ok(ack.sequence),
            Err(PublishError::WrongSequence { .. }) => Err(KvError::WrongRevision { key: key.to_owned() }),
            Err(error) => Err(KvError::Publish(error)),
        }
    }

    /// The last thing under a key, and whether it is the mark of a deletion.
    async fn last(&self, key: &str) -> Result<Option<(Entry, bool)>, KvError> {
        let subject = format!("$JS.API.DIRECT.GET.KV_{}.{}", self.name, self.subject(key)?);
        let answer = self
            .bus
            .request(&subject, Headers::new(), Bytes::new(), self.bus.request_timeout())
            .await?;
        if answer.status() == Some(404) {
            return Ok(None);
        }
        let malformed = || JetStreamError::Malformed {
            operation: subject.clone(),
            reason: "no sequence".to_owned(),
        };
        let revision = answer.headers.get_u64("Nats-Sequence").ok_or_else(malformed)?;
        let deleted = is_deletion(&answer.headers);
        Ok(Some((
            Entry {
                key: key.to_owned(),
                value: answer.payload,
                revision,
            },
            deleted,
        )))
    }

    fn subject(&self, key: &str) -> Result<String, KvError> {
        let valid = !key.is_empty()
            && !key.starts_with('.')
            && !key.ends_with('.')
            && !key.contains("..")
            && key
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-/_=.".contains(&byte));
        if !valid {
            return Err(KvError::InvalidKey { key: key.to_owned() });
        }
        Ok(format!("$KV.{}.{key}", self.name))
    }
}

fn is_deletion(headers: &Headers) -> bool {
    // A marker says that the broker itself removed the value (age, limits); clients mark with their own header.
    headers.get(MARKER_REASON).is_some() || matches!(headers.get(OPERATION), Some("DEL" | "PURGE"))
}

/// A running watch.
#[derive(Debug)]
pub struct Watch {
    cursor: Cursor,
    prefix_length: usize,
    initial_done: bool,
    ready: VecDeque<WatchEvent>,
}

impl Watch {
    /// The next event; waits through losses of the connection. Cancel-safe.
    ///
    /// # Errors
    /// [`JetStreamError::NotFound`] when the bucket is gone; [`crate::BusError::Closed`].
    pub async fn next(&mut self) -> Result<WatchEvent, JetStreamError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            let seen = self.cursor.seen();
            match self.cursor.next(Instant::now() + WATCH_TURN).await? {
                None => {}
                Some(Step::Opened { pending }) => {
                    if seen > 0 && self.cursor.seen() == 0 {
                        self.ready.push_back(WatchEvent::Reset);
                    }
                    self.done_if(pending == 0);
                }
                Some(Step::Read(Read { message, pending })) => {
                    self.ready.push_back(self.event(message));
                    self.done_if(pending == 0);
                }
            }
        }
    }

    fn done_if(&mut self, all_shown: bool) {
        if all_shown && !self.initial_done {
            self.initial_done = true;
            self.ready.push_back(WatchEvent::InitialDone);
        }
    }

    fn event(&self, message: StoredMessage) -> WatchEvent {
        let key = message.subject.get(self.prefix_length..).unwrap_or_default().to_owned();
        let revision = message.sequence;
        if is_deletion(&message.headers) {
            WatchEvent::Delete { key, revision }
        } else {
            WatchEvent::Put(Entry {
                key,
                value: message.payload,
                revision,
            })
        }
    }
}
