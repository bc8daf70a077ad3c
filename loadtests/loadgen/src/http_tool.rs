//! `portalis-loadgen http`. Input: a running server. Output: what one window of load saw.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::json;

use crate::cli::HttpArgs;
use crate::http_load::{self, Load, Request};
use crate::probe::Probe;
use crate::scenario::Times;

/// Puts load on a server and prints what came of it.
///
/// # Errors
/// When it cannot be reached.
pub async fn run(args: HttpArgs) -> anyhow::Result<()> {
    ensure!(args.connections > 0, "--connections is 1 or more");
    let seconds = |name: &str, value: f64| {
        Duration::try_from_secs_f64(value).with_context(|| format!("--{name} {value} is no number of seconds"))
    };
    let times = Times {
        warm_up: seconds("warm-up", args.warm_up)?,
        window: seconds("duration", args.duration)?,
    };
    ensure!(!times.window.is_zero(), "--duration is above 0");
    let authority = authority(&args.url)?;
    let address = tokio::net::lookup_host(&authority)
        .await
        .with_context(|| format!("cannot find {authority}"))?;
    let address = address
        .into_iter()
        .next()
        .with_context(|| format!("{authority} has no address"))?;
    let load = Load {
        address,
        request: Request::embedding(&authority, &args.key, &args.model),
        input: args.input,
        connections: args.connections,
    };
    let run = http_load::measure(&load, times, &Probe::new(Vec::new())).await?;
    let latencies = &run.seen.latencies_ns;
    let per_second = latencies.len() as f64 / run.cost.seconds;
    let micros = |quantile: f64| latencies.value_at_quantile(quantile) as f64 / 1e3;
    if args.json {
        let report = json!({
            "requests": latencies.len(), "requests_per_second": per_second, "seconds": run.cost.seconds,
            "p50_us": micros(0.5), "p90_us": micros(0.9), "p99_us": micros(0.99), "max_us": latencies.max() as f64 / 1e3,
            "failures": run.seen.failures,
        });
        println!("{report}");
        return Ok(());
    }
    println!(
        "{} answers in {:.1} s: {per_second:.0} requests/s",
        latencies.len(),
        run.cost.seconds
    );
    println!(
        "latency p50 {:.0} us, p90 {:.0} us, p99 {:.0} us, longest {:.0} us",
        micros(0.5),
        micros(0.9),
        micros(0.99),
        latencies.max() as f64 / 1e3
    );
    for (status, count) in &run.seen.failures {
        println!("status {status}: {count} times");
    }
    Ok(())
}

/// Host and port of a base URL.
fn authority(url: &str) -> anyhow::Result<String> {
    let Some(rest) = url.strip_prefix("http://") else {
        bail!("--url {url}: only http:// is spoken here");
    };
    let authority = rest.split('/').next().unwrap_or_default();
    ensure!(!authority.is_empty(), "--url {url} names no host");
    let has_port = authority
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    Ok(if has_port {
        authority.to_owned()
    } else {
        format!("{authority}:80")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls_name_host_and_port() {
        assert_eq!(authority("http://127.0.0.1:8000/v1").unwrap(), "127.0.0.1:8000");
        assert_eq!(authority("http://mesh").unwrap(), "mesh:80");
        assert!(authority("https://mesh").is_err() && authority("http:///v1").is_err());
    }
}
