//! What the command line prints. Input: rows or values. Output: aligned columns, JSON, times for people.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde::Serialize;

/// Prints a value as JSON, indented.
///
/// # Errors
/// When it has no form in JSON, or nobody can read any more.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string_pretty(value)?)
}

/// Prints one line.
///
/// # Errors
/// When nobody can read any more.
pub fn line(text: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{text}").context("cannot print")
}

/// Prints rows under a heading, or a sentence when there are none.
///
/// # Errors
/// When nobody can read any more.
pub fn table(heading: &[&str], rows: &[Vec<String>], none: &str) -> anyhow::Result<()> {
    if rows.is_empty() {
        return line(none);
    }
    line(&columns(heading, rows))
}

fn columns(heading: &[&str], rows: &[Vec<String>]) -> String {
    let heading: Vec<String> = heading.iter().map(|&title| title.to_owned()).collect();
    // What comes from the mesh may hold anything; a control character could rewrite the terminal.
    let clean = |row: &Vec<String>| {
        row.iter()
            .map(|cell| cell.replace(char::is_control, " "))
            .collect::<Vec<_>>()
    };
    let all: Vec<Vec<String>> = std::iter::once(&heading).chain(rows).map(clean).collect();
    let width = |column: usize| {
        all.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..heading.len()).map(|column| width(column).unwrap_or(0)).collect();
    let render = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    all.iter().map(render).collect::<Vec<_>>().join("\n")
}

/// How long ago a Unix time in milliseconds was.
#[must_use]
pub fn ago(at_ms: u64) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(at_ms);
    match SystemTime::now().duration_since(at) {
        Ok(since) => format!("{} ago", span(since)),
        Err(ahead) => format!("in {}", span(ahead.duration())),
    }
}

/// A time span, as exact as people need it.
#[must_use]
pub fn span(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_tame() {
        let rows = vec![
            vec!["a\x1b[2J".to_owned(), "1".to_owned()],
            vec!["longer name".to_owned(), String::new()],
        ];
        assert_eq!(
            columns(&["NAME", "N"], &rows),
            "NAME         N\na [2J        1\nlonger name"
        );
    }

    #[test]
    fn spans() {
        let cases = [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (7_199, "119 min"),
            (7_200, "2 h"),
            (172_800, "2 d"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(span(Duration::from_secs(seconds)), expected);
        }
    }
}
