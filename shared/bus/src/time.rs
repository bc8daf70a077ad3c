//! Broker times. Input: RFC 3339 text in UTC, or nanoseconds since 1970. Output: `SystemTime`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use schemas::civil_date::CivilDate;

/// Reads `2026-11-21T14:35:34.293859241Z`; years before 1970 (the broker's "never" is year 1) give `None`.
pub(crate) fn parse_utc(text: &str) -> Option<SystemTime> {
    let text = text.strip_suffix('Z')?;
    let (date, clock) = text.split_once('T')?;
    let mut date = date.splitn(3, '-');
    let (year, month, day) = (date.next()?, date.next()?, date.next()?);
    let date = CivilDate::new(year.parse().ok()?, month.parse().ok()?, day.parse().ok()?)?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let mut clock = clock.split(':').map(str::parse::<i64>);
    let (hour, minute, second) = (clock.next()?.ok()?, clock.next()?.ok()?, clock.next()?.ok()?);
    let seconds = u64::try_from(date.days() * 86_400 + hour * 3_600 + minute * 60 + second).ok()?;
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
