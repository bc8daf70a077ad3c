//! Rules about the shape of source files: input is one `.rs` or `.cu` file, output is its violations.

use super::{File, Repository, Violation};

/// A file longer than this, without its tests, does two jobs.
pub const FILE_LINES_MAX: usize = 600;
/// Above this a file should be split soon; printed, never fatal.
pub const FILE_LINES_WANTED: usize = 400;
/// A function longer than this, blank and comment lines not counted, hides its steps.
pub const FUNCTION_LINES_MAX: usize = 70;
/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 5] = ["common", "utils", "core", "helpers", "manager"];
/// Device code shares headers in one folder of this name, as CUDA projects do.
const EMPTY_NAME_ALLOWED_UNDER: &str = "kernels/src/common/";

/// Every source file opens with `//!`.
pub fn opens_with_its_job(repository: &Repository) -> Vec<Violation> {
    let sources = repository
        .files
        .iter()
        .filter(|file| file.path.ends_with(".rs") || file.path.ends_with(".cu"));
    let silent = sources.filter(|file| !file.text.starts_with("//! "));
    silent
        .filter_map(|file| file.violation(1, "job", "open the file with `//!`: its job, its input, its output"))
        .collect()
}

/// Files stay short, tests not counted.
pub fn files_are_short(repository: &Repository) -> Vec<Violation> {
    let message = |lines| format!("{lines} lines without tests, at most {FILE_LINES_MAX}: split it by job");
    lengths(repository)
        .filter(|(_, lines)| *lines > FILE_LINES_MAX)
        .filter_map(|(file, lines)| file.violation(1, "file-size", message(lines)))
        .collect()
}

/// Files that will have to be split soon, as lines to print.
pub fn long_files(repository: &Repository) -> Vec<String> {
    lengths(repository)
        .filter(|(_, lines)| (FILE_LINES_WANTED + 1..=FILE_LINES_MAX).contains(lines))
        .map(|(file, lines)| format!("{}: {lines} lines without tests, {FILE_LINES_WANTED} wanted", file.path))
        .collect()
}

fn lengths(repository: &Repository) -> impl Iterator<Item = (&File, usize)> {
    let sources = repository.files.iter().filter(|file| !file.is_test);
    sources.filter_map(|file| match &file.source {
        Some(source) => Some((file, source.lines_without_tests())),
        None => file.path.ends_with(".cu").then(|| (file, file.text.lines().count())),
    })
}

/// Functions stay short; test functions are not counted.
pub fn functions_are_short(repository: &Repository) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in repository.files.iter().filter(|file| !file.is_test) {
        let functions = file.source.iter().flat_map(|source| source.functions());
        for function in functions.filter(|f| f.code_lines > FUNCTION_LINES_MAX && !file.is_test_line(f.line)) {
            let message = format!(
                "fn {} has {} lines, at most {FUNCTION_LINES_MAX}",
                function.name, function.code_lines
            );
            violations.extend(file.violation(function.line, "function-size", message));
        }
    }
    violations
}

/// No file, folder or crate has a name that says nothing.
pub fn names_say_something(repository: &Repository) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in repository
        .files
        .iter()
        .filter(|file| !file.path.starts_with(EMPTY_NAME_ALLOWED_UNDER))
    {
        let empty = file
            .path
            .split('/')
            .find(|part| EMPTY_NAMES.contains(&part.split('.').next().unwrap_or(part)));
        if let Some(part) = empty {
            violations.extend(file.violation(1, "name", format!("`{part}` says nothing: name it after its one job")));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(files: &[(&str, String)]) -> Repository {
        Repository::new(files.iter().map(|(path, text)| File::new(path, text)).collect())
    }

    #[test]
    fn a_file_without_its_job_is_found() {
        let found = opens_with_its_job(&repository(&[
            ("a/src/lib.rs", "//! Job.\n".to_owned()),
            ("a/src/b.rs", "/// Not the file's.\nfn b() {}\n".to_owned()),
            ("a/build.rs", "\n//! Late.\n".to_owned()),
            ("kernels/src/x/kernel.cu", "#include <x>\n".to_owned()),
            ("a/README.md", "text\n".to_owned()),
        ]));
        let paths: Vec<&str> = found.iter().map(|violation| violation.path.as_str()).collect();
        assert_eq!(paths, ["a/src/b.rs", "a/build.rs", "kernels/src/x/kernel.cu"]);
    }

    #[test]
    fn tests_do_not_count_towards_the_size() {
        let filler = "// x\n".repeat(FILE_LINES_MAX);
        let tail = format!("#[cfg(test)]\nmod tests {{\n{filler}}}\n");
        let found = files_are_short(&repository(&[
            ("a.rs", format!("{filler}{tail}")),
            ("b.rs", format!("{filler}// one more\n{tail}")),
            ("tests/c.rs", format!("{filler}{filler}")),
            ("k.cu", format!("{filler}{filler}")),
        ]));
        let paths: Vec<&str> = found.iter().map(|violation| violation.path.as_str()).collect();
        assert_eq!(paths, ["b.rs", "k.cu"]);
        assert_eq!(long_files(&repository(&[("a.rs", filler)])).len(), 1);
    }

    #[test]
    fn long_functions_are_found_outside_tests() {
        let body = "    step();\n".repeat(FUNCTION_LINES_MAX - 2);
        let comments = "    // why\n\n".repeat(50);
        let found = functions_are_short(&repository(&[(
            "a.rs",
            format!(
                "fn fits() {{\n{body}{comments}}}\nfn long() {{\n    x();\n{body}}}\n#[test]\nfn t() {{\n{body}{body}}}\n"
            ),
        )]));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].message.starts_with("fn long has 71 lines"),
            "{}",
            found[0].message
        );
    }

    #[test]
    fn empty_names_are_found_in_any_part() {
        let found = names_say_something(&repository(&[
            ("shared/common/src/lib.rs", String::new()),
            ("a/src/utils.rs", String::new()),
            ("a/src/corelation.rs", String::new()),
            ("kernels/src/common/warp.cuh", String::new()),
        ]));
        assert_eq!(found.len(), 2, "{found:?}");
    }
}
