//! What each tenant holds. Input: puts and removals of the store. Output: byte counts and the order of age.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::store::Digest;

/// Tenants known before the first look for idle ones.
const FIRST_PRUNE: usize = 1_024;

/// One tenant with at least one answer.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) name: Arc<str>,
    bytes: AtomicU64,
    entries: AtomicU64,
    order: Mutex<VecDeque<Slot>>,
}

/// An answer in the order of age.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) digest: Digest,
    /// Which put it was: an answer that was put again has a later slot.
    pub(crate) stamp: u64,
}

impl Tenant {
    /// The order of age; who holds it is the only one to put or purge for this tenant.
    pub(crate) fn order(&self) -> MutexGuard<'_, VecDeque<Slot>> {
        // A panic leaves slots without answers at worst, which every reader expects.
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    pub(crate) fn gained(&self, bytes: u32) {
        self.bytes.fetch_add(u64::from(bytes), Ordering::Relaxed);
        self.entries.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn lost(&self, bytes: u32) {
        self.bytes.fetch_sub(u64::from(bytes), Ordering::Relaxed);
        self.entries.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All tenants with answers, and some that had.
#[derive(Debug, Default)]
pub(crate) struct Tenants {
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    by_name: HashMap<Arc<str>, Arc<Tenant>>,
    prune_at: usize,
}

impl Tenants {
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Tenant>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.by_name.get(name).map(Arc::clone)
    }

    pub(crate) fn get_or_add(&self, name: &str) -> Arc<Tenant> {
        if let Some(tenant) = self.get(name) {
            return tenant;
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.by_name.len() >= known.prune_at {
            // Each answer holds its tenant: one that nobody else holds has none. Doubling keeps the cost per put constant.
            known.by_name.retain(|_, tenant| Arc::strong_count(tenant) > 1);
            known.prune_at = (known.by_name.len() * 2).max(FIRST_PRUNE);
        }
        let name: Arc<str> = name.into();
        let tenant = known.by_name.entry(Arc::clone(&name)).or_insert_with(|| {
            Arc::new(Tenant {
                name,
                bytes: AtomicU64::new(0),
                entries: AtomicU64::new(0),
                order: Mutex::default(),
            })
        });
        Arc::clone(tenant)
    }

    pub(crate) fn all(&self) -> Vec<Arc<Tenant>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.by_name.values().map(Arc::clone).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_without_answers_are_forgotten() {
        let tenants = Tenants::default();
        let held = tenants.get_or_add("held");
        for number in 0..FIRST_PRUNE * 3 {
            tenants.get_or_add(&format!("idle-{number}"));
        }
        assert!(tenants.all().len() <= FIRST_PRUNE);
        assert!(Arc::ptr_eq(&held, &tenants.get_or_add("held")));
    }
}
