//! Golden files. Input: a name and bytes. Output: nothing when they equal `tests/golden/<name>` of the crate under test,
//! a failed test otherwise; `UPDATE_GOLDEN=1` writes the file instead.

use std::path::PathBuf;

/// Compares with the committed file, or writes it when `UPDATE_GOLDEN` is set.
#[track_caller]
pub fn golden(name: &str, actual: &[u8]) {
    let root = std::env::var_os("CARGO_MANIFEST_DIR")
        .map(PathBuf::from)
        .unwrap_or_default();
    let path = root.join("tests").join("golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        let written = path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::write(&path, actual));
        if let Err(error) = written {
            crate::fail(&format!("cannot write {}: {error}", path.display()));
        }
        return;
    }
    let expected = match std::fs::read(&path) {
        Ok(expected) => expected,
        Err(error) => crate::fail(&format!(
            "cannot read {}: {error} (UPDATE_GOLDEN=1 writes it)",
            path.display()
        )),
    };
    if expected != actual {
        crate::fail(&format!(
            "{}: {} (UPDATE_GOLDEN=1 accepts the new one)",
            path.display(),
            difference(&expected, actual)
        ));
    }
}

/// The first difference, as lines when both are text.
fn difference(expected: &[u8], actual: &[u8]) -> String {
    if let (Ok(expected), Ok(actual)) = (std::str::from_utf8(expected), std::str::from_utf8(actual)) {
        let (mut left, mut right) = (expected.lines(), actual.lines());
        for number in 1.. {
            match (left.next(), right.next()) {
                (None, None) => return "only line ends differ".to_owned(),
                (left, right) if left == right => {}
                (left, right) => return format!("line {number} was {left:?}, is {right:?}"),
            }
        }
    }
    let at = expected
        .iter()
        .zip(actual)
        .take_while(|(left, right)| left == right)
        .count();
    format!(
        "byte {at} differs ({} bytes before, {} now)",
        expected.len(),
        actual.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_is_named() {
        assert_eq!(
            difference(b"a\nb\n", b"a\nc\n"),
            r#"line 2 was Some("b"), is Some("c")"#
        );
        assert_eq!(
            difference(b"\xff\x00\x01", b"\xff\x00\x02\x03"),
            "byte 2 differs (3 bytes before, 4 now)"
        );
    }

    #[test]
    fn equal_bytes_pass() {
        golden("example.txt", b"golden\n");
    }

    #[test]
    #[should_panic(expected = "UPDATE_GOLDEN=1 accepts")]
    fn other_bytes_fail() {
        golden("example.txt", b"other\n");
    }
}
