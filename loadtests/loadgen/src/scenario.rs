//! What a benchmark runs. Input: a scenario file. Output: checked figures.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

const FULL: &str = include_str!("../../scenarios/bench.toml");
const QUICK: &str = include_str!("../../scenarios/quick.toml");

/// Repetitions, windows and connections; loadtests/scenarios/bench.toml explains each key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// How often every row is measured.
    pub repetitions: u32,
    /// Load before the window.
    pub warm_up_ms: u64,
    /// The window.
    pub window_ms: u64,
    /// Connections of the rows that compute.
    pub connections: Vec<usize>,
    /// Connections of the rows that hit the cache.
    pub hit_connections: Vec<usize>,
    /// Identical requests at once.
    pub identical: usize,
    /// Rounds of them.
    pub identical_rounds: u32,
    /// CPU cores that everything runs on.
    pub cores: usize,
}

impl Scenario {
    /// The published one.
    ///
    /// # Errors
    /// Never, as long as the compiled-in file is sound; a test sees to that.
    pub fn full() -> anyhow::Result<Self> {
        Self::parse(FULL)
    }

    /// The one for development.
    ///
    /// # Errors
    /// As [`Scenario::full`].
    pub fn quick() -> anyhow::Result<Self> {
        Self::parse(QUICK)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or makes no sense.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is no scenario", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let scenario: Self = toml::from_str(text)?;
        let all = scenario.connections.iter().chain(&scenario.hit_connections);
        ensure!(
            all.clone().all(|count| (1..=4_096).contains(count)),
            "connections are 1 to 4096"
        );
        ensure!(
            scenario.repetitions > 0 && scenario.window_ms > 0,
            "repetitions and window_ms are 1 or more"
        );
        ensure!((1..=4_096).contains(&scenario.identical), "identical is 1 to 4096");
        ensure!(scenario.cores > 0, "cores is 1 or more");
        Ok(scenario)
    }

    /// Warm-up and window.
    #[must_use]
    pub fn times(&self) -> Times {
        Times {
            warm_up: Duration::from_millis(self.warm_up_ms),
            window: Duration::from_millis(self.window_ms),
        }
    }
}

/// How long load runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Before it counts.
    pub warm_up: Duration,
    /// While it counts.
    pub window: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiled_in_scenarios_are_sound_and_nonsense_is_refused() {
        assert_eq!(Scenario::full().unwrap().connections, [1, 16, 64, 256]);
        assert_eq!(Scenario::quick().unwrap().cores, 2);
        assert!(Scenario::parse(&FULL.replace("[1, 16, 64, 256]", "[0]")).is_err());
        assert!(Scenario::parse(&format!("{FULL}\nother = 1\n")).is_err());
    }
}
