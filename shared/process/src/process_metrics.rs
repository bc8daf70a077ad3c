//! What the system knows about this process: reads `/proc/self`, gives Prometheus families with the usual names.

use std::fs;

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, GaugeVec, Opts, Registry};

use crate::context::Context;

/// Ticks per second in `/proc`: the kernel's USER_HZ, fixed at 100 on every architecture that we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU, memory, files and start of this process where the system tells them, and who it is.
pub(crate) fn gather(contexts: &[Context]) -> Result<Vec<MetricFamily>, prometheus::Error> {
    let registry = Registry::new();
    let build = GaugeVec::new(
        Opts::new("portalis_build_info", "Version that runs; always 1."),
        &["service", "version"],
    )?;
    for context in contexts {
        build
            .with_label_values(&[context.service, env!("CARGO_PKG_VERSION")])
            .set(1.0);
    }
    register(&registry, build)?;
    if let Some(times) = Times::read() {
        let cpu = Counter::new("process_cpu_seconds_total", "User and system CPU time spent.")?;
        cpu.inc_by(times.cpu_seconds);
        register(&registry, cpu)?;
        let help = "Start of the process in seconds since 1970.";
        gauge(&registry, "process_start_time_seconds", help, times.start_unix_seconds)?;
    }
    if let Some(bytes) = resident_bytes() {
        gauge(&registry, "process_resident_memory_bytes", "Resident memory.", bytes)?;
    }
    if let Some(count) = open_files() {
        gauge(&registry, "process_open_fds", "Open file descriptors.", count)?;
    }
    Ok(registry.gather())
}

fn gauge(registry: &Registry, name: &str, help: &str, value: f64) -> Result<(), prometheus::Error> {
    let gauge = Gauge::new(name, help)?;
    gauge.set(value);
    register(registry, gauge)
}

fn register(registry: &Registry, metric: impl Collector + 'static) -> Result<(), prometheus::Error> {
    registry.register(Box::new(metric))
}

struct Times {
    cpu_seconds: f64,
    start_unix_seconds: f64,
}

impl Times {
    fn read() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let boot = fs::read_to_string("/proc/stat").ok()?;
        Self::parse(&stat, &boot)
    }

    /// Fields 14 (utime), 15 (stime) and 22 (starttime) of `/proc/self/stat`, in ticks; see proc(5).
    fn parse(stat: &str, boot: &str) -> Option<Self> {
        // The second field is the program's name in parentheses and may hold anything; the third field follows.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let seconds = |field: usize| Some(fields.get(field - 3)?.parse::<f64>().ok()? / TICKS_PER_SECOND);
        let boot_unix_seconds: f64 = boot
            .lines()
            .find_map(|line| line.strip_prefix("btime "))?
            .trim()
            .parse()
            .ok()?;
        Some(Self {
            cpu_seconds: seconds(14)? + seconds(15)?,
            start_unix_seconds: boot_unix_seconds + seconds(22)?,
        })
    }
}

fn resident_bytes() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: f64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024.0)
}

fn open_files() -> Option<f64> {
    // One of them is the directory that is being read.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_fields_behind_any_program_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 0 0 0 0 250 50 0 0 20 0 4 0 12345 1 2";
        let times = Times::parse(stat, "cpu 1\nbtime 1700000000\nprocesses 3").unwrap();
        assert!((times.cpu_seconds - 3.0).abs() < 1e-9);
        assert!((times.start_unix_seconds - 1_700_000_123.45).abs() < 1e-3);
        assert!(Times::parse("7 (a", "btime 1").is_none());
        assert!(Times::parse(stat, "cpu 1").is_none());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_memory_files_and_a_recent_start() {
        assert!(resident_bytes().unwrap() > 100_000.0);
        assert!(open_files().unwrap() >= 1.0);
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        let start = Times::read().unwrap().start_unix_seconds;
        assert!(start <= now + 1.0 && start > now - 86_400.0, "start {start}, now {now}");
    }
}
