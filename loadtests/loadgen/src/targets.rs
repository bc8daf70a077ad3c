//! The targets for the mesh's speed. Input: medians of one run. Output: each target with what was measured. Pure.

use serde::Serialize;

use crate::bench::Kind;
use crate::report::{Report, Row};

/// CPU of all mesh processes per request, in microseconds.
const CPU_US_MAX: f64 = 120.0;
/// Connections at which it counts.
const CPU_CONNECTIONS: usize = 64;
/// Added latency over the two baselines it is made of.
const LATENCY_RATIO_MAX: f64 = 1.5;
/// Requests a second on two cores, load generator included.
const PER_SECOND_MIN: f64 = 8_000.0;
/// Cached hits over what a bare server does.
const HIT_RATIO_MIN: f64 = 0.7;
/// Resident memory of the idle gateway, in bytes.
const RSS_BYTES_MAX: f64 = 40e6;

/// One target.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Target {
    /// What.
    pub what: String,
    /// How much is wanted.
    pub wanted: String,
    /// How much it was.
    pub measured: String,
    /// Whether that suffices.
    pub met: bool,
}

fn target(what: impl Into<String>, wanted: impl Into<String>, measured: impl Into<String>, met: bool) -> Target {
    Target {
        what: what.into(),
        wanted: wanted.into(),
        measured: measured.into(),
        met,
    }
}

/// All targets whose rows were measured.
#[must_use]
pub fn targets(report: &Report) -> Vec<Target> {
    let mut targets = Vec::new();
    for kind in [Kind::MeshLimited, Kind::Mesh] {
        targets.extend(report.row(kind, CPU_CONNECTIONS).map(cpu));
    }
    targets.extend(latency(report));
    targets.extend(throughput(report));
    targets.extend(
        report
            .rows
            .iter()
            .filter(|row| row.kind == Kind::Hit)
            .filter_map(|hit| cached(report, hit)),
    );
    let rss = report.idle.gateway_rss_bytes as f64;
    let wanted = format!("≤ {:.0} MB", RSS_BYTES_MAX / 1e6);
    targets.push(target(
        "gateway, resident memory when idle",
        wanted,
        format!("{:.1} MB", rss / 1e6),
        rss <= RSS_BYTES_MAX,
    ));
    let identical = &report.identical;
    if let Some(most) = identical.executions.iter().max() {
        let what = format!("{} identical requests at once, executions", identical.at_once);
        let measured = format!("{most} at most in {} rounds", identical.executions.len());
        targets.push(target(
            what,
            "1",
            measured,
            identical.executions.iter().all(|count| *count == 1),
        ));
    }
    targets
}

fn cpu(row: &Row) -> Target {
    let what = format!(
        "CPU of all mesh processes per request, {}, {} connections",
        row.kind.name(),
        row.connections
    );
    let measured = row.mesh_cpu_us();
    target(
        what,
        format!("≤ {CPU_US_MAX:.0} µs"),
        format!("{measured:.0} µs"),
        measured <= CPU_US_MAX,
    )
}

fn latency(report: &Report) -> Option<Target> {
    let (bare, queue) = (report.row(Kind::Bare, 1)?.p50_us, report.row(Kind::Queue, 1)?.p50_us);
    let mesh = report.row(Kind::Mesh, 1)?.p50_us;
    let ratio = mesh / (bare + queue);
    let what = "p50 at 1 connection over (bare axum p50 + JetStream loop p50)";
    let measured = format!("{ratio:.2} ({mesh:.0} µs over {bare:.0} + {queue:.0} µs)");
    Some(target(
        what,
        format!("≤ {LATENCY_RATIO_MAX}"),
        measured,
        ratio <= LATENCY_RATIO_MAX,
    ))
}

fn throughput(report: &Report) -> Option<Target> {
    let rows = report
        .rows
        .iter()
        .filter(|row| row.kind == Kind::MeshLimited || row.kind == Kind::Mesh);
    let best = rows.max_by(|one, other| one.per_second.total_cmp(&other.per_second))?;
    let what = format!("requests/s on {} cores, load generator included", report.cores);
    let measured = format!(
        "{:.0} ({}, {} connections)",
        best.per_second,
        best.kind.name(),
        best.connections
    );
    Some(target(
        what,
        format!("≥ {PER_SECOND_MIN:.0}"),
        measured,
        best.per_second >= PER_SECOND_MIN,
    ))
}

fn cached(report: &Report, hit: &Row) -> Option<Target> {
    let bare = report.row(Kind::Bare, hit.connections)?;
    let ratio = hit.per_second / bare.per_second;
    let what = format!(
        "cached hit over bare axum, requests/s at {} connections",
        hit.connections
    );
    let measured = format!("{ratio:.2} ({:.0} over {:.0})", hit.per_second, bare.per_second);
    Some(target(
        what,
        format!("≥ {HIT_RATIO_MIN}"),
        measured,
        ratio >= HIT_RATIO_MIN,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{report, row};

    #[test]
    fn each_target_is_judged_by_its_own_rows() {
        let mut report = report(vec![
            row(Kind::Bare, 1, 10_000.0, 50.0),
            row(Kind::Queue, 1, 5_000.0, 150.0),
            row(Kind::Mesh, 1, 3_000.0, 290.0),
            row(Kind::Mesh, 64, 9_000.0, 4_000.0),
            row(Kind::Hit, 1, 7_100.0, 60.0),
        ]);
        let met = |report: &Report| targets(report).iter().map(|target| target.met).collect::<Vec<bool>>();
        // CPU (10 µs in the sample rows), latency (290 over 200), throughput, hit, memory, executions.
        assert_eq!(met(&report), [true; 6]);
        report.rows[2].p50_us = 301.0;
        report.rows[3].per_second = 7_999.0;
        report.rows[4].per_second = 6_900.0;
        report.rows[3].cpu_us = vec![
            ("gateway".to_owned(), 60.5),
            ("nats-server".to_owned(), 60.5),
            ("loadgen".to_owned(), 1.0),
        ];
        report.idle.gateway_rss_bytes = 40_000_001;
        report.identical.executions = vec![1, 2];
        assert_eq!(met(&report), [false; 6]);
    }
}
