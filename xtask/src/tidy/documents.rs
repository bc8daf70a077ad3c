//! Rules about documents and configuration: input is every file that is no code, output is what has gone stale.

use std::collections::BTreeSet;

use super::{File, Repository, Violation};
use crate::scan::{Source, is_word};

/// A newcomer reads the architecture page whole; longer than this, nobody does.
pub const ARCHITECTURE_LINES_MAX: usize = 250;
/// What a path in a document may leave out in front.
const PATH_PREFIXES: [&str; 3] = ["", "services/", "shared/"];
/// A path in a document is only checked when it ends like a file.
const FILE_ENDINGS: [&str; 9] = [".rs", ".cu", ".toml", ".md", ".sh", ".py", ".yaml", ".yml", ".json"];
/// Suffixes that Prometheus adds to a histogram's or summary's name.
const METRIC_SUFFIXES: [&str; 3] = ["_bucket", "_sum", "_count"];
/// Kinds of changelog fragments.
const FRAGMENT_KINDS: [&str; 6] = ["added", "changed", "deprecated", "fixed", "removed", "security"];
/// A fragment is read in a list; longer texts belong into a document.
const FRAGMENT_LINES_MAX: usize = 10;
/// Where changelog fragments wait for the next release.
const FRAGMENTS: &str = "docs/changelog/unreleased/";

/// ARCHITECTURE.md exists, is short, and every file it names exists.
pub fn architecture_is_true(repository: &Repository) -> Vec<Violation> {
    let path = "ARCHITECTURE.md";
    let Some(file) = repository.file(path) else {
        return missing(path);
    };
    let mut violations = Vec::new();
    let lines = file.text.lines().count();
    if lines > ARCHITECTURE_LINES_MAX {
        let message = format!("{lines} lines, at most {ARCHITECTURE_LINES_MAX}");
        violations.extend(file.violation(1, "architecture", message));
    }
    for (number, line) in numbered(&file.text) {
        for name in named_files(line).filter(|name| !exists(repository, name)) {
            violations.extend(file.violation(number, "architecture", format!("`{name}` does not exist")));
        }
    }
    violations
}

fn missing(path: &str) -> Vec<Violation> {
    vec![Violation {
        path: path.to_owned(),
        line: 1,
        rule: "missing",
        message: "the file does not exist".to_owned(),
    }]
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

/// Words in a line that look like a path to a file: with a slash and a known ending.
fn named_files(line: &str) -> impl Iterator<Item = &str> {
    let words = line.split(|c: char| !(is_word(c) || "./-".contains(c)));
    let trimmed = words.map(|word| word.trim_end_matches(['.', '/']).trim_start_matches("./"));
    trimmed.filter(|word| word.contains('/') && FILE_ENDINGS.iter().any(|end| word.ends_with(end)))
}

fn exists(repository: &Repository, name: &str) -> bool {
    PATH_PREFIXES
        .iter()
        .any(|prefix| repository.file(&format!("{prefix}{name}")).is_some())
}

/// The README names the two commands that a newcomer types.
pub fn readme_names_the_commands(repository: &Repository) -> Vec<Violation> {
    let Some(file) = repository.file("README.md") else {
        return missing("README.md");
    };
    let absent = ["make up", "make test"]
        .into_iter()
        .filter(|command| !file.text.contains(command));
    absent
        .filter_map(|command| file.violation(1, "readme", format!("does not name `{command}`")))
        .collect()
}

/// Links between our own documents lead somewhere.
pub fn links_lead_somewhere(repository: &Repository) -> Vec<Violation> {
    let folders: BTreeSet<&str> = repository
        .files
        .iter()
        .flat_map(|file| file.path.match_indices('/').map(|(at, _)| &file.path[..at]))
        .collect();
    let mut violations = Vec::new();
    for file in repository.ending(".md") {
        let mut in_code = false;
        for (number, line) in numbered(&file.text) {
            in_code ^= line.trim_start().starts_with("```");
            for target in link_targets(line).filter(|_| !in_code) {
                let path = resolve(&file.path, target);
                if repository.file(&path).is_none() && !folders.contains(path.as_str()) {
                    violations.extend(file.violation(number, "link", format!("`{target}` leads nowhere")));
                }
            }
        }
    }
    violations
}

/// Targets of `[text](target)` that are paths of ours, without their anchor.
fn link_targets(line: &str) -> impl Iterator<Item = &str> {
    let targets = line
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', ' ']).next());
    let paths = targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:"));
    paths
        .filter_map(|target| target.split('#').next())
        .filter(|path| !path.is_empty())
}

/// A link's target from the repository's root.
fn resolve(document: &str, target: &str) -> String {
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    parts.join("/")
}

/// Every service's `default.toml` can be read.
pub fn defaults_parse(repository: &Repository) -> Vec<Violation> {
    let defaults = repository
        .files
        .iter()
        .filter(|file| file.path.rsplit('/').next() == Some("default.toml"));
    defaults
        .filter_map(|file| {
            let error = toml::from_str::<toml::Table>(&file.text).err()?;
            let at = error.span().map_or(0, |span| span.start.min(file.text.len()));
            let line = file.text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
            file.violation(line, "default-toml", error.message().to_owned())
        })
        .collect()
}

/// Dashboards, alerts, charts and documents name only metrics that exist in the code.
pub fn metrics_exist(repository: &Repository) -> Vec<Violation> {
    let code = repository.files.iter().filter(|file| !file.is_test);
    let known: BTreeSet<&str> = code
        .filter_map(|file| file.source.as_ref())
        .flat_map(|source: &Source| metric_names(&source.literals))
        .collect();
    let mut violations = Vec::new();
    for file in repository.files.iter().filter(|file| names_metrics(file)) {
        for (number, line) in numbered(&file.text) {
            for name in metric_names(line).filter(|name| !is_known(&known, name)) {
                violations.extend(file.violation(number, "metric", format!("no code has a metric `{name}`")));
            }
        }
    }
    violations
}

fn names_metrics(file: &File) -> bool {
    ["compose/", "helm/", "docs/"]
        .iter()
        .any(|folder| file.path.starts_with(folder))
}

fn metric_names(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !is_word(c));
    // `portalis_<noun>` in a rule ends in an underscore and is no name.
    words.filter(|word| word.starts_with("portalis_") && !word.ends_with('_'))
}

fn is_known(known: &BTreeSet<&str>, name: &str) -> bool {
    let base = METRIC_SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix));
    known.contains(name) || base.is_some_and(|base| known.contains(base))
}

/// Nothing in the repository depends on one registry's address or on one machine's folders.
pub fn nothing_names_a_machine(repository: &Repository) -> Vec<Violation> {
    // Spelled in two parts each: this file is searched too.
    let hosts = [
        concat!("pypi", ".org"),
        concat!("pythonhosted", ".org"),
        concat!("static.crates", ".io"),
        concat!("index.crates", ".io"),
        concat!("proxy.golang", ".org"),
        concat!("registry.npmjs", ".org"),
        concat!("ghcr", ".io"),
        concat!("docker", ".io"),
    ];
    let places = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("fa", "rm-")];
    let mut violations = Vec::new();
    for file in repository
        .files
        .iter()
        .filter(|file| !file.path.ends_with("Cargo.lock"))
    {
        for (number, line) in numbered(&file.text) {
            if let Some(host) = hosts.iter().find(|host| line.contains(**host)) {
                let message = format!("`{host}`: use pip, cargo, go or a configurable image name, not a host");
                violations.extend(file.violation(number, "host", message));
            }
            if let Some(place) = places.iter().find(|place| starts_word(line, place)) {
                violations.extend(file.violation(
                    number,
                    "machine",
                    format!("`{place}` is a place on one machine only"),
                ));
            }
        }
    }
    violations
}

fn starts_word(line: &str, place: &str) -> bool {
    // Behind these it is a part of a longer path or name, such as `$dir/…` or `./…`.
    let continues = |c: char| is_word(c) || ".}/-*>".contains(c);
    line.match_indices(place)
        .any(|(at, _)| !line[..at].chars().next_back().is_some_and(continues))
}

/// Changelog fragments are named `<slug>.<kind>.md` and short.
pub fn fragments_are_well_formed(repository: &Repository) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in repository.files.iter().filter(|file| file.path.starts_with(FRAGMENTS)) {
        let name = &file.path[FRAGMENTS.len()..];
        if name == "README.md" || name == ".gitkeep" {
            continue;
        }
        if !is_fragment_name(name) {
            let message = format!("name it <slug>.<kind>.md, kind one of {}", FRAGMENT_KINDS.join(", "));
            violations.extend(file.violation(1, "changelog", message));
        }
        let lines = file.text.lines().filter(|line| !line.trim().is_empty()).count();
        if lines == 0 || lines > FRAGMENT_LINES_MAX || file.text.starts_with('#') {
            let message = format!("1 to {FRAGMENT_LINES_MAX} lines of text, no heading");
            violations.extend(file.violation(1, "changelog", message));
        }
    }
    violations
}

fn is_fragment_name(name: &str) -> bool {
    let parts: Vec<&str> = name.split('.').collect();
    let is_slug = |slug: &str| {
        !slug.is_empty()
            && slug
                .chars()
                .all(|c| c == '-' || c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    matches!(parts[..], [slug, kind, "md"] if is_slug(slug) && FRAGMENT_KINDS.contains(&kind))
}

/// Shell scripts stop at the first failure.
pub fn scripts_stop_at_failure(repository: &Repository) -> Vec<Violation> {
    let scripts = repository.files.iter().filter(|file| {
        file.text.starts_with("#!") && file.text.lines().next().is_some_and(|line| line.ends_with("bash"))
    });
    let careless = scripts.filter(|file| !file.text.lines().any(|line| line == "set -euo pipefail"));
    careless
        .filter_map(|file| file.violation(1, "script", "write `set -euo pipefail` below the first comment"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(files: &[(&str, &str)]) -> Repository {
        Repository::new(files.iter().map(|(path, text)| File::new(path, text)).collect())
    }

    fn found(violations: Vec<Violation>) -> Vec<(String, usize)> {
        violations
            .into_iter()
            .map(|violation| (violation.path, violation.line))
            .collect()
    }

    fn at(path: &str, line: usize) -> (String, usize) {
        (path.to_owned(), line)
    }

    #[test]
    fn the_architecture_names_only_files_that_exist() {
        assert_eq!(
            found(architecture_is_true(&repository(&[]))),
            [at("ARCHITECTURE.md", 1)]
        );
        let text = "See `gateway/src/lib.rs` and schemas/src/wire.rs.\n`auth/src/gone.rs` and `main.rs`\n";
        let files = [
            ("ARCHITECTURE.md", text),
            ("services/gateway/src/lib.rs", ""),
            ("schemas/src/wire.rs", ""),
        ];
        assert_eq!(
            found(architecture_is_true(&repository(&files))),
            [at("ARCHITECTURE.md", 2)]
        );
        let long = "x\n".repeat(ARCHITECTURE_LINES_MAX + 1);
        assert_eq!(
            architecture_is_true(&repository(&[("ARCHITECTURE.md", &long)])).len(),
            1
        );
    }

    #[test]
    fn the_readme_names_both_commands() {
        assert_eq!(readme_names_the_commands(&repository(&[])).len(), 1);
        assert_eq!(
            readme_names_the_commands(&repository(&[("README.md", "make up")])).len(),
            1
        );
        assert!(readme_names_the_commands(&repository(&[("README.md", "make up, make test")])).is_empty());
    }

    #[test]
    fn links_are_followed_from_their_document() {
        let text = "[a](../README.md#top) [b](x/) [c](gone.md)\n[d](https://example.org/x.md) [e](#here)\n```\n[f](gone.md)\n```\n";
        let files = [("docs/a.md", text), ("README.md", ""), ("docs/x/y.md", "")];
        assert_eq!(found(links_lead_somewhere(&repository(&files))), [at("docs/a.md", 1)]);
    }

    #[test]
    fn broken_defaults_are_found_with_their_line() {
        let files = [
            ("services/a/default.toml", "[a]\nb = 1\n"),
            ("services/b/default.toml", "[a]\nb = \n"),
        ];
        assert_eq!(
            found(defaults_parse(&repository(&files))),
            [at("services/b/default.toml", 2)]
        );
    }

    #[test]
    fn metrics_in_dashboards_exist_in_code() {
        let files = [
            (
                "services/a/src/metrics.rs",
                "const A: &str = \"portalis_wait_seconds\"; // portalis_comment_total\n",
            ),
            (
                "compose/alerts.yaml",
                "portalis_wait_seconds_bucket\nportalis_comment_total\nportalis_<noun>\n",
            ),
            ("README.md", "portalis_gone_total\n"),
        ];
        assert_eq!(
            found(metrics_exist(&repository(&files))),
            [at("compose/alerts.yaml", 2)]
        );
    }

    #[test]
    fn hosts_and_places_are_found() {
        let host = concat!("https://pypi", ".org/simple");
        let place = concat!("cd /wo", "rk/main");
        let longer = concat!("cd target/wo", "rk/main\ncd $x/wo", "rk/");
        let tool = concat!("run fa", "rm-x");
        let text = format!("{host}\n{place}\n{longer}\n{tool}\n");
        let files = [("a.sh", text.as_str()), ("Cargo.lock", host)];
        assert_eq!(
            found(nothing_names_a_machine(&repository(&files))),
            [at("a.sh", 1), at("a.sh", 2), at("a.sh", 5)]
        );
    }

    #[test]
    fn fragments_have_a_kind_and_a_text() {
        let files = [
            ("docs/changelog/unreleased/first-mesh.added.md", "The mesh runs.\n"),
            ("docs/changelog/unreleased/README.md", "# How\n"),
            ("docs/changelog/unreleased/a.new.md", "Text.\n"),
            ("docs/changelog/unreleased/b.fixed.md", "# Heading\n"),
            ("docs/changelog/unreleased/c.fixed.md", "\n"),
        ];
        let paths: Vec<_> = fragments_are_well_formed(&repository(&files))
            .into_iter()
            .map(|v| v.path)
            .collect();
        assert_eq!(
            paths,
            files[2..]
                .iter()
                .map(|(path, _)| (*path).to_owned())
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn scripts_without_the_safety_line_are_found() {
        let files = [
            ("a.sh", "#!/usr/bin/env bash\n# A.\nset -euo pipefail\n"),
            ("b", "#!/bin/bash\necho\n"),
            ("c.py", "#!/usr/bin/env python3\n"),
        ];
        assert_eq!(found(scripts_stop_at_failure(&repository(&files))), [at("b", 1)]);
    }
}
