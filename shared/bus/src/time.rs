//! Broker times. Input: RFC 3339 text in UTC, or nanoseconds since 1970. Output: `SystemTime`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Reads `2026-11-21T14:35:34.293859241Z`; years before 1970 (the broker's "never" is year 1) give `None`.
pub(crate) fn parse_utc(text: &str) -> Option<SystemTime> {
    let text = text.strip_suffix('Z')?;
    let (date, clock) = text.split_once('T')?;
    let mut date = date.split('-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let mut clock = clock.split(':').map(str::parse::<i64>);
    let (hour, minute, second) = (clock.next()?.ok()?, clock.next()?.ok()?, clock.next()?.ok()?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year < 1970 {
        return None;
    }
    let seconds =
        u64::try_from(days_since_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second).ok()?;
    // Nine digits of nanoseconds, right-padded.
    let nanos = if fraction.is_empty() {
        0
    } else {
        format!("{fraction:0<9}").get(..9)?.parse().ok()?
    };
    Some(UNIX_EPOCH + Duration::new(seconds, nanos))
}

/// Nanoseconds since 1970, as an ack subject has them.
pub(crate) fn from_nanos(nanos: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanos)
}

/// Days of the civil calendar since 1970 (March-based years, after Howard Hinnant's `days_from_civil`).
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broker_times_are_read() {
        let nanos = |text| {
            parse_utc(text)?
                .duration_since(UNIX_EPOCH)
                .ok()
                .map(|since| since.as_nanos())
        };
        assert_eq!(nanos("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(nanos("2000-03-01T00:00:00.5Z"), Some(951_868_800_500_000_000));
        assert_eq!(nanos("2026-11-21T14:35:34.293859241Z"), Some(1_795_271_734_293_859_241));
        assert_eq!(nanos("0001-01-01T00:00:00Z"), None);
        assert_eq!(nanos("yesterday"), None);
    }
}
