//! A small fixed team of threads that runs one parallel region at a time; input: a task count and a closure, output: every task has run once.
//!
//! Regions follow one another within microseconds, so a helper looks for the next one for a short while before it sleeps.
//! A region that the caller finishes alone never waits for a sleeping helper.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};

/// Looks at the job word before a helper sleeps: some tens of µs, longer than the serial parts between two regions of a model.
const SPINS_BEFORE_SLEEP: u32 = 2_000;
/// Looks at the job word before the caller yields its core while a helper finishes its last task.
const SPINS_BEFORE_YIELD: u32 = 2_000;
/// Most threads of one team; more would only fight over the same cache.
const MAX_THREADS: usize = 256;
/// Set in the job word while helpers may join the region; the lower bits count those inside.
const OPEN: usize = 1 << (usize::BITS - 1);

/// A team could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TeamError {
    /// The number of threads is zero or too large.
    #[error("a team needs 1 to {MAX_THREADS} threads, got {threads}")]
    Size {
        /// What was asked for.
        threads: usize,
    },
    /// The operating system refused a thread.
    #[error("a compute thread could not be started")]
    Spawn {
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

type Task<'a> = &'a (dyn Fn(usize) + Sync);

#[derive(Clone, Copy)]
struct Job {
    task: Task<'static>,
    tasks: usize,
}

struct Shared {
    /// `OPEN` and the number of helpers inside the region.
    word: AtomicUsize,
    /// Written by the caller while the word is 0, read by helpers that joined.
    job: UnsafeCell<Option<Job>>,
    next: AtomicUsize,
    sleeping: AtomicUsize,
    failed: AtomicBool,
    stop: AtomicBool,
}

// SAFETY: `job` is written only while no helper is inside (word is 0) and read only by helpers inside; the word orders both.
unsafe impl Sync for Shared {}
// SAFETY: the closure behind `job` is `Sync`, so a reference to it may be used from any thread.
unsafe impl Send for Shared {}

/// The threads; dropping it ends and joins them.
pub struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    handles: Vec<Thread>,
}

impl std::fmt::Debug for Team {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Team")
            .field("threads", &self.threads())
            .finish()
    }
}

impl Team {
    /// A team of `threads`, the caller of [`Team::run`] being one of them.
    pub fn new(threads: usize) -> Result<Self, TeamError> {
        if threads == 0 || threads > MAX_THREADS {
            return Err(TeamError::Size { threads });
        }
        let shared = Arc::new(Shared {
            word: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            sleeping: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut team = Self {
            shared,
            helpers: Vec::new(),
            handles: Vec::new(),
        };
        for index in 1..threads {
            let shared = Arc::clone(&team.shared);
            let helper = std::thread::Builder::new()
                .name(format!("compute-{index}"))
                .spawn(move || shared.help())
                .map_err(|source| TeamError::Spawn { source })?;
            team.handles.push(helper.thread().clone());
            team.helpers.push(helper);
        }
        Ok(team)
    }

    /// Threads that take part, the caller included.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `task(0..tasks)`, each once, on all threads; returns when all are done.
    ///
    /// A panic in a task reaches the caller after every helper left the region.
    pub fn run(&mut self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if self.helpers.is_empty() || tasks <= 1 {
            (0..tasks).for_each(task);
            return;
        }
        // SAFETY: only the lifetime changes; `run` returns after the region is closed and every helper has left it,
        // so no helper uses the reference beyond the borrow.
        let task: Task<'static> = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
        let job = Job { task, tasks };
        // SAFETY: the word is 0 here (each region ends with it at 0 and `&mut self` excludes a second one), so no helper reads.
        unsafe { *self.shared.job.get() = Some(job) };
        self.shared.next.store(0, Ordering::Relaxed);
        self.shared.word.store(OPEN, Ordering::SeqCst);
        if self.shared.sleeping.load(Ordering::SeqCst) > 0 {
            self.handles.iter().take(tasks - 1).for_each(Thread::unpark);
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| self.shared.drain(job)));
        self.shared.close();
        let failed = self.shared.failed.swap(false, Ordering::Relaxed);
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
        assert!(!failed, "a task of a parallel region panicked");
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.handles.iter().for_each(Thread::unpark);
        for helper in self.helpers.drain(..) {
            // A helper catches panics of tasks, so joining cannot fail for a reason worth reporting.
            drop(helper.join());
        }
    }
}

impl Shared {
    /// Takes tasks until none is left.
    fn drain(&self, job: Job) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= job.tasks {
                return;
            }
            (job.task)(index);
        }
    }

    /// Stops helpers from joining and waits for those inside.
    fn close(&self) {
        self.next.store(usize::MAX / 2, Ordering::Relaxed);
        self.word.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while self.word.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins < SPINS_BEFORE_YIELD {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// A helper's life: join open regions, sleep between them.
    fn help(&self) {
        let mut idle = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if self.join() {
                idle = 0;
            } else if idle < SPINS_BEFORE_SLEEP {
                idle += 1;
                std::hint::spin_loop();
            } else {
                self.sleep();
                idle = 0;
            }
        }
    }

    /// Enters the region when it is open and has tasks left; false otherwise.
    fn join(&self) -> bool {
        let word = self.word.load(Ordering::Acquire);
        if word & OPEN == 0 {
            return false;
        }
        if self
            .word
            .compare_exchange(word, word + 1, Ordering::AcqRel, Ordering::Relaxed)
            .is_err()
        {
            return true;
        }
        // SAFETY: this helper is counted in the word, so the caller does not write the job before it leaves.
        let job = unsafe { *self.job.get() };
        if let Some(job) = job
            && catch_unwind(AssertUnwindSafe(|| self.drain(job))).is_err()
        {
            self.failed.store(true, Ordering::Relaxed);
        }
        self.word.fetch_sub(1, Ordering::Release);
        // The region stays open until the caller closes it: wait for that instead of joining again.
        while self.word.load(Ordering::Acquire) & OPEN != 0
            && self.next.load(Ordering::Relaxed) >= job.map_or(0, |job| job.tasks)
            && !self.stop.load(Ordering::Relaxed)
        {
            std::hint::spin_loop();
        }
        true
    }

    /// Sleeps until a region opens or the team ends.
    fn sleep(&self) {
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        if self.word.load(Ordering::SeqCst) & OPEN == 0 && !self.stop.load(Ordering::SeqCst) {
            std::thread::park();
        }
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 5] {
            let mut team = Team::new(threads).unwrap();
            for tasks in [0, 1, 2, 7, 1_000] {
                let seen: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                team.run(tasks, &|index| {
                    seen[index].fetch_add(1, Ordering::Relaxed);
                });
                assert!(seen.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn many_short_regions_do_not_lose_tasks() {
        let mut team = Team::new(3).unwrap();
        let total = AtomicUsize::new(0);
        for _ in 0..20_000 {
            team.run(4, &|_| {
                total.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert_eq!(total.load(Ordering::Relaxed), 80_000);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        let mut team = Team::new(2).unwrap();
        let result = catch_unwind(AssertUnwindSafe(|| {
            team.run(64, &|index| assert!(index != 40, "task 40"));
        }));
        assert!(result.is_err());
        let total = AtomicUsize::new(0);
        team.run(64, &|_| {
            total.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(total.load(Ordering::Relaxed), 64);
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        assert!(matches!(Team::new(0), Err(TeamError::Size { threads: 0 })));
        assert!(Team::new(MAX_THREADS + 1).is_err());
    }
}
