//! The report of a benchmark. Input: medians. Output: Markdown. Pure; every figure in it was measured in the run it names.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::bench::Kind;
use crate::scenario::Scenario;
use crate::targets::targets;

/// Load of others above which a run is not to be trusted, in CPU cores.
const FOREIGN_CORES_MAX: f64 = 0.2;
/// Processes of the mesh, in the order of the columns.
const MESH: [&str; 7] = [
    "gateway",
    "nats-server",
    "gpu-worker",
    "cost-accounting",
    "auth",
    "cache",
    "autoscaler",
];
/// Processes of the baselines.
const BASELINES: [&str; 3] = ["bare axum", "nats-server, bare", "echo on NATS"];

/// Medians of one row.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub kind: Kind,
    /// Requests in flight.
    pub connections: usize,
    /// Requests of all rounds.
    pub requests: u64,
    /// Requests a second.
    pub per_second: f64,
    /// Slowest and fastest round.
    pub per_second_range: (f64, f64),
    /// Median latency, in microseconds.
    pub p50_us: f64,
    /// 99th percentile, in microseconds.
    pub p99_us: f64,
    /// CPU per request by process, in microseconds.
    pub cpu_us: Vec<(String, f64)>,
    /// CPU cores that others used.
    pub foreign_cores: f64,
    /// The same in the worst round.
    pub foreign_cores_max: f64,
    /// Answers that were not 200, by status.
    pub failures: BTreeMap<u16, u64>,
}

impl Row {
    /// CPU per request of one process.
    #[must_use]
    pub fn cpu_of(&self, name: &str) -> f64 {
        self.cpu_us
            .iter()
            .find(|(known, _)| known == name)
            .map_or(0.0, |(_, us)| *us)
    }

    /// CPU per request of all processes of the mesh.
    #[must_use]
    pub fn mesh_cpu_us(&self) -> f64 {
        MESH.iter().map(|name| self.cpu_of(name)).sum()
    }
}

/// The mesh at rest.
#[derive(Debug, Clone, Serialize)]
pub struct Idle {
    /// Resident memory of the gateway.
    pub gateway_rss_bytes: u64,
    /// CPU cores by process.
    pub cores: Vec<(String, f64)>,
}

/// Identical requests at once.
#[derive(Debug, Clone, Serialize)]
pub struct Identical {
    /// How many.
    pub at_once: usize,
    /// What was computed, by round.
    pub executions: Vec<u64>,
    /// Where the answers came from, over all rounds.
    pub sources: BTreeMap<String, u64>,
}

/// Everything that was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Day, in UTC.
    pub date: String,
    /// The machine.
    pub machine: String,
    /// CPU cores in use.
    pub cores: usize,
    /// How long it took.
    pub seconds: f64,
    /// What was run.
    pub scenario: Scenario,
    /// All rows.
    pub rows: Vec<Row>,
    /// The mesh at rest.
    pub idle: Idle,
    /// Resident memory of the gateway after all load.
    pub rss_after_bytes: u64,
    /// Identical requests at once.
    pub identical: Identical,
    /// How to run it again.
    pub command: String,
}

impl Report {
    /// One row.
    #[must_use]
    pub fn row(&self, kind: Kind, connections: usize) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.kind == kind && row.connections == connections)
    }
}

/// The whole report.
#[must_use]
pub fn markdown(report: &Report) -> String {
    let mut out = String::new();
    head(&mut out, report);
    target_table(&mut out, report);
    speed_table(&mut out, report);
    let mesh: Vec<&Row> = report.rows.iter().filter(|row| row.kind.is_mesh()).collect();
    cpu_table(&mut out, "The mesh", &mesh, &MESH);
    let bare: Vec<&Row> = report.rows.iter().filter(|row| !row.kind.is_mesh()).collect();
    cpu_table(&mut out, "The baselines", &bare, &BASELINES);
    rest(&mut out, report);
    out
}

/// Writing to a string cannot fail.
macro_rules! line {
    ($out:expr, $($format:tt)*) => { let _ = writeln!($out, $($format)*); };
}

fn head(out: &mut String, report: &Report) {
    let scenario = &report.scenario;
    line!(out, "# Speed of the mesh, {}\n", report.date);
    line!(
        out,
        "Measured by `{}` in one run of {:.0} s.",
        report.command,
        report.seconds
    );
    line!(
        out,
        "Machine: {}; everything, load generator included, on {} cores.",
        report.machine,
        report.cores
    );
    line!(
        out,
        "Each row is the median of {} windows of {} ms after {} ms of warm-up, all rows in turn.",
        scenario.repetitions,
        scenario.window_ms,
        scenario.warm_up_ms
    );
    line!(
        out,
        "Every service is a process of its own with its `default.toml`; the worker runs the echo engine."
    );
    line!(
        out,
        "A request is `POST /v1/embeddings` with one input of one token, keep-alive, closed loop."
    );
    line!(
        out,
        "Inputs are all different except for cached hits; keys are checked and cost events booked."
    );
    let worst = report.rows.iter().map(|row| row.foreign_cores_max).fold(0.0, f64::max);
    let usual = crate::window::median(&report.rows.iter().map(|row| row.foreign_cores).collect::<Vec<f64>>());
    line!(
        out,
        "Others used {usual:.2} CPU cores meanwhile (median of the rows; {worst:.2} in the worst window)."
    );
    if usual > FOREIGN_CORES_MAX {
        line!(
            out,
            "\n**Warning:** above {FOREIGN_CORES_MAX} cores throughput and latency are those of a shared machine; only CPU per \
             request and ratios are worth reading."
        );
    }
    line!(out, "");
}

fn target_table(out: &mut String, report: &Report) {
    line!(out, "## Targets\n");
    line!(out, "| what | target | measured | |\n|---|---|---|---|");
    for target in targets(report) {
        let verdict = if target.met { "met" } else { "**missed**" };
        line!(
            out,
            "| {} | {} | {} | {verdict} |",
            target.what,
            target.wanted,
            target.measured
        );
    }
    line!(out, "");
}

fn speed_table(out: &mut String, report: &Report) {
    line!(out, "## Throughput and latency\n");
    line!(
        out,
        "| load | in flight | requests/s | slowest to fastest round | p50 µs | p99 µs | requests | not 200 |"
    );
    line!(out, "|---|---|---|---|---|---|---|---|");
    for row in &report.rows {
        let (low, high) = row.per_second_range;
        let failures = match row.failures.is_empty() {
            true => "0".to_owned(),
            false => row
                .failures
                .iter()
                .map(|(status, count)| format!("{status}: {count}"))
                .collect::<Vec<_>>()
                .join(", "),
        };
        line!(
            out,
            "| {} | {} | {:.0} | {low:.0} to {high:.0} | {:.0} | {:.0} | {} | {failures} |",
            row.kind.name(),
            row.connections,
            row.per_second,
            row.p50_us,
            row.p99_us,
            row.requests
        );
    }
    line!(out, "");
}

fn cpu_table(out: &mut String, title: &str, rows: &[&Row], names: &[&str]) {
    if rows.is_empty() {
        return;
    }
    line!(out, "## {title}: CPU µs per request by process\n");
    line!(
        out,
        "| load | in flight | {} | sum | load generator |",
        names.join(" | ")
    );
    line!(out, "|---|---|{}", "---|".repeat(names.len() + 2));
    for row in rows {
        let cells: Vec<String> = names.iter().map(|name| format!("{:.1}", row.cpu_of(name))).collect();
        let sum: f64 = names.iter().map(|name| row.cpu_of(name)).sum();
        line!(
            out,
            "| {} | {} | {} | {sum:.1} | {:.1} |",
            row.kind.name(),
            row.connections,
            cells.join(" | "),
            row.cpu_of("loadgen")
        );
    }
    line!(out, "");
}

fn rest(out: &mut String, report: &Report) {
    line!(out, "## Beside the load\n");
    let idle: Vec<String> = report
        .idle
        .cores
        .iter()
        .map(|(name, cores)| format!("{name} {:.2} %", cores * 100.0))
        .collect();
    line!(out, "- CPU of a core while nothing is asked: {}.", idle.join(", "));
    line!(
        out,
        "- Resident memory of the gateway: {:.1} MB idle, {:.1} MB after all load.",
        report.idle.gateway_rss_bytes as f64 / 1e6,
        report.rss_after_bytes as f64 / 1e6
    );
    let identical = &report.identical;
    let sources: Vec<String> = identical
        .sources
        .iter()
        .map(|(source, count)| format!("{source} {count}"))
        .collect();
    line!(
        out,
        "- {} identical requests at once, {} rounds: executions by round {:?}; answers by `x-portalis-cache`: {}.",
        identical.at_once,
        identical.executions.len(),
        identical.executions,
        sources.join(", ")
    );
    line!(out, "\n## How it is measured\n");
    line!(
        out,
        "- CPU is user and system time of each process over the window, from the system's clock of that process."
    );
    line!(
        out,
        "- What others used is the busy time in `/proc/stat` less that of all processes named here."
    );
    line!(
        out,
        "- Bare axum reads the same request bytes and answers with the bytes of a mesh answer; it parses nothing."
    );
    line!(
        out,
        "- The broker baselines use async-nats directly, 256 bytes both ways, the other end in a process of its own."
    );
    line!(
        out,
        "- The JetStream loop publishes to a memory stream without waiting, pulls with credits, replies, acknowledges."
    );
    line!(
        out,
        "- The code is in `loadtests/loadgen`, the figures of the scenario in `loadtests/scenarios`."
    );
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn row(kind: Kind, connections: usize, per_second: f64, p50_us: f64) -> Row {
        Row {
            kind,
            connections,
            requests: 1_000,
            per_second,
            per_second_range: (per_second, per_second),
            p50_us,
            p99_us: p50_us * 2.0,
            cpu_us: vec![("gateway".to_owned(), 10.0), ("loadgen".to_owned(), 500.0)],
            foreign_cores: 0.1,
            foreign_cores_max: 0.3,
            failures: BTreeMap::new(),
        }
    }

    pub(crate) fn report(rows: Vec<Row>) -> Report {
        Report {
            date: "2026-01-01".to_owned(),
            machine: "m".to_owned(),
            cores: 2,
            seconds: 1.0,
            scenario: Scenario::quick().unwrap(),
            rows,
            idle: Idle {
                gateway_rss_bytes: 20_000_000,
                cores: vec![("gateway".to_owned(), 0.01)],
            },
            rss_after_bytes: 30_000_000,
            identical: Identical {
                at_once: 64,
                executions: vec![1, 1],
                sources: BTreeMap::new(),
            },
            command: "make bench".to_owned(),
        }
    }

    #[test]
    fn tables_are_whole_and_a_busy_machine_is_said_so() {
        let mut report = report(vec![row(Kind::Mesh, 64, 9_000.0, 10.0), row(Kind::Core, 1, 9.0, 1.0)]);
        report.rows[0].failures.insert(429, 3);
        let text = markdown(&report);
        assert!(!text.contains("Warning") && text.contains("429: 3"));
        // In a table every line has as many cells as its heading.
        let mut cells = None;
        for line in text.lines() {
            let count = line.matches('|').count();
            assert!(count == 0 || cells.is_none() || cells == Some(count), "{line}");
            cells = (count > 0).then_some(count);
        }
        report.rows.iter_mut().for_each(|row| row.foreign_cores = 0.5);
        assert!(markdown(&report).contains("Warning"));
    }
}
