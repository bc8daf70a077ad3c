//! What the tier is asked. Input: messages of gateways and the CLI. Output: answers; puts and purges carried out.
//! A message that cannot be read is counted and logged, and answered as if nothing were there.

use std::sync::Arc;

use bus::{Headers, Message};
use bytes::Bytes;
use schemas::cache::{CacheFound, CacheGet, CacheIndex, CachePurge, CachePut, KeptAnswer};
use schemas::headers;
use schemas::wire::{self, Format};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_bytes::ByteBuf;

use crate::announce::{Announcer, held};
use crate::metrics::{Kind, Metrics};
use crate::store::Store;

/// What is sent back, if anything.
pub(crate) type Answer = Option<(Headers, Bytes)>;

/// Reads messages and acts on the store; clones share it.
#[derive(Clone)]
pub(crate) struct Desk {
    pub(crate) store: Arc<Store>,
    pub(crate) announcer: Announcer,
    pub(crate) metrics: Metrics,
}

impl Desk {
    /// Looks an answer up.
    pub(crate) fn get(&self, message: &Message) -> Answer {
        let found = self.read::<CacheGet>(message, Kind::Get).and_then(|get| {
            self.store.get(&get.key).unwrap_or_else(|refusal| {
                self.malformed(message, Kind::Get, &refusal);
                None
            })
        });
        let result = if found.is_some() { "hit" } else { "miss" };
        self.metrics.lookups.with_label_values(&[result]).inc();
        let found = match found {
            Some(found) => CacheFound {
                body: Some(ByteBuf::from(Vec::from(found.body))),
                ttl_ms: found.ttl_ms,
            },
            None => CacheFound { body: None, ttl_ms: 0 },
        };
        write(message, &found)
    }

    /// Keeps answers.
    pub(crate) fn put(&self, message: &Message) {
        let Some(put) = self.read::<CachePut>(message, Kind::Put) else {
            return;
        };
        for answer in put.answers {
            self.keep(message, answer);
        }
    }

    fn keep(&self, message: &Message, answer: KeptAnswer) {
        // The body was copied out of the read buffer when it was decoded.
        let body = Bytes::from(answer.body.into_vec());
        let result = match self.store.put(&answer.key, body, answer.ttl_ms) {
            Ok(()) => {
                self.announcer.note(answer.key.fingerprint());
                "stored"
            }
            Err(refusal) => {
                tracing::debug!(error = %refusal, subject = message.subject(), "answer not kept");
                refusal.as_str()
            }
        };
        self.metrics.puts.with_label_values(&[result]).inc();
    }

    /// Forgets answers.
    pub(crate) fn purge(&self, message: &Message) {
        let Some(purge) = self.read::<CachePurge>(message, Kind::Purge) else {
            return;
        };
        let gone = self.store.purge(purge.tenant.as_deref());
        if purge.tenant.is_none() {
            self.announcer.clear();
        }
        self.metrics.purges.inc();
        let tenant = purge.tenant.as_deref().unwrap_or("all tenants");
        tracing::info!(tenant, answers = gone, "purged");
    }

    /// Says what is here.
    pub(crate) fn index(&self, message: &Message) -> Answer {
        let limit = self
            .read::<CacheIndex>(message, Kind::Index)
            .map_or(0, |index| usize::try_from(index.limit).unwrap_or(usize::MAX));
        write(message, &held(&self.announcer.newest_first(limit)))
    }

    fn read<T: DeserializeOwned>(&self, message: &Message, kind: Kind) -> Option<T> {
        let read = format(message).and_then(|format| wire::decode_as(format, &message.payload));
        read.map_err(|error| self.malformed(message, kind, &error)).ok()
    }

    fn malformed(&self, message: &Message, kind: Kind, error: &(dyn std::error::Error + 'static)) {
        self.metrics.count_malformed(kind);
        tracing::warn!(
            error,
            subject = message.subject(),
            bytes = message.payload.len(),
            "message cannot be read"
        );
    }
}

fn format(message: &Message) -> Result<Format, wire::WireError> {
    Format::from_content_type(message.headers.get(headers::CONTENT_TYPE))
}

/// An answer in the format of the request.
fn write<T: Serialize>(message: &Message, answer: &T) -> Answer {
    let format = format(message).unwrap_or_default();
    let headers = match format {
        Format::MessagePack => Headers::new(),
        Format::Json => Headers::new().with(headers::CONTENT_TYPE, Format::JSON),
    };
    match wire::encode_as(format, answer) {
        Ok(body) => Some((headers, body.into())),
        Err(error) => {
            tracing::error!(%error, "answer cannot be written");
            None
        }
    }
}
