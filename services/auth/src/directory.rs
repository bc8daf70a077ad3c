//! Keys by id, from memory where possible. Input: kids and changes. Output: rows that are never older than the last
//! change this process acknowledged.

use std::sync::{Arc, Mutex, PoisonError};

use moka::sync::Cache;
use schemas::policy::KeyState;

use crate::store::{Change, KeyRow, Store, StoreError};

/// The store with a cache before it.
#[derive(Debug)]
pub(crate) struct Directory {
    store: Store,
    rows: Cache<String, Arc<KeyRow>>,
    /// Counts changes. Held while the cache changes, so that a row read before a change is never cached after it.
    changes: Mutex<u64>,
}

impl Directory {
    /// A directory that remembers up to this many keys.
    pub(crate) fn new(store: Store, cached_keys: u64) -> Self {
        Self {
            store,
            rows: Cache::new(cached_keys),
            changes: Mutex::new(0),
        }
    }

    /// The store behind it, for what needs no cache.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// One key, tombstones included. Unknown ids are not remembered: askers remember those themselves.
    pub(crate) async fn find(&self, kid: &str) -> Result<Option<Arc<KeyRow>>, StoreError> {
        if let Some(row) = self.rows.get(kid) {
            return Ok(Some(row));
        }
        let before = *self.lock();
        let Some(row) = self.store.find(kid).await?.map(Arc::new) else {
            return Ok(None);
        };
        let changes = self.lock();
        if *changes == before {
            self.rows.insert(kid.to_owned(), Arc::clone(&row));
        }
        drop(changes);
        Ok(Some(row))
    }

    /// Gives a key a state; every later [`Directory::find`] sees it.
    pub(crate) async fn set_state(&self, kid: &str, state: KeyState, now_ms: u64) -> Result<Change, StoreError> {
        let change = self.store.set_state(kid, state, now_ms).await;
        // Also after a failure: whether it was committed is not known then.
        let mut changes = self.lock();
        *changes += 1;
        self.rows.invalidate(kid);
        drop(changes);
        change
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, u64> {
        // A counter is whole at any moment.
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use schemas::policy::KeyInfo;
    use schemas::work::Lane;

    use super::*;

    fn row(kid: &str) -> KeyRow {
        let info = KeyInfo {
            kid: kid.to_owned(),
            tenant: "t".to_owned(),
            name: "n".to_owned(),
            state: KeyState::Active,
            models: Vec::new(),
            scopes: Vec::new(),
            request_limit: None,
            priority_ceiling: Lane::Interactive,
            created_at_ms: 0,
            expires_at_ms: None,
            policy_version: 1,
        };
        KeyRow {
            info,
            mac: Vec::new(),
            pepper_version: 1,
        }
    }

    /// Readers fill the cache as fast as they can while the key changes: nobody may read a state from before a change
    /// after that change was acknowledged.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn an_acknowledged_change_is_seen_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(Some(&folder.path().join("keys"))).await.unwrap();
        store.insert(&row("a")).await.unwrap();
        let directory = Arc::new(Directory::new(store, 10));
        let done = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(1));
        let mut readers = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let (directory, done) = (Arc::clone(&directory), Arc::clone(&done));
            let acknowledged = Arc::clone(&acknowledged);
            readers.spawn(async move {
                while !done.load(Ordering::Acquire) {
                    let known = acknowledged.load(Ordering::Acquire);
                    let seen = directory.find("a").await.unwrap().unwrap();
                    assert!(seen.info.policy_version >= known, "older than {known}");
                    tokio::task::yield_now().await;
                }
            });
        }
        for round in 0..100 {
            let state = [KeyState::Disabled, KeyState::Active][round % 2];
            let change = directory.set_state("a", state, 1).await.unwrap();
            let Change::Done(changed) = change else {
                panic!("it had another state");
            };
            acknowledged.store(changed.info.policy_version, Ordering::Release);
            for _ in 0..3 {
                assert_eq!(directory.find("a").await.unwrap().unwrap().info.state, state);
            }
        }
        done.store(true, Ordering::Release);
        while let Some(reader) = readers.join_next().await {
            reader.unwrap();
        }
        assert!(directory.find("b").await.unwrap().is_none());
    }
}
