//! The rules of the house that no lint knows: input is the repository's files, output is a list of violations.
//!
//! `xtask/tests/tidy.rs` runs every rule over the repository; each rule has its own tests beside it.
//! A line may be excused with a comment on it or right above it: `// tidy-allow: <rule>: <reason>`.

pub mod crates;
pub mod documents;
pub mod places;
pub mod sources;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::scan::Source;

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// The file, from the repository's root.
    pub path: String,
    /// The line, from 1.
    pub line: usize,
    /// Short name of the rule, as `tidy-allow` takes it.
    pub rule: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: [{}] {}", self.path, self.line, self.rule, self.message)
    }
}

/// A file of the repository.
#[derive(Debug, Clone)]
pub struct File {
    /// Its path from the root, with forward slashes.
    pub path: String,
    /// Its text.
    pub text: String,
    /// The scan, for `.rs` files.
    pub source: Option<Source>,
    /// Tests only: lies in `tests/` or `benches/`, or is declared under `#[cfg(test)]`.
    pub is_test: bool,
}

impl File {
    /// A file from its path and text.
    pub fn new(path: &str, text: &str) -> Self {
        let source = path.ends_with(".rs").then(|| Source::new(text));
        let is_test = path.split('/').any(|part| part == "tests" || part == "benches");
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            source,
            is_test,
        }
    }

    /// Is this line (from 1) test code?
    pub fn is_test_line(&self, line: usize) -> bool {
        self.is_test || self.source.as_ref().is_some_and(|source| source.is_test_line(line))
    }

    /// A violation in this file, unless the line is excused.
    pub fn violation(&self, line: usize, rule: &'static str, message: impl Into<String>) -> Option<Violation> {
        let excuse = format!("tidy-allow: {rule}: ");
        let here = self
            .text
            .lines()
            .skip(line.saturating_sub(2))
            .take(if line > 1 { 2 } else { 1 });
        // An excuse without a reason is none.
        let excused = here
            .filter_map(|text| text.split_once(&excuse))
            .any(|(_, reason)| reason.trim().len() >= 10);
        (!excused).then(|| Violation {
            path: self.path.clone(),
            line,
            rule,
            message: message.into(),
        })
    }
}

/// All text files that git tracks or would track.
#[derive(Debug, Clone, Default)]
pub struct Repository {
    /// In the order of their paths.
    pub files: Vec<File>,
}

impl Repository {
    /// Reads the repository at `root`.
    pub fn load(root: &Path) -> Result<Self> {
        let output = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output()
            .context("run git ls-files")?;
        if !output.status.success() {
            bail!(
                "git ls-files failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        let paths = String::from_utf8(output.stdout).context("read the output of git ls-files")?;
        let paths: BTreeSet<&str> = paths.split('\0').filter(|path| !path.is_empty()).collect();
        let files = paths.into_iter().filter_map(|path| {
            // Deleted but still tracked, a link to nowhere, or no text: nothing to check.
            let text = std::fs::read_to_string(root.join(path)).ok()?;
            Some(File::new(path, &text))
        });
        Ok(Self::new(files.collect()))
    }

    /// A repository from files; finds out which of them are tests only.
    pub fn new(mut files: Vec<File>) -> Self {
        let declared: BTreeSet<String> = files.iter().flat_map(test_module_paths).collect();
        for file in &mut files {
            file.is_test |= declared
                .iter()
                .any(|module| file.path == format!("{module}.rs") || file.path.starts_with(&format!("{module}/")));
        }
        Self { files }
    }

    /// Files whose path ends so.
    pub fn ending<'a>(&'a self, end: &'a str) -> impl Iterator<Item = &'a File> {
        self.files.iter().filter(move |file| file.path.ends_with(end))
    }

    /// The file at this path.
    pub fn file(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }
}

/// Where the files of `#[cfg(test)] mod name;` lie, without `.rs`.
fn test_module_paths(file: &File) -> Vec<String> {
    let Some(source) = &file.source else {
        return Vec::new();
    };
    let stem = file.path.trim_end_matches(".rs");
    let (folder, name) = stem.rsplit_once('/').unwrap_or(("", stem));
    let base = if ["mod", "lib", "main"].contains(&name) {
        folder
    } else {
        stem
    };
    source
        .test_modules()
        .into_iter()
        .map(|module| format!("{base}/{module}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excuse_needs_the_rule_and_a_reason() {
        let file = File::new(
            "a.rs",
            "//! A.\n// tidy-allow: sleep: models a slow engine\nx();\ny(); // tidy-allow: sleep: no\n",
        );
        assert_eq!(file.violation(3, "sleep", "m"), None);
        assert!(file.violation(3, "unwrap", "m").is_some());
        assert!(file.violation(4, "sleep", "m").is_some());
        assert!(file.violation(1, "sleep", "m").is_some());
    }

    #[test]
    fn files_declared_under_cfg_test_are_tests() {
        let repository = Repository::new(vec![
            File::new("a/src/lib.rs", "#[cfg(test)]\nmod fake;\nmod real;\n"),
            File::new("a/src/fake.rs", ""),
            File::new("a/src/real.rs", "#[cfg(test)]\nmod cases;\n"),
            File::new("a/src/real/cases.rs", ""),
            File::new("a/tests/it/main.rs", ""),
        ]);
        let tests: Vec<&str> = repository
            .files
            .iter()
            .filter(|f| f.is_test)
            .map(|f| f.path.as_str())
            .collect();
        assert_eq!(tests, ["a/src/fake.rs", "a/src/real/cases.rs", "a/tests/it/main.rs"]);
    }
}
