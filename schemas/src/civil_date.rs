//! Dates of the calendar in UTC. Input: days since 1970-01-01, or a year, month and day. Output: the other of the two, and
//! the date as RFC 3339 writes it.
//!
//! After Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms" (`civil_from_days`, `days_from_civil`),
//! <https://howardhinnant.github.io/date_algorithms.html>.

use std::fmt;

/// Days of 400 years, after which the calendar repeats.
const DAYS_PER_ERA: i64 = 146_097;
/// Days from 0000-03-01, where the counting of the algorithm begins, to 1970-01-01.
const EPOCH: i64 = 719_468;
/// 0000-01-01 and 9999-12-31: RFC 3339 writes four digits of a year.
const FIRST_AND_LAST_DAY: (i64, i64) = (-719_528, 2_932_896);

/// A date of the Gregorian calendar, of the years 0 to 9999; always one that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CivilDate {
    year: i64,
    month: i64,
    day: i64,
}

impl CivilDate {
    /// The date with these numbers; month and day begin with 1. `None` if the calendar has no such date.
    #[must_use]
    pub fn new(year: u16, month: u8, day: u8) -> Option<Self> {
        let date = Self {
            year: i64::from(year),
            month: i64::from(month),
            day: i64::from(day),
        };
        // Numbers that are no date are counted as some other day, which does not come back as they are.
        (Self::from_days(date.days()) == date).then_some(date)
    }

    /// The date so many days after 1970-01-01; days beyond the years 0 to 9999 are the first or the last of them.
    #[must_use]
    pub fn from_days(days: i64) -> Self {
        let (first, last) = FIRST_AND_LAST_DAY;
        let shifted = days.clamp(first, last) + EPOCH;
        let (era, day_of_era) = (shifted.div_euclid(DAYS_PER_ERA), shifted.rem_euclid(DAYS_PER_ERA));
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = (month_from_march + 2) % 12 + 1;
        // Years begin in March, so that the leap day is the last one.
        let year = era * 400 + year_of_era + i64::from(month <= 2);
        Self { year, month, day }
    }

    /// Days since 1970-01-01.
    #[must_use]
    pub fn days(self) -> i64 {
        let Self { year, month, day } = self;
        let year = year - i64::from(month <= 2);
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        era * DAYS_PER_ERA + day_of_era - EPOCH
    }
}

/// As RFC 3339 writes it: `2026-03-01`.
impl fmt::Display for CivilDate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { year, month, day } = self;
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (days, text) in [
            (-719_528, "0000-01-01"),
            (-719_468, "0000-03-01"),
            (-1, "1969-12-31"),
            (0, "1970-01-01"),
            (11_015, "2000-02-28"),
            (11_016, "2000-02-29"),
            (11_017, "2000-03-01"),
            (19_783, "2024-03-01"),
            (20_088, "2024-12-31"),
            (20_778, "2026-11-21"),
            (47_541, "2100-03-01"),
            (2_932_896, "9999-12-31"),
        ] {
            let date = CivilDate::from_days(days);
            assert_eq!((date.to_string().as_str(), date.days()), (text, days));
        }
        assert_eq!(CivilDate::from_days(i64::MIN), CivilDate::from_days(-719_528));
        assert_eq!(CivilDate::from_days(i64::MAX), CivilDate::from_days(2_932_896));
    }

    #[test]
    fn what_no_calendar_has_is_no_date() {
        assert_eq!(CivilDate::new(2000, 2, 29).map(CivilDate::days), Some(11_016));
        for (year, month, day) in [
            (1900, 2, 29),
            (2023, 2, 29),
            (2024, 2, 30),
            (2024, 4, 31),
            (2024, 12, 32),
            (2024, 1, 0),
            (2024, 0, 1),
            (2024, 13, 1),
            (2024, 255, 255),
            (10_000, 1, 1),
            (u16::MAX, 12, 31),
        ] {
            assert_eq!(CivilDate::new(year, month, day), None, "{year}-{month}-{day}");
        }
    }

    proptest! {
        #[test]
        fn days_come_back(days in FIRST_AND_LAST_DAY.0..=FIRST_AND_LAST_DAY.1) {
            let date = CivilDate::from_days(days);
            prop_assert_eq!(date.days(), days);
            let CivilDate { year, month, day } = date;
            let numbers = (year.try_into().unwrap(), month.try_into().unwrap(), day.try_into().unwrap());
            prop_assert_eq!(CivilDate::new(numbers.0, numbers.1, numbers.2), Some(date));
        }

        #[test]
        fn later_days_are_later_dates(days in FIRST_AND_LAST_DAY.0..FIRST_AND_LAST_DAY.1) {
            let (date, next) = (CivilDate::from_days(days), CivilDate::from_days(days + 1));
            prop_assert!(date < next);
            // A month begins with its first day, and nothing is left out.
            prop_assert!(next.day == date.day + 1 || next.day == 1 && date.day >= 28);
        }

        #[test]
        fn what_is_a_date_comes_back(year in 0..12_000_u16, month in 0..=20_u8, day in 0..=40_u8) {
            if let Some(date) = CivilDate::new(year, month, day) {
                prop_assert_eq!(CivilDate::from_days(date.days()), date);
                prop_assert!(year <= 9_999 && (1..=12).contains(&month) && (1..=31).contains(&day));
            }
        }
    }
}
