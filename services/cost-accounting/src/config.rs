//! Settings of cost-accounting. Input: `default.toml` and what is laid over it. Output: typed sections; the reasons of
//! the defaults stand in the file.

use std::path::PathBuf;

use bus::BusConfig;
use serde::Deserialize;

/// All settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The broker.
    pub bus: BusConfig,
    /// The file.
    pub ledger: LedgerConfig,
    /// What is charged.
    pub prices: PricesConfig,
    /// How often is booked.
    pub booking: BookingConfig,
}

/// The ledger's file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerConfig {
    /// Its path.
    pub path: PathBuf,
}

/// The price file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PricesConfig {
    /// Its path, empty for the compiled-in one.
    pub path: PathBuf,
}

/// How often is booked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BookingConfig {
    /// Facts are gathered this long, in milliseconds.
    pub max_delay_ms: u64,
    /// Facts after which a transaction does not wait for more.
    pub max_events: usize,
    /// Time between two questions how far the stream goes, in milliseconds.
    pub check_ms: u64,
}

#[cfg(test)]
mod tests {
    use process::Layers;

    use crate::CostAccounting;

    #[test]
    fn the_defaults_are_complete_and_strict() {
        let loaded = Layers::new().load::<CostAccounting>().unwrap();
        assert!(loaded.service.prices.path.as_os_str().is_empty());
        let unknown = Layers::new().assign("booking.max_delay=1").unwrap();
        assert!(unknown.load::<CostAccounting>().is_err());
    }
}
