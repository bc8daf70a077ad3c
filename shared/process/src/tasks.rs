//! The owner of everything a service spawns: named futures in, at the end the names of those that would not stop.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::lifecycle::Shutdown;

/// The tasks of one service; clones share them.
///
/// A task that fails or panics is logged at ERROR and begins the soft stop of the service.
#[derive(Clone, Debug)]
pub struct Tasks {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tracker: TaskTracker,
    shutdown: Shutdown,
    running: Mutex<BTreeMap<u64, Cow<'static, str>>>,
    next_id: AtomicU64,
    failed: AtomicBool,
}

impl Inner {
    fn running(&self) -> MutexGuard<'_, BTreeMap<u64, Cow<'static, str>>> {
        // The map is whole between any two statements that hold the lock.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self) {
        self.failed.store(true, Ordering::Release);
        self.shutdown.start();
    }
}

impl Tasks {
    /// An empty set whose failures begin the given stop.
    #[must_use]
    pub fn new(shutdown: Shutdown) -> Self {
        let inner = Inner {
            tracker: TaskTracker::new(),
            shutdown,
            running: Mutex::default(),
            next_id: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Runs a future to its end on the current runtime; the handle may be dropped, the task stays owned.
    ///
    /// Aborting it through the handle is not a failure.
    pub fn spawn<F>(&self, name: impl Into<Cow<'static, str>>, future: F) -> JoinHandle<()>
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let name = name.into();
        self.inner.running().insert(id, name.clone());
        let entry = Entry {
            id,
            name,
            inner: Arc::clone(&self.inner),
        };
        self.inner.tracker.spawn(async move {
            if let Err(error) = future.await {
                tracing::error!(task = %entry.name, error = format!("{error:#}"), "task failed, stopping the service");
                entry.inner.fail();
            }
        })
    }

    /// Whether any task has failed or panicked.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.inner.failed.load(Ordering::Acquire)
    }

    /// The names of the tasks that run now, in the order they were spawned.
    #[must_use]
    pub fn running(&self) -> Vec<String> {
        self.inner.running().values().map(ToString::to_string).collect()
    }

    /// Waits for all tasks to end, not longer than the limit. Cancel-safe; may be called again.
    ///
    /// # Errors
    /// Names the tasks that did not end.
    pub async fn close_and_wait(&self, limit: Duration) -> Result<(), StuckTasks> {
        self.inner.tracker.close();
        let ended = tokio::time::timeout(limit, self.inner.tracker.wait()).await;
        ended.map_err(|_| StuckTasks {
            names: self.running(),
            limit_ms: limit.as_millis(),
        })
    }
}

/// One running task's line in the list; leaves it however the task ends.
struct Entry {
    id: u64,
    name: Cow<'static, str>,
    inner: Arc<Inner>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.inner.running().remove(&self.id);
        if std::thread::panicking() {
            tracing::error!(task = %self.name, "task panicked, stopping the service");
            self.inner.fail();
        }
    }
}

/// Tasks that outlived their deadline.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} task(s) did not end within {limit_ms} ms: {}", names.len(), names.join(", "))]
pub struct StuckTasks {
    /// Their names.
    pub names: Vec<String>,
    /// How long was waited.
    pub limit_ms: u128,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn waits_for_all_and_names_the_stuck() {
        let shutdown = Shutdown::new();
        let tasks = Tasks::new(shutdown.clone());
        tasks.spawn("polite", {
            let shutdown = shutdown.clone();
            async move {
                shutdown.stopping().await;
                Ok(())
            }
        });
        let stuck = tasks.spawn("stuck", std::future::pending());
        tasks.spawn(format!("stuck-{}", 2), std::future::pending());
        assert_eq!(tasks.running(), ["polite", "stuck", "stuck-2"]);
        shutdown.start();
        let error = tasks.close_and_wait(LIMIT).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "2 task(s) did not end within 10000 ms: stuck, stuck-2"
        );
        stuck.abort();
        assert_eq!(tasks.close_and_wait(LIMIT).await.unwrap_err().names, ["stuck-2"]);
        assert!(!tasks.failed(), "an aborted task has not failed");
    }

    #[tokio::test]
    async fn an_error_or_a_panic_stops_the_service() {
        let error: fn() -> anyhow::Result<()> = || Err(anyhow::anyhow!("broken"));
        let panic: fn() -> anyhow::Result<()> = || panic!("this panic is part of the test");
        for end in [error, panic] {
            let shutdown = Shutdown::new();
            let tasks = Tasks::new(shutdown.clone());
            tasks.spawn("failing", async move { end() });
            tokio::time::timeout(LIMIT, shutdown.stopping()).await.unwrap();
            tasks.close_and_wait(LIMIT).await.unwrap();
            assert!(tasks.failed());
        }
    }

    #[tokio::test]
    async fn a_task_that_ends_well_stops_nothing() {
        let tasks = Tasks::new(Shutdown::new());
        tasks.spawn("short", async { Ok(()) }).await.unwrap();
        tasks.close_and_wait(LIMIT).await.unwrap();
        assert_eq!((tasks.failed(), tasks.inner.shutdown.is_stopping()), (false, false));
    }
}
