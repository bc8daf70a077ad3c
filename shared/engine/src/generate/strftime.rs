//! Dates for chat templates that ask for them; input: a `strftime` format and seconds since 1970, output: the text, in UTC and in English.
//!
//! The conversion is done here because a template needs twenty lines of it and no more: the engine has no other use for a calendar.

use std::fmt::Write as _;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];
const SECONDS_PER_DAY: u64 = 86_400;

/// A conversion that is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("strftime conversion %{0} is not known")]
pub(super) struct UnknownConversion(char);

/// A moment, taken apart.
struct Moment {
    year: u64,
    /// From 0.
    month: usize,
    day: u64,
    /// From 1.
    day_of_year: u64,
    /// From Sunday.
    weekday: usize,
    second_of_day: u64,
}

impl Moment {
    /// After Howard Hinnant's `civil_from_days`: years begin in March, so that the leap day is the last one.
    fn at(unix_s: u64) -> Self {
        let days = unix_s / SECONDS_PER_DAY;
        // Days since 0000-03-01; 146,097 days are 400 years.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_march_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_march_year + 2) / 153;
        let month = ((march_month + 2) % 12) as usize;
        let year = era * 400 + year_of_era + u64::from(month < 2);
        let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        // January and February end the shifted year: 306 days lie before them.
        let day_of_year = if month < 2 {
            day_of_march_year - 306 + 1
        } else {
            day_of_march_year + 59 + u64::from(leap) + 1
        };
        Self {
            year,
            month,
            day: day_of_march_year - (153 * march_month + 2) / 5 + 1,
            day_of_year,
            // 1970-01-01 was a Thursday.
            weekday: ((days + 4) % 7) as usize,
            second_of_day: unix_s % SECONDS_PER_DAY,
        }
    }

    fn number(&self, conversion: char) -> Option<(u64, usize)> {
        let hour = self.second_of_day / 3_600;
        Some(match conversion {
            'Y' => (self.year, 4),
            'y' => (self.year % 100, 2),
            'm' => (self.month as u64 + 1, 2),
            'd' | 'e' => (self.day, 2),
            'j' => (self.day_of_year, 3),
            'H' => (hour, 2),
            'I' => ((hour + 11) % 12 + 1, 2),
            'M' => (self.second_of_day / 60 % 60, 2),
            'S' => (self.second_of_day % 60, 2),
            _ => return None,
        })
    }

    fn word(&self, conversion: char) -> Option<&'static str> {
        Some(match conversion {
            'B' => MONTHS[self.month],
            'b' | 'h' => &MONTHS[self.month][..3],
            'A' => WEEKDAYS[self.weekday],
            'a' => &WEEKDAYS[self.weekday][..3],
            'p' if self.second_of_day < SECONDS_PER_DAY / 2 => "AM",
            'p' => "PM",
            'Z' => "UTC",
            '%' => "%",
            _ => return None,
        })
    }
}

/// Formats a moment; `%-d` leaves out leading zeros, `%e` writes a space instead.
pub(super) fn strftime(format: &str, unix_s: u64) -> Result<String, UnknownConversion> {
    let moment = Moment::at(unix_s);
    let mut text = String::with_capacity(format.len() + 16);
    let mut characters = format.chars();
    while let Some(c) = characters.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let mut conversion = characters.next().unwrap_or('%');
        let plain = conversion == '-';
        if plain {
            conversion = characters.next().unwrap_or('-');
        }
        if let Some(word) = moment.word(conversion) {
            text.push_str(word);
            continue;
        }
        let (number, width) = moment.number(conversion).ok_or(UnknownConversion(conversion))?;
        let written = match (plain, conversion) {
            (true, _) => write!(text, "{number}"),
            (false, 'e') => write!(text, "{number:width$}"),
            (false, _) => write!(text, "{number:0width$}"),
        };
        // Writing to a string does not fail.
        debug_assert!(written.is_ok());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (unix_s, expected) in [
            (0, "1970-01-01 Thursday 001 00:00:00 12 AM"),
            (951_782_399, "2000-02-28 Monday 059 23:59:59 11 PM"),
            (951_782_400, "2000-02-29 Tuesday 060 00:00:00 12 AM"),
            (978_220_800, "2000-12-31 Sunday 366 00:00:00 12 AM"),
            (1_709_251_200, "2024-03-01 Friday 061 00:00:00 12 AM"),
            (1_795_219_200, "2026-11-21 Saturday 325 00:00:00 12 AM"),
            (4_107_585_600, "2100-03-01 Monday 060 12:00:00 12 PM"),
        ] {
            assert_eq!(strftime("%Y-%m-%d %A %j %H:%M:%S %I %p", unix_s).unwrap(), expected);
        }
    }

    #[test]
    fn formats_of_chat_templates_work() {
        let moment = 1_783_080_000;
        assert_eq!(strftime("%d %b %Y", moment).unwrap(), "03 Jul 2026");
        assert_eq!(strftime("%B %-d, %y; %e%%", moment).unwrap(), "July 3, 26;  3%");
        assert_eq!(strftime("%Q", moment), Err(UnknownConversion('Q')));
        assert_eq!(strftime("100%", moment).unwrap(), "100%");
    }
}
