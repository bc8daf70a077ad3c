//! The price file. Input: TOML text. Output: checked price rows, and the rates of one model on one device at a time.

use std::path::Path;

use schemas::civil_date::CivilDate;
use schemas::cost::DeviceTerms;
use schemas::money::{NANO_PER_USD, NanoUsd, Price};
use schemas::policy::any_glob_matches;
use serde::Deserialize;
use toml::value::{Datetime, Offset};

/// The price file that is compiled in.
pub const DEFAULT_PRICES: &str = include_str!("../prices.toml");

const TOKENS_PER_PRICE: i64 = 1_000_000;
const NANOSECONDS_PER_HOUR: i64 = 3_600_000_000_000;
/// Hexadecimal digits of the file's hash that are kept with every row: 64 bits tell a company's price files apart.
const VERSION_DIGITS: usize = 16;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Meter {
    /// Tokens in.
    InputTokens,
    /// Tokens out.
    OutputTokens,
    /// Busy time of the device.
    Compute,
}

impl Meter {
    fn units_per_price(self) -> i64 {
        match self {
            Self::InputTokens | Self::OutputTokens => TOKENS_PER_PRICE,
            Self::Compute => NANOSECONDS_PER_HOUR,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    cached_fraction: Option<String>,
    #[serde(default)]
    price: Vec<toml::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RowText {
    model: String,
    device: Option<String>,
    terms: Option<TermsText>,
    meter: Meter,
    usd_per_million_tokens: Option<String>,
    usd_per_compute_hour: Option<String>,
    valid_from: toml::Value,
    #[serde(rename = "source")]
    _source: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TermsText {
    OnDemand,
    Spot,
}

/// Why a price file was refused.
#[derive(Debug, thiserror::Error)]
pub enum PricesError {
    /// It cannot be read.
    #[error("cannot read price file {path}")]
    Read {
        /// Its path.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is not TOML, or has a key that no price file has.
    #[error("price file is not valid TOML with `cached_fraction` and `[[price]]`")]
    Toml(#[source] Box<toml::de::Error>),
    /// A field of a row, or of the file when the row is 0, is wrong.
    #[error("price row {row}, field `{field}`: {reason}")]
    Field {
        /// The row, from 1; 0 is the file itself.
        row: usize,
        /// The field.
        field: String,
        /// What is wrong.
        reason: String,
    },
}

/// One checked row.
#[derive(Debug, Clone)]
struct Row {
    model: String,
    device: Option<String>,
    terms: Option<TermsText>,
    meter: Meter,
    valid_from_ms: u64,
    price: Price,
}

/// How closely a row names what it prices; greater wins.
type Closeness = (bool, usize, bool, bool, usize, bool);

impl Row {
    fn matches(&self, model: &str, device: &str, terms: DeviceTerms) -> bool {
        // Terms that are newer than this program are priced as on-demand.
        let terms = match terms {
            DeviceTerms::Spot => TermsText::Spot,
            DeviceTerms::OnDemand | DeviceTerms::Unknown => TermsText::OnDemand,
        };
        glob_matches(&self.model, model)
            && self.device.as_ref().is_none_or(|glob| glob_matches(glob, device))
            && self.terms.is_none_or(|wanted| wanted == terms)
    }

    fn closeness(&self) -> Closeness {
        let (model_exact, model_letters) = glob_closeness(&self.model);
        let device = self.device.as_deref().map(glob_closeness);
        let (device_exact, device_letters) = device.unwrap_or_default();
        (
            model_exact,
            model_letters,
            device.is_some(),
            device_exact,
            device_letters,
            self.terms.is_some(),
        )
    }
}

fn glob_matches(glob: &String, text: &str) -> bool {
    any_glob_matches(std::slice::from_ref(glob), text)
}

fn glob_closeness(glob: &str) -> (bool, usize) {
    (
        !glob.contains('*'),
        glob.chars().filter(|letter| *letter != '*').count(),
    )
}

/// A checked price file.
#[derive(Debug, Clone)]
pub struct Prices {
    // Closest first, then latest first.
    rows: Vec<Row>,
    cached_fraction: Price,
    version: String,
}

impl Prices {
    /// The file at a path, or the compiled-in one when the path is empty.
    ///
    /// # Errors
    /// When it cannot be read or a row is wrong.
    pub fn load(path: &Path) -> Result<Self, PricesError> {
        if path.as_os_str().is_empty() {
            return Self::parse(DEFAULT_PRICES);
        }
        let text = std::fs::read_to_string(path).map_err(|source| PricesError::Read {
            path: path.display().to_string(),
            source,
        })?;
        Self::parse(&text)
    }

    /// A price file from its text.
    ///
    /// # Errors
    /// The first row and field that is wrong.
    pub fn parse(text: &str) -> Result<Self, PricesError> {
        let file: FileText = toml::from_str(text).map_err(|error| PricesError::Toml(Box::new(error)))?;
        if file.price.is_empty() {
            return Err(field(0, "price", "there is no row"));
        }
        let mut rows = Vec::with_capacity(file.price.len());
        for (index, value) in file.price.into_iter().enumerate() {
            rows.push(parse_row(index + 1, value)?);
        }
        refuse_twins(&rows)?;
        rows.sort_by_key(|row| std::cmp::Reverse((row.closeness(), row.valid_from_ms)));
        let mut version = blake3::hash(text.as_bytes()).to_hex().to_string();
        version.truncate(VERSION_DIGITS);
        Ok(Self {
            rows,
            cached_fraction: parse_fraction(file.cached_fraction.as_deref().unwrap_or("0"))?,
            version,
        })
    }

    /// Names the file's content; stands in every row of the journal.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What a cached answer costs whose full price is given.
    #[must_use]
    pub fn cached_charge(&self, full: NanoUsd) -> NanoUsd {
        self.cached_fraction.charge(u64::try_from(full.0).unwrap_or(0))
    }

    /// Whether cached answers are free.
    #[must_use]
    pub fn cached_is_free(&self) -> bool {
        self.cached_charge(NanoUsd(i64::MAX)).0 == 0
    }

    /// Every rate that a model on a device ever has; small, worth remembering.
    #[must_use]
    pub fn rates(&self, model: &str, device: &str, terms: DeviceTerms) -> Rates {
        let of = |meter: Meter| {
            let rows = self.rows.iter().filter(|row| row.meter == meter);
            rows.filter(|row| row.matches(model, device, terms))
                .map(|row| (row.valid_from_ms, row.price))
                .collect()
        };
        Rates {
            input: of(Meter::InputTokens),
            output: of(Meter::OutputTokens),
            compute: of(Meter::Compute),
        }
    }
}

/// The rates of one model on one device, closest row first.
#[derive(Debug, Clone, Default)]
pub struct Rates {
    input: Vec<(u64, Price)>,
    output: Vec<(u64, Price)>,
    compute: Vec<(u64, Price)>,
}

impl Rates {
    /// The price of a meter at a time (Unix milliseconds), `None` when no row has begun.
    #[must_use]
    pub fn at(&self, meter: Meter, at_ms: u64) -> Option<Price> {
        let rows = match meter {
            Meter::InputTokens => &self.input,
            Meter::OutputTokens => &self.output,
            Meter::Compute => &self.compute,
        };
        let begun = rows.iter().find(|(valid_from_ms, _)| *valid_from_ms <= at_ms);
        begun.map(|(_, price)| *price)
    }
}

fn field(row: usize, field: &str, reason: impl ToString) -> PricesError {
    PricesError::Field {
        row,
        field: field.to_owned(),
        reason: reason.to_string(),
    }
}

fn parse_row(row: usize, value: toml::Value) -> Result<Row, PricesError> {
    let text: RowText = serde_path_to_error::deserialize(value).map_err(|error| {
        // A field that is missing or unknown has no path of its own; the reason names it.
        let path = error.path().to_string();
        field(row, &path, error.into_inner().message())
    })?;
    if text.model.is_empty() {
        return Err(field(row, "model", "is empty; `*` stands for every model"));
    }
    if text.device.as_ref().is_some_and(String::is_empty) {
        return Err(field(row, "device", "is empty; leave it out for every device"));
    }
    let (wanted, name, other, other_name) = match text.meter {
        Meter::Compute => (
            text.usd_per_compute_hour,
            "usd_per_compute_hour",
            text.usd_per_million_tokens,
            "usd_per_million_tokens",
        ),
        Meter::InputTokens | Meter::OutputTokens => (
            text.usd_per_million_tokens,
            "usd_per_million_tokens",
            text.usd_per_compute_hour,
            "usd_per_compute_hour",
        ),
    };
    if other.is_some() {
        return Err(field(row, other_name, "does not go with this meter"));
    }
    let usd = wanted.ok_or_else(|| field(row, name, "is missing"))?;
    Ok(Row {
        price: Price::parse(&usd, text.meter.units_per_price()).map_err(|error| field(row, name, error))?,
        valid_from_ms: parse_valid_from(row, &text.valid_from)?,
        model: text.model,
        device: text.device,
        terms: text.terms,
        meter: text.meter,
    })
}

fn parse_fraction(text: &str) -> Result<Price, PricesError> {
    // A fraction of a nano-dollar amount: dollars per nano-dollars in a dollar.
    let fraction = Price::parse(text, NANO_PER_USD)
        .map_err(|_| field(0, "cached_fraction", format!("{text:?} is not a decimal")))?;
    if fraction.charge(NANO_PER_USD.unsigned_abs()).0 > NANO_PER_USD {
        return Err(field(0, "cached_fraction", "is greater than 1"));
    }
    Ok(fraction)
}

fn parse_valid_from(row: usize, value: &toml::Value) -> Result<u64, PricesError> {
    let refuse = || {
        let expected = "is not a date such as 2026-01-01 or 2026-01-01T00:00:00Z, 1970 or later";
        field(row, "valid_from", expected)
    };
    let parsed = match value {
        toml::Value::Datetime(datetime) => *datetime,
        toml::Value::String(text) => text.parse::<Datetime>().map_err(|_| refuse())?,
        _ => return Err(refuse()),
    };
    unix_ms(&parsed).ok_or_else(refuse)
}

/// Unix milliseconds of a date (midnight UTC) or of a time with its offset; a time without one is nobody's.
fn unix_ms(datetime: &Datetime) -> Option<u64> {
    let date = datetime.date?;
    let offset_minutes = match (datetime.time, datetime.offset) {
        (None, None) | (Some(_), Some(Offset::Z)) => 0,
        (Some(_), Some(Offset::Custom { minutes })) => i64::from(minutes),
        _ => return None,
    };
    let seconds_of_day = datetime.time.map_or(0, |time| {
        let minutes = i64::from(time.hour) * 60 + i64::from(time.minute);
        minutes * 60 + i64::from(time.second.unwrap_or(0))
    });
    let days = CivilDate::new(date.year, date.month, date.day)?.days();
    let seconds = days * 86_400 + seconds_of_day - offset_minutes * 60;
    u64::try_from(seconds * 1_000).ok()
}

/// Two rows that would price the same thing from the same moment.
fn refuse_twins(rows: &[Row]) -> Result<(), PricesError> {
    for (index, row) in rows.iter().enumerate() {
        let twin = rows[..index].iter().position(|earlier| {
            earlier.model == row.model
                && earlier.device == row.device
                && earlier.terms == row.terms
                && earlier.meter == row.meter
                && earlier.valid_from_ms == row.valid_from_ms
        });
        if let Some(twin) = twin {
            let reason = format!("the same model, device, terms, meter and date as row {}", twin + 1);
            return Err(field(index + 1, "valid_from", reason));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 86_400_000;

    fn row(body: &str) -> String {
        format!("[[price]]\nmeter = \"input_tokens\"\nvalid_from = 1970-01-01\n{body}\n")
    }

    fn input_price(prices: &Prices, model: &str, device: &str, at_ms: u64) -> Option<i64> {
        let rates = prices.rates(model, device, DeviceTerms::Unknown);
        Some(rates.at(Meter::InputTokens, at_ms)?.charge(1_000_000).0)
    }

    #[test]
    fn the_compiled_in_file_is_valid() {
        let prices = Prices::load(Path::new("")).unwrap();
        assert_eq!(prices.version().len(), VERSION_DIGITS);
        assert!(prices.cached_is_free());
        assert_eq!(input_price(&prices, "any", "cpu", 1_800_000_000_000), Some(20_000_000));
        assert_eq!(input_price(&prices, "any", "cpu", 0), None, "before the first date");
    }

    #[test]
    fn the_closest_row_wins_then_the_latest_that_has_begun() {
        let usd = |usd: &str| format!("usd_per_million_tokens = \"{usd}\"");
        let text = [
            row(&format!("model = \"*\"\n{}", usd("1"))),
            row(&format!("model = \"m*\"\n{}", usd("2"))),
            row(&format!("model = \"m*\"\n{}", usd("3"))).replace("1970-01-01", "1970-01-03"),
            row(&format!("model = \"m*\"\n{}", usd("4"))).replace("1970-01-01", "\"1970-01-05T01:00:00+01:00\""),
            row(&format!("model = \"m1\"\ndevice = \"*H100*\"\n{}", usd("5"))),
            row(&format!(
                "model = \"m1\"\ndevice = \"*H100*\"\nterms = \"on_demand\"\n{}",
                usd("6")
            )),
            row(&format!(
                "model = \"m1\"\ndevice = \"*H100*\"\nterms = \"spot\"\n{}",
                usd("7")
            )),
        ];
        let prices = Prices::parse(&text.concat()).unwrap();
        let usd =
            |model, device, day| input_price(&prices, model, device, day * DAY_MS).map(|nano| nano / NANO_PER_USD);
        assert_eq!(usd("x", "cpu", 9), Some(1));
        assert_eq!(usd("m2", "cpu", 1), Some(2));
        assert_eq!(usd("m2", "cpu", 2), Some(3), "the first moment counts");
        assert_eq!(usd("m2", "cpu", 4), Some(4), "an offset is taken off");
        assert_eq!(usd("m1", "cpu", 4), Some(4), "rows of another device do not count");
        assert_eq!(usd("m1", "NVIDIA H100 PCIe", 4), Some(6), "unknown terms are on-demand");
        let spot = prices.rates("m1", "H100", DeviceTerms::Spot);
        assert_eq!(
            spot.at(Meter::InputTokens, 0).unwrap().charge(1_000_000).0,
            7 * NANO_PER_USD
        );
        assert!(spot.at(Meter::Compute, 0).is_none());
    }

    #[test]
    fn wrong_rows_are_named() {
        let good = "model = \"*\"\nusd_per_million_tokens = \"1\"";
        let cases = [
            (String::new(), "row 0, field `price`"),
            (row("usd_per_million_tokens = \"1\""), "missing field `model`"),
            (
                row("model = \"\"\nusd_per_million_tokens = \"1\""),
                "row 1, field `model`",
            ),
            (row(&format!("{good}\ndevice = \"\"")), "row 1, field `device`"),
            (
                row("model = \"*\""),
                "row 1, field `usd_per_million_tokens`: is missing",
            ),
            (
                row("model = \"*\"\nusd_per_million_tokens = 0.02"),
                "row 1, field `usd_per_million_tokens`",
            ),
            (
                row("model = \"*\"\nusd_per_million_tokens = \"-1\""),
                "row 1, field `usd_per_million_tokens`",
            ),
            (
                row(&format!("{good}\nusd_per_compute_hour = \"1\"")),
                "row 1, field `usd_per_compute_hour`",
            ),
            (row(&format!("{good}\nusd = \"1\"")), "unknown field `usd`"),
            (row(good).replace("1970-01-01", "\"soon\""), "row 1, field `valid_from`"),
            (
                row(good).replace("1970-01-01", "1970-01-01T00:00:00"),
                "row 1, field `valid_from`",
            ),
            (
                row(good).replace("1970-01-01", "1969-12-31"),
                "row 1, field `valid_from`",
            ),
            (row(good).replace("input_tokens", "pages"), "row 1, field `meter`"),
            (row(good).repeat(2), "row 2, field `valid_from`"),
            (
                format!("cached_fraction = \"1.1\"\n{}", row(good)),
                "row 0, field `cached_fraction`",
            ),
            (
                format!("cached_fraction = \"x\"\n{}", row(good)),
                "row 0, field `cached_fraction`",
            ),
            ("price = 3".to_owned(), "not valid TOML"),
        ];
        for (text, expected) in cases {
            let error = Prices::parse(&text).unwrap_err().to_string();
            assert!(
                error.contains(expected),
                "{error:?} should contain {expected:?}\n{text}"
            );
        }
        let missing = Prices::load(Path::new("/no/such/prices.toml")).unwrap_err();
        assert!(missing.to_string().contains("/no/such/prices.toml"));
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (date, days) in [
            ("1970-01-01", 0),
            ("2000-02-29", 11_016),
            ("2024-03-01", 19_783),
            ("2100-03-01", 47_541),
        ] {
            assert_eq!(unix_ms(&date.parse().unwrap()), Some(days * DAY_MS), "{date}");
        }
    }

    #[test]
    fn a_fraction_takes_its_share() {
        let text = format!(
            "cached_fraction = \"0.1\"\n{}",
            row("model = \"*\"\nusd_per_million_tokens = \"1\"")
        );
        let prices = Prices::parse(&text).unwrap();
        assert_eq!(prices.cached_charge(NanoUsd(1_005)), NanoUsd(100), "half to even");
        assert!(!prices.cached_is_free());
        assert_ne!(prices.version(), Prices::parse(DEFAULT_PRICES).unwrap().version());
    }
}
