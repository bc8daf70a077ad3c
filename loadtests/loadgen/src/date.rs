//! The calendar. Input: the system's clock. Output: a date in UTC for file names.

use std::time::{SystemTime, UNIX_EPOCH};

use schemas::civil_date::CivilDate;

/// `2026-03-01` of a moment, in UTC.
#[must_use]
pub fn utc_date(at: SystemTime) -> String {
    let days = at
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() / 86_400);
    CivilDate::from_days(i64::try_from(days).unwrap_or(i64::MAX)).to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn moments_have_the_date_of_their_day() {
        let date = |seconds| utc_date(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(86_399), "1970-01-01");
        assert_eq!(date(1_795_270_221), "2026-11-21");
    }
}
