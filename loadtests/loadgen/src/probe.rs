//! What a window cost. Input: the processes under test. Output: CPU time of each while the window was open, and what the
//! rest of the machine did meanwhile.

use std::time::Instant;

use anyhow::Context;

use crate::procfs;

/// A process under test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// Its name in the tables.
    pub name: String,
    /// Its number.
    pub pid: u32,
}

/// Watches processes and the machine.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Everything that was started for the benchmark, and the load generator.
    watched: Vec<Watched>,
    cpus: Vec<usize>,
}

/// A moment.
#[derive(Debug, Clone)]
pub struct Moment {
    at: Instant,
    own_ns: Vec<u64>,
    busy_ns: u64,
}

/// What lies between two moments.
#[derive(Debug, Clone)]
pub struct Cost {
    /// Wall-clock seconds.
    pub seconds: f64,
    /// CPU nanoseconds by process, in the order in which they were watched.
    pub cpu_ns: Vec<(String, u64)>,
    /// CPU cores that others used.
    pub foreign_cores: f64,
}

impl Probe {
    /// Watches nothing but the load generator.
    #[must_use]
    pub fn new(cpus: Vec<usize>) -> Self {
        let own = Watched {
            name: "loadgen".to_owned(),
            pid: std::process::id(),
        };
        Self {
            watched: vec![own],
            cpus,
        }
    }

    /// Watches one more.
    pub fn watch(&mut self, name: &str, pid: u32) {
        self.watched.push(Watched {
            name: name.to_owned(),
            pid,
        });
    }

    /// Now.
    ///
    /// # Errors
    /// When a watched process has ended.
    pub fn now(&self) -> anyhow::Result<Moment> {
        let cpu = |process: &Watched| {
            procfs::process_cpu_ns(process.pid).with_context(|| format!("{} has ended", process.name))
        };
        let own_ns = self.watched.iter().map(cpu).collect::<anyhow::Result<_>>()?;
        Ok(Moment {
            at: Instant::now(),
            own_ns,
            busy_ns: procfs::busy_ns(&self.cpus)?,
        })
    }

    /// What lies between an earlier moment and now.
    ///
    /// # Errors
    /// As [`Probe::now`].
    pub fn since(&self, before: &Moment) -> anyhow::Result<Cost> {
        let after = self.now()?;
        let seconds = after.at.duration_since(before.at).as_secs_f64();
        let spent = before
            .own_ns
            .iter()
            .zip(&after.own_ns)
            .map(|(before, after)| after.saturating_sub(*before));
        let cpu_ns: Vec<(String, u64)> = self
            .watched
            .iter()
            .map(|process| process.name.clone())
            .zip(spent)
            .collect();
        let own_ns: u64 = cpu_ns.iter().map(|(_, ns)| ns).sum();
        let busy_ns = after.busy_ns.saturating_sub(before.busy_ns);
        Ok(Cost {
            seconds,
            cpu_ns,
            foreign_cores: busy_ns.saturating_sub(own_ns) as f64 / 1e9 / seconds,
        })
    }
}
