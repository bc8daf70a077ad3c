//! Rules of the form "this only happens there": input is every source file, output is what happens elsewhere.

use super::{File, Repository, Violation};
use crate::scan::{Source, has_word, is_word};

/// Where something may happen, and why there.
type Places = &'static [(&'static str, &'static str)];

const ENVIRONMENT: Places = &[
    (
        "shared/process/src/config.rs",
        "the one place that turns the environment into configuration",
    ),
    ("shared/testkit/", "tests are told where nats-server is"),
    ("loadtests/", "benchmarks are told what to measure"),
    ("xtask/", "cargo says where it is by environment"),
];

const STATUS_CODES: Places = &[
    (
        "services/gateway/src/http/error.rs",
        "the one match from error codes to HTTP",
    ),
    (
        "shared/process/",
        "the operations server answers health and metrics, never a client's request",
    ),
    ("loadtests/", "clients of the mesh read status codes"),
];

const SUBJECTS: Places = &[
    ("schemas/", "the one table of subjects"),
    ("xtask/", "these rules"),
    ("docs/", "documents name subjects"),
];

const SLEEP_IN_TESTS: Places = &[("shared/testkit/src/", "the waiting for a condition is built here")];

fn is_in(file: &File, places: Places) -> bool {
    places
        .iter()
        .any(|(place, _)| file.path == *place || (place.ends_with('/') && file.path.starts_with(place)))
}

/// Only configuration reads the environment.
pub fn environment_is_read_in_one_place(repository: &Repository) -> Vec<Violation> {
    let reads = |line: &str| {
        ["var", "vars", "var_os", "vars_os", "set_var", "remove_var"]
            .iter()
            .any(|name| has_word(line, &format!("env::{name}")))
    };
    outside(
        repository,
        ENVIRONMENT,
        "environment",
        "read it in shared/process/src/config.rs and pass the value on",
        &reads,
    )
}

/// Only one file knows HTTP status codes.
pub fn status_codes_are_in_one_place(repository: &Repository) -> Vec<Violation> {
    let names = |line: &str| has_word(line, "StatusCode");
    outside(
        repository,
        STATUS_CODES,
        "status-code",
        "return an ErrorCode; services/gateway/src/http/error.rs maps it",
        &names,
    )
}

/// Nothing unwraps outside tests.
pub fn nothing_unwraps(repository: &Repository) -> Vec<Violation> {
    let unwraps = |line: &str| line.contains(".unwrap()");
    outside(
        repository,
        &[],
        "unwrap",
        "return a typed error, or expect(\"why it cannot fail\") under #[expect]",
        &unwraps,
    )
}

/// Lines of production code outside `places` whose code satisfies `wanted`.
fn outside(
    repository: &Repository,
    places: Places,
    rule: &'static str,
    message: &str,
    wanted: &dyn Fn(&str) -> bool,
) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in repository
        .files
        .iter()
        .filter(|file| !file.is_test && !is_in(file, places))
    {
        let Some(source) = &file.source else { continue };
        let lines = Source::find(&source.code, wanted).filter(|line| !file.is_test_line(*line));
        violations.extend(lines.filter_map(|line| file.violation(line, rule, message)));
    }
    violations
}

/// Subjects are written in `schemas` only.
pub fn subjects_are_in_schemas(repository: &Repository) -> Vec<Violation> {
    // Spelled in two parts: this file is searched too.
    let needles = [concat!("portalis", ".v1."), concat!("_IN", "BOX")];
    let mut violations = Vec::new();
    for file in repository
        .files
        .iter()
        .filter(|file| !file.is_test && !is_in(file, SUBJECTS))
    {
        let Some(source) = &file.source else { continue };
        let is_example = file.path.split('/').any(|part| part == "examples");
        let lines = Source::find(&source.literals, |line| {
            needles.iter().any(|needle| line.contains(needle))
        });
        for line in lines.filter(|line| !is_example && !file.is_test_line(*line)) {
            violations.extend(file.violation(line, "subject", "take the subject from schemas::subjects"));
        }
    }
    violations
}

/// Tests wait for conditions, never for durations.
pub fn tests_do_not_sleep(repository: &Repository) -> Vec<Violation> {
    let sleeps = |line: &str| {
        ["thread::sleep", "time::sleep"]
            .iter()
            .any(|call| ends_word(line, call))
    };
    let mut violations = Vec::new();
    for file in repository.files.iter().filter(|file| !is_in(file, SLEEP_IN_TESTS)) {
        let Some(source) = &file.source else { continue };
        let lines = Source::find(&source.code, sleeps);
        // On the paused clock a sleep is a step of the fake clock.
        for line in lines.filter(|line| file.is_test_line(*line) && !source.is_paused_line(*line)) {
            let message = "a test waits for a condition, never for a duration: use testkit's waiting, or a fake clock";
            violations.extend(file.violation(line, "sleep", message));
        }
    }
    violations
}

/// Like `has_word`, but `tokio::time::sleep` ends in `time::sleep` as well.
fn ends_word(line: &str, call: &str) -> bool {
    line.match_indices(call)
        .any(|(at, _)| !line[at + call.len()..].chars().next().is_some_and(is_word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(rule: fn(&Repository) -> Vec<Violation>, path: &str, text: &str) -> Vec<usize> {
        rule(&Repository::new(vec![File::new(path, text)]))
            .into_iter()
            .map(|violation| violation.line)
            .collect()
    }

    #[test]
    fn the_environment_is_read_by_configuration_only() {
        let text = "use std::env;\nlet a = std::env::var(\"A\");\nlet b = env::vars();\nlet c = env::args();\n// env::var\nlet d = \"env::var\";\n\
                    #[cfg(test)]\nmod tests { fn f() { std::env::var(\"A\"); } }\n";
        assert_eq!(
            lines(environment_is_read_in_one_place, "services/auth/src/lib.rs", text),
            [2, 3]
        );
        assert!(lines(environment_is_read_in_one_place, "shared/process/src/config.rs", text).is_empty());
        assert_eq!(
            lines(
                environment_is_read_in_one_place,
                "shared/process/src/config_old.rs",
                text
            ),
            [2, 3]
        );
    }

    #[test]
    fn status_codes_stay_in_the_error_file() {
        let text = "use axum::http::StatusCode;\n// StatusCode\n";
        assert_eq!(
            lines(status_codes_are_in_one_place, "services/gateway/src/http/chat.rs", text),
            [1]
        );
        assert!(
            lines(
                status_codes_are_in_one_place,
                "services/gateway/src/http/error.rs",
                text
            )
            .is_empty()
        );
        assert!(lines(status_codes_are_in_one_place, "services/gateway/tests/it/main.rs", text).is_empty());
    }

    #[test]
    fn unwraps_are_found_outside_tests() {
        let text = "a.unwrap();\na.unwrap_or(1);\n/// a.unwrap();\n#[test]\nfn t() { a.unwrap(); }\n";
        assert_eq!(lines(nothing_unwraps, "a/src/lib.rs", text), [1]);
    }

    #[test]
    fn subjects_are_found_in_literals_only() {
        let subject = concat!("portalis", ".v1.work");
        let text = format!("let s = \"{subject}\";\n// {subject}\n#[test]\nfn t() {{ \"{subject}\"; }}\n");
        assert_eq!(lines(subjects_are_in_schemas, "services/auth/src/lib.rs", &text), [1]);
        assert!(lines(subjects_are_in_schemas, "schemas/src/subjects.rs", &text).is_empty());
        assert!(lines(subjects_are_in_schemas, "services/auth/examples/x.rs", &text).is_empty());
    }

    #[test]
    fn sleeping_is_found_in_tests_only() {
        let text = "tokio::time::sleep(a).await;\n#[tokio::test]\nasync fn t() {\n    tokio::time::sleep(b).await;\n    sleep_until(c);\n    std::thread::sleep(d);\n}\n";
        assert_eq!(lines(tests_do_not_sleep, "services/auth/src/lib.rs", text), [4, 6]);
        assert_eq!(
            lines(tests_do_not_sleep, "services/auth/tests/it/main.rs", text),
            [1, 4, 6]
        );
        assert!(lines(tests_do_not_sleep, "shared/testkit/src/wait.rs", text).is_empty());
        let paused = "#[tokio::test(flavor = \"current_thread\", start_paused = true)]\nasync fn t() {\n    time::sleep(b).await;\n}\n";
        assert!(lines(tests_do_not_sleep, "services/auth/tests/it/main.rs", paused).is_empty());
    }
}
