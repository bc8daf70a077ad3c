//! Configuration of the cache. Input: `default.toml` and its layers. Output: typed, checked values.

use std::time::Duration;

use bus::BusConfig;
use schemas::cache::SHARDS;
use serde::{Deserialize, Deserializer, de};

/// Most fingerprints in one message: 8 bytes each, well below the largest message.
const MAX_INDEX_FINGERPRINTS: usize = 60_000;

/// All sections; `default.toml` explains each key.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Connection to the broker.
    pub bus: BusConfig,
    /// What this instance serves.
    pub shards: ShardsConfig,
    /// Limits of what is kept.
    pub store: StoreConfig,
    /// How gateways are told.
    pub announce: AnnounceConfig,
}

/// What this instance serves.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardsConfig {
    /// Shards in order, each once.
    #[serde(deserialize_with = "shards")]
    pub serve: Vec<u32>,
}

/// Limits of what is kept.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// Bytes of all answers together.
    pub max_bytes: u64,
    /// Largest share of them for one tenant, 0 to 1.
    pub max_tenant_share: f64,
    /// Largest answer.
    pub max_body_bytes: u32,
    /// Longest time an answer is kept.
    pub max_ttl_ms: u64,
    /// Time between rounds that free what has expired.
    pub sweep_interval_ms: u64,
}

/// How gateways are told.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnnounceConfig {
    /// Longest wait for more to tell.
    pub interval_ms: u64,
    /// Fingerprints that are told at once without more wait.
    pub max_fingerprints: usize,
    /// Fingerprints that may wait.
    pub queue: usize,
    /// Newest fingerprints that are remembered for the index.
    pub index_fingerprints: usize,
}

/// Why a configuration cannot work.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A number is outside its range.
    #[error("{key} must be {expected}")]
    Range {
        /// Which key.
        key: &'static str,
        /// What it must be.
        expected: &'static str,
    },
}

impl Config {
    /// Refuses what parses but cannot work.
    ///
    /// # Errors
    /// [`ConfigError`] names the key and its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let (store, announce) = (&self.store, &self.announce);
        let index = 1..=MAX_INDEX_FINGERPRINTS;
        let checks = [
            (store.max_bytes > 0, "store.max_bytes", "at least 1"),
            (
                store.max_tenant_share > 0.0 && store.max_tenant_share <= 1.0,
                "store.max_tenant_share",
                "above 0 and at most 1",
            ),
            (store.max_ttl_ms > 0, "store.max_ttl_ms", "at least 1"),
            (store.sweep_interval_ms > 0, "store.sweep_interval_ms", "at least 1"),
            (
                index.contains(&announce.max_fingerprints),
                "announce.max_fingerprints",
                "1 to 60000",
            ),
            (announce.queue > 0, "announce.queue", "at least 1"),
            (
                index.contains(&announce.index_fingerprints),
                "announce.index_fingerprints",
                "1 to 60000",
            ),
        ];
        match checks.into_iter().find(|(good, _, _)| !good) {
            Some((_, key, expected)) => Err(ConfigError::Range { key, expected }),
            None => Ok(()),
        }
    }
}

impl StoreConfig {
    /// Bytes that one tenant may take.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a share of a byte count: the error is below a byte in 2^53, and the value is not negative"
    )]
    pub fn max_tenant_bytes(&self) -> u64 {
        (self.max_bytes as f64 * self.max_tenant_share) as u64
    }

    /// Time between rounds that free what has expired.
    #[must_use]
    pub fn sweep_interval(&self) -> Duration {
        Duration::from_millis(self.sweep_interval_ms)
    }
}

fn shards<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_shards(&text).ok_or_else(|| {
        de::Error::custom(format!(
            "{text:?} is no list of shards: expected numbers and ranges of 0 to {}, such as \"0-3,8\"",
            SHARDS - 1
        ))
    })
}

/// `0-3,8` → 0, 1, 2, 3, 8.
fn parse_shards(text: &str) -> Option<Vec<u32>> {
    let mut found = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= SHARDS {
            return None;
        }
        found.extend(first..=last);
    }
    found.sort_unstable();
    found.dedup();
    Some(found)
}

#[cfg(test)]
mod tests {
    use process::Layers;

    use super::*;

    #[test]
    fn lists_of_shards() {
        assert_eq!(parse_shards("0-15"), Some((0..16).collect()));
        assert_eq!(parse_shards("8, 0-2,1-3"), Some(vec![0, 1, 2, 3, 8]));
        for bad in ["", "16", "3-1", "0-16", "a", "1,,2", "-1", "1-"] {
            assert_eq!(parse_shards(bad), None, "{bad}");
        }
    }

    fn load(key: &str, value: impl Into<String>) -> Result<Config, String> {
        let assignment = format!("{key}={}", value.into());
        let layers = Layers::new().assign(&assignment).unwrap();
        let loaded = layers.load::<crate::Cache>().map_err(|error| format!("{error:?}"))?;
        let config = loaded.service;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn the_defaults_load_and_bad_values_name_their_key() {
        let config = load("shards.serve", "0-3").unwrap();
        assert_eq!(config.shards.serve, [0, 1, 2, 3]);
        assert_eq!(config.store.max_tenant_bytes(), 134_217_728);
        for (key, value) in [
            ("shards.serve", "16"),
            ("store.max_bytes", "0"),
            ("store.max_tenant_share", "0.0"),
            ("store.max_tenant_share", "1.5"),
            ("announce.index_fingerprints", "60001"),
        ] {
            let error = load(key, value).unwrap_err();
            let name = key.split('.').next_back().unwrap();
            assert!(
                error.contains(name) || error.contains("list of shards"),
                "{key}: {error}"
            );
        }
    }
}
