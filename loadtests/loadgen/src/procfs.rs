//! What the system knows. Input: process numbers, CPU numbers. Output: CPU time, memory, load of the machine. Linux only.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use anyhow::Context;

/// CPU time that a process and its ended threads have used, user and system, in nanoseconds: the sum of the fields
/// `utime` and `stime` of `/proc/<pid>/stat`, but not rounded to 10 ms.
///
/// # Errors
/// When there is no such process.
pub fn process_cpu_ns(pid: u32) -> io::Result<u64> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    let mut clock: libc::clockid_t = 0;
    // SAFETY: writes one clock id through a pointer to a live variable.
    let failed = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    if failed != 0 {
        return Err(io::Error::from_raw_os_error(failed));
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec through a pointer to a live variable.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let (seconds, rest) = (
        u64::try_from(time.tv_sec).unwrap_or(0),
        u64::try_from(time.tv_nsec).unwrap_or(0),
    );
    Ok(seconds * 1_000_000_000 + rest)
}

/// Resident memory of a process in bytes.
///
/// # Errors
/// When there is no such process.
pub fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS: the process has ended")?;
    let kilobytes: u64 = line
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .context("VmRSS is no number")?;
    Ok(kilobytes * 1_024)
}

/// Busy time of some CPUs since the start of the machine, in nanoseconds (rounded to the system's tick): everything but idle and waiting for
/// a disk; time that the host took away counts as busy, it was not ours.
///
/// # Errors
/// When `/proc/stat` cannot be read.
pub fn busy_ns(cpus: &[usize]) -> anyhow::Result<u64> {
    // SAFETY: a plain question without pointers.
    let ticks_per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let tick_ns = 1_000_000_000 / u64::try_from(ticks_per_second).unwrap_or(100).max(1);
    let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    Ok(busy_ticks(&stat, cpus) * tick_ns)
}

fn busy_ticks(stat: &str, cpus: &[usize]) -> u64 {
    let mut sum = 0;
    for line in stat.lines() {
        let mut words = line.split_whitespace();
        let number = words
            .next()
            .and_then(|name| name.strip_prefix("cpu"))
            .and_then(|number| number.parse().ok());
        if !number.is_some_and(|number| cpus.contains(&number)) {
            continue;
        }
        let ticks: Vec<u64> = words.map(|word| word.parse().unwrap_or(0)).collect();
        // user nice system idle iowait irq softirq steal; guest time is part of user time already.
        sum += [0, 1, 2, 5, 6, 7].iter().filter_map(|at| ticks.get(*at)).sum::<u64>();
    }
    sum
}

/// The first CPUs of those this process may use, at most `count`; from now on it and its children use only these.
///
/// # Errors
/// When the system refuses.
pub fn keep_to_cores(count: usize) -> io::Result<Vec<usize>> {
    // SAFETY: a cpu_set_t is plain bits, for which all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: fills the set behind the pointer, which has the size that is named.
    if unsafe { libc::sched_getaffinity(0, size, &raw mut set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let limit = usize::try_from(libc::CPU_SETSIZE).unwrap_or(0);
    // SAFETY: the number is below the size of the set.
    let cpus: Vec<usize> = (0..limit)
        .filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) })
        .take(count)
        .collect();
    // SAFETY: as above.
    let mut kept: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in &cpus {
        // SAFETY: the number came out of a set of the same size.
        unsafe { libc::CPU_SET(*cpu, &mut kept) };
    }
    // SAFETY: reads the set behind the pointer, which has the size that is named.
    if unsafe { libc::sched_setaffinity(0, size, &raw const kept) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cpus)
}

/// The machine in words: processor and kernel.
#[must_use]
pub fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("unknown processor", |(_, name)| name.trim());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{model}, Linux {}", kernel.trim())
}

/// A process as `/proc` shows it: number and start, which together name it for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it started, in ticks since the machine did.
    pub started: u64,
}

/// Parent and identity of all processes.
#[must_use]
pub fn all_processes() -> BTreeMap<u32, (u32, ProcessId)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, parent_and_start(pid)?))).collect()
}

/// Whether this very process still runs; one that has ended and was not waited for does not.
#[must_use]
pub fn is_running(process: ProcessId) -> bool {
    parent_and_start(process.pid).is_some_and(|(_, now)| now == process)
}

fn parent_and_start(pid: u32) -> Option<(u32, ProcessId)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, so the fields are counted from its end.
    let (_, fields) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    let started = fields.get(19)?.parse().ok()?;
    Some((fields.get(1)?.parse().ok()?, ProcessId { pid, started }))
}

/// A process and everything below it.
#[must_use]
pub fn tree_of(root: u32) -> Vec<ProcessId> {
    let all = all_processes();
    let mut tree: Vec<u32> = vec![root];
    let mut at = 0;
    while let Some(parent) = tree.get(at).copied() {
        tree.extend(
            all.iter()
                .filter(|(pid, (above, _))| *above == parent && **pid != parent)
                .map(|(pid, _)| *pid),
        );
        at += 1;
    }
    tree.iter()
        .filter_map(|pid| all.get(pid).map(|(_, process)| *process))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_time_is_that_of_the_named_cpus_without_idle_time() {
        let stat = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 3 100 200 4 5 6 7 8\ncpu1 10 0 0 1 0 0 0 0 0 0\ncpu2 50 0 0 0 0 0 0 0\nintr 5\n";
        assert_eq!(busy_ticks(stat, &[0]), 1 + 2 + 3 + 4 + 5 + 6);
        assert_eq!(busy_ticks(stat, &[0, 1]), 31);
    }

    #[test]
    fn this_process_is_known_and_uses_time_and_memory() {
        let own = std::process::id();
        let before = process_cpu_ns(own).unwrap();
        let mut spun = 0_u64;
        while process_cpu_ns(own).unwrap() == before {
            spun += 1;
        }
        assert!(spun < u64::MAX && resident_bytes(own).unwrap() > 100_000);
        let tree = tree_of(own);
        assert!(tree.iter().any(|process| process.pid == own && is_running(*process)));
        assert!(!is_running(ProcessId { pid: own, started: 0 }));
    }
}
