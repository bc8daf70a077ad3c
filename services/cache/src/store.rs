//! The answers themselves. Input: keys, bodies, the time. Output: bodies while they live, per tenant, within limits of
//! bytes and time. Nothing here talks to the bus.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use moka::Expiry;
use moka::notification::RemovalCause;
use process::Clock;
use schemas::cache::CacheKey;
use schemas::ids::is_token;

use crate::config::StoreConfig;
use crate::metrics::Metrics;
use crate::tenant::{Slot, Tenant, Tenants};

/// blake3 of what was asked.
pub(crate) type Digest = [u8; 32];

/// What an answer takes beside its body, estimated from the types: 48 bytes of key, 88 of entry, 48 of slot, and as
/// much again of the cache's own nodes and tables.
const OVERHEAD_BYTES: u32 = 320;
/// Slots without answers that are tolerated before they are looked for.
const SLACK_SLOTS: usize = 64;

/// Why an answer was not kept, or a key not looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The tenant is no token or the digest has not 32 bytes.
    #[error("key is not a tenant token and 32 bytes")]
    Key,
    /// The body is over the limit, or over what a tenant may hold.
    #[error("answer is larger than may be kept")]
    TooLarge,
    /// The answer may not be used at all.
    #[error("answer has no time to live")]
    NoTtl,
}

impl Refusal {
    /// Label of the metric.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Key => "bad_key",
            Self::TooLarge => "too_large",
            Self::NoTtl => "no_ttl",
        }
    }
}

/// An answer that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) body: Bytes,
    /// At least 1.
    pub(crate) ttl_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    /// First, so that a wrong digest can never reach another tenant's answer.
    tenant: Arc<str>,
    digest: Digest,
}

#[derive(Clone, Debug)]
struct Entry {
    body: Bytes,
    ttl: Duration,
    expires_at_us: u64,
    stamp: u64,
    weight: u32,
    owner: Arc<Tenant>,
}

/// Tells moka when to free an answer. Whether it may still be used is decided at each look-up, by our clock.
struct OwnTtl;

impl Expiry<Key, Entry> for OwnTtl {
    fn expire_after_create(&self, _: &Key, entry: &Entry, _: Instant) -> Option<Duration> {
        Some(entry.ttl)
    }

    fn expire_after_update(&self, _: &Key, entry: &Entry, _: Instant, _: Option<Duration>) -> Option<Duration> {
        Some(entry.ttl)
    }
}

/// The answers of all tenants.
pub(crate) struct Store {
    entries: moka::sync::Cache<Key, Entry>,
    tenants: Tenants,
    limits: StoreConfig,
    clock: Clock,
    metrics: Metrics,
    next_stamp: AtomicU64,
}

impl Store {
    pub(crate) fn new(limits: StoreConfig, clock: Clock, metrics: Metrics) -> Self {
        let of = metrics.clone();
        let entries = moka::sync::Cache::builder()
            .max_capacity(limits.max_bytes)
            .weigher(|_, entry: &Entry| entry.weight)
            .expire_after(OwnTtl)
            .eviction_listener(move |_, entry: Entry, cause| {
                entry.owner.lost(entry.weight);
                of.entries.dec();
                of.bytes.sub(i64::from(entry.weight));
                of.removals.with_label_values(&[cause_label(cause)]).inc();
            })
            .build();
        Self {
            entries,
            tenants: Tenants::default(),
            limits,
            clock,
            metrics,
            next_stamp: AtomicU64::new(0),
        }
    }

    /// The answer, if it is here and may still be used.
    pub(crate) fn get(&self, key: &CacheKey) -> Result<Option<Found>, Refusal> {
        let digest = check(key)?;
        let Some(tenant) = self.tenants.get(&key.tenant) else {
            return Ok(None);
        };
        let entry = self.entries.get(&own(&tenant, digest));
        let now_us = self.clock.monotonic_us();
        Ok(entry.and_then(|entry| {
            let ttl_ms = entry.expires_at_us.saturating_sub(now_us) / 1_000;
            (ttl_ms > 0).then_some(Found {
                body: entry.body,
                ttl_ms,
            })
        }))
    }

    /// Keeps an answer; the tenant's own oldest ones make room when it is at its share.
    pub(crate) fn put(&self, key: &CacheKey, body: Bytes, ttl_ms: u64) -> Result<(), Refusal> {
        let digest = check(key)?;
        let ttl_ms = ttl_ms.min(self.limits.max_ttl_ms);
        if ttl_ms == 0 {
            return Err(Refusal::NoTtl);
        }
        let body_bytes = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let weight = body_bytes.saturating_add(OVERHEAD_BYTES);
        let share = self.limits.max_tenant_bytes();
        if body_bytes > self.limits.max_body_bytes || u64::from(weight) > share {
            return Err(Refusal::TooLarge);
        }
        let owner = self.tenants.get_or_add(&key.tenant);
        let mut order = owner.order();
        self.make_room(&owner, &mut order, share - u64::from(weight));
        let stamp = self.next_stamp.fetch_add(1, Ordering::Relaxed);
        // Counted before it is there, so that its removal never comes first.
        owner.gained(weight);
        self.metrics.entries.inc();
        self.metrics.bytes.add(i64::from(weight));
        let entry = Entry {
            body,
            ttl: Duration::from_millis(ttl_ms),
            expires_at_us: self.clock.monotonic_us() + ttl_ms.saturating_mul(1_000),
            stamp,
            weight,
            owner: Arc::clone(&owner),
        };
        self.entries.insert(own(&owner, digest), entry);
        order.push_back(Slot { digest, stamp });
        Ok(())
    }

    /// Forgets a tenant's answers, or all; returns how many.
    pub(crate) fn purge(&self, tenant: Option<&str>) -> u64 {
        let tenants = match tenant {
            Some(name) => self.tenants.get(name).into_iter().collect(),
            None => self.tenants.all(),
        };
        let mut gone = 0;
        for tenant in tenants {
            let mut order = tenant.order();
            gone += tenant.entries();
            for slot in order.drain(..) {
                self.entries.invalidate(&own(&tenant, slot.digest));
            }
        }
        gone
    }

    /// Frees what has expired although nobody asks for it.
    pub(crate) fn sweep(&self) {
        self.entries.run_pending_tasks();
    }

    /// Removes the tenant's oldest answers until at most `limit` bytes are left, and slots whose answers are gone.
    fn make_room(&self, owner: &Arc<Tenant>, order: &mut VecDeque<Slot>, limit: u64) {
        while owner.bytes() > limit
            && let Some(slot) = order.pop_front()
        {
            if self.is_live(owner, &slot) {
                self.entries.invalidate(&own(owner, slot.digest));
            }
        }
        let live = usize::try_from(owner.entries()).unwrap_or(usize::MAX);
        if order.len() > live.saturating_mul(2).saturating_add(SLACK_SLOTS) {
            order.retain(|slot| self.is_live(owner, slot));
        }
    }

    fn is_live(&self, owner: &Arc<Tenant>, slot: &Slot) -> bool {
        let entry = self.entries.get(&own(owner, slot.digest));
        entry.is_some_and(|entry| entry.stamp == slot.stamp)
    }
}

fn own(tenant: &Tenant, digest: Digest) -> Key {
    Key {
        tenant: Arc::clone(&tenant.name),
        digest,
    }
}

fn check(key: &CacheKey) -> Result<Digest, Refusal> {
    if !is_token(&key.tenant) {
        return Err(Refusal::Key);
    }
    Digest::try_from(key.digest.as_slice()).map_err(|_| Refusal::Key)
}

fn cause_label(cause: RemovalCause) -> &'static str {
    match cause {
        RemovalCause::Expired => "expired",
        RemovalCause::Explicit => "removed",
        RemovalCause::Replaced => "replaced",
        RemovalCause::Size => "size",
    }
}

#[cfg(test)]
mod tests;
