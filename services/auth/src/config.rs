//! Configuration of auth. Input: `default.toml` and what is laid over it. Output: checked settings.

use std::path::{Path, PathBuf};

use bus::BusConfig;
use schemas::identity::MAX_LIFETIME_S;
use serde::Deserialize;

/// Everything that can be set; `default.toml` says what each is for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The connection to the broker.
    pub(crate) bus: BusConfig,
    /// Where keys are kept.
    pub(crate) store: StoreConfig,
    /// How identities are signed.
    pub(crate) identity: IdentityConfig,
    /// How permits are given.
    pub(crate) permits: PermitsConfig,
    /// How requests are answered.
    pub(crate) serve: ServeConfig,
    /// What is done now and then.
    pub(crate) upkeep: UpkeepConfig,
}

/// See `[store]` in `default.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoreConfig {
    path: PathBuf,
    pub(crate) cached_keys: u64,
    pub(crate) tombstone_days: u64,
    pub(crate) page_keys: usize,
}

/// See `[identity]` in `default.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IdentityConfig {
    pub(crate) lifetime_s: u64,
    pub(crate) rotation_s: u64,
    pub(crate) cached_identities: u64,
}

/// See `[permits]` in `default.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PermitsConfig {
    pub(crate) valid_ms: u64,
}

/// See `[serve]` in `default.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServeConfig {
    pub(crate) concurrency: usize,
}

/// See `[upkeep]` in `default.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpkeepConfig {
    pub(crate) interval_ms: u64,
}

/// A setting that cannot work.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{key} = {value} is not between {least} and {most}")]
pub(crate) struct OutOfRange {
    key: &'static str,
    value: u64,
    least: u64,
    most: u64,
}

impl Config {
    /// Refuses settings that cannot work, before anything is opened.
    pub(crate) fn check(&self) -> Result<(), OutOfRange> {
        // A year: longer and the sums of times would not be worth checking.
        const YEAR_S: u64 = 366 * 86_400;
        let concurrency = self.serve.concurrency as u64;
        let page_keys = self.store.page_keys as u64;
        for (key, value, least, most) in [
            ("identity.lifetime_s", self.identity.lifetime_s, 2, MAX_LIFETIME_S),
            ("identity.rotation_s", self.identity.rotation_s, 1, YEAR_S),
            (
                "identity.cached_identities",
                self.identity.cached_identities,
                0,
                10_000_000,
            ),
            ("store.cached_keys", self.store.cached_keys, 0, 10_000_000),
            ("store.tombstone_days", self.store.tombstone_days, 1, 36_600),
            // A page of the largest keys (about 4 KiB each) stays below the largest message.
            ("store.page_keys", page_keys, 1, 1_000),
            ("permits.valid_ms", self.permits.valid_ms, 1, 60_000),
            ("serve.concurrency", concurrency, 1, 65_536),
            ("upkeep.interval_ms", self.upkeep.interval_ms, 10, 3_600_000),
        ] {
            if value < least || value > most {
                return Err(OutOfRange {
                    key,
                    value,
                    least,
                    most,
                });
            }
        }
        Ok(())
    }
}

impl StoreConfig {
    /// The database file, `None` = in memory.
    pub(crate) fn path(&self) -> Option<&Path> {
        (!self.path.as_os_str().is_empty()).then_some(self.path.as_path())
    }

    /// The pepper's file, beside the database.
    pub(crate) fn pepper_path(&self) -> Option<PathBuf> {
        self.path().map(|path| path.with_extension("pepper"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Auth;

    fn config(overrides: &[(&str, &str)]) -> Config {
        let layers = overrides.iter().fold(process::Layers::new(), |layers, (key, value)| {
            layers.assign(&format!("{key}={value}")).unwrap()
        });
        layers.load::<Auth>().unwrap().service
    }

    #[test]
    fn defaults_work_and_nonsense_is_refused() {
        let defaults = config(&[]);
        assert_eq!(defaults.check(), Ok(()));
        assert_eq!(
            defaults.store.pepper_path().unwrap(),
            Path::new(".portalis/auth.pepper")
        );
        assert_eq!(config(&[("store.path", "")]).store.path(), None);
        let long = config(&[("identity.lifetime_s", "61")]).check();
        assert_eq!(
            long.unwrap_err().to_string(),
            "identity.lifetime_s = 61 is not between 2 and 60"
        );
        assert!(config(&[("serve.concurrency", "0")]).check().is_err());
    }
}
