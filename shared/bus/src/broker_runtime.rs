//! How a nats-server of our own is run. Input: the machine's cores. Output: settings of its Go runtime, as environment.

/// Garbage may grow to four times what is live before it is collected: the broker's messages live for milliseconds.
const GARBAGE_PERCENT: &str = "400";
/// Above this much memory it is collected as often as need be; full work streams live below it.
const SOFT_MEMORY_LIMIT: &str = "1GiB";

/// The environment for a nats-server that shares a machine of so many cores with the services: half of them, because
/// with all of them its threads wake each other more often than they work, and rarer garbage collection. Measured: ADR 6.
#[must_use]
pub fn broker_environment(cores: usize) -> [(&'static str, String); 3] {
    [
        ("GOMAXPROCS", (cores / 2).max(1).to_string()),
        ("GOGC", GARBAGE_PERCENT.to_owned()),
        ("GOMEMLIMIT", SOFT_MEMORY_LIMIT.to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broker_gets_half_the_cores_and_at_least_one() {
        let cores = |of| broker_environment(of)[0].1.clone();
        assert_eq!(
            [cores(1), cores(2), cores(3), cores(16)],
            ["1", "1", "1", "8"].map(str::to_owned)
        );
    }
}
