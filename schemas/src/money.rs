//! Money as integers. Input: decimal price texts, counts. Output: nano-dollars, rounded half to even, once per event.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Nano-dollars in one dollar.
pub const NANO_PER_USD: i64 = 1_000_000_000;

/// An amount in nano-dollars (10⁻⁹ USD). Range ± 9.2 × 10⁹ USD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct NanoUsd(pub i64);

impl NanoUsd {
    /// Sum that stops at the ends of the range instead of wrapping.
    #[must_use]
    pub fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The amount in dollars, for JSON that people read; never used in arithmetic.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "display only; exact below 9 million dollars")]
    pub fn as_usd(self) -> f64 {
        self.0 as f64 / NANO_PER_USD as f64
    }
}

impl fmt::Display for NanoUsd {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let magnitude = self.0.unsigned_abs();
        let unit = NANO_PER_USD.unsigned_abs();
        write!(formatter, "{sign}{}.{:09}", magnitude / unit, magnitude % unit)
    }
}

/// Why a price text was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a price: expected a decimal number of dollars, 0 or more, at most {MAX_DECIMALS} decimals")]
pub struct PriceError {
    text: String,
}

const MAX_DECIMALS: usize = 9;

/// A price: dollars per `units` units, kept exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    nano_usd: i64,
    per_units: i64,
}

impl Price {
    /// A price of `usd` (decimal text) for `per_units` units, e.g. `("0.02", 1_000_000)` per million tokens.
    ///
    /// # Errors
    /// [`PriceError`] when the text is not a non-negative decimal with at most 9 decimals.
    pub fn parse(usd: &str, per_units: i64) -> Result<Self, PriceError> {
        let refuse = || PriceError {
            text: usd.chars().take(64).collect(),
        };
        let (whole, fraction) = usd.split_once('.').unwrap_or((usd, ""));
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        let bad_shape = whole.is_empty() || !digits(whole) || !digits(fraction);
        if bad_shape || fraction.len() > MAX_DECIMALS || per_units <= 0 {
            return Err(refuse());
        }
        let whole = i64::from_str(whole).map_err(|_| refuse())?;
        let fraction = i64::from_str(&format!("{fraction:0<MAX_DECIMALS$}")).map_err(|_| refuse())?;
        let nano_usd = whole
            .checked_mul(NANO_PER_USD)
            .and_then(|nano| nano.checked_add(fraction))
            .ok_or_else(refuse)?;
        Ok(Self { nano_usd, per_units })
    }

    /// What `units` cost, rounded half to even to a nano-dollar.
    #[must_use]
    pub fn charge(self, units: u64) -> NanoUsd {
        let product = i128::from(self.nano_usd) * i128::from(units);
        NanoUsd(saturate(divide_half_even(product, i128::from(self.per_units))))
    }

    /// Sum of several charges, rounded once: exact numerators are added before the division.
    #[must_use]
    pub fn charge_all(charges: &[(Self, u64)]) -> NanoUsd {
        // A common denominator of all prices; each is a small power of ten or a duration in nanoseconds.
        let denominator: i128 = charges
            .iter()
            .map(|(price, _)| i128::from(price.per_units))
            .fold(1, lcm);
        let numerator = charges.iter().fold(0_i128, |sum, (price, units)| {
            let scale = denominator / i128::from(price.per_units);
            sum.saturating_add(
                i128::from(price.nano_usd)
                    .saturating_mul(i128::from(*units))
                    .saturating_mul(scale),
            )
        });
        NanoUsd(saturate(divide_half_even(numerator, denominator)))
    }
}

fn lcm(a: i128, b: i128) -> i128 {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

fn divide_half_even(numerator: i128, denominator: i128) -> i128 {
    let quotient = numerator.div_euclid(denominator);
    let twice = numerator.rem_euclid(denominator).saturating_mul(2);
    if twice > denominator || (twice == denominator && quotient % 2 != 0) {
        quotient + 1
    } else {
        quotient
    }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn prices_are_exact() {
        let per_million = Price::parse("0.02", 1_000_000).unwrap();
        assert_eq!(per_million.charge(1), NanoUsd(20));
        assert_eq!(per_million.charge(1_000_000), NanoUsd(20_000_000));
        for bad in ["", ".5", "-1", "1e3", "0.0000000001", "1,0", "99999999999999999999"] {
            assert!(Price::parse(bad, 1).is_err(), "{bad}");
        }
        assert_eq!(NanoUsd(-1_500_000_000).to_string(), "-1.500000000");
    }

    #[test]
    fn halves_go_to_even() {
        assert_eq!(divide_half_even(5, 2), 2);
        assert_eq!(divide_half_even(7, 2), 4);
        assert_eq!(divide_half_even(-5, 2), -2);
    }

    proptest! {
        #[test]
        fn one_rounding_is_within_half_a_nano(a in 0_u64..1 << 40, b in 0_u64..1 << 40) {
            let tokens = Price::parse("0.013", 1_000_000).unwrap();
            let hours = Price::parse("3.1", 3_600_000_000_000).unwrap();
            let together = Price::charge_all(&[(tokens, a), (hours, b)]).0;
            let apart = tokens.charge(a).0 + hours.charge(b).0;
            prop_assert!((together - apart).abs() <= 1);
        }
    }
}
