//! Runs `cargo test`: input is the workspace, output is the tests' own output, then their sum in one line,
//! which is also left in `<target>/xtask/test-summary.txt` for `.ci/run`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::steps::Step;

/// Sums of the `test result:` lines.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
    /// Tests marked as ignored.
    pub ignored: u64,
}

impl Counts {
    /// Adds the counts of one line of output, if it is a result line.
    pub fn add_line(&mut self, line: &str) {
        let Some(result) = line.trim_start().strip_prefix("test result: ") else {
            return;
        };
        for part in result.split([';', '.']) {
            let Some((count, what)) = part.trim().split_once(' ') else {
                continue;
            };
            let Ok(count) = count.parse::<u64>() else {
                continue;
            };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

/// Runs every test, or those that `arguments` (options of `cargo test`) select.
pub fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let scope: &[&str] = if selects_packages(arguments) {
        &[]
    } else {
        &["--workspace"]
    };
    // All failures of one run are worth more than the first one.
    let step = Step::new("tests", &["cargo", "test", "--locked", "--no-fail-fast"])
        .args(&scope.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
        .args(arguments);
    println!("=== tests");
    let started = Instant::now();
    let mut child = step
        .command(root)?
        .stdout(Stdio::piped())
        .spawn()
        .context("start cargo test")?;
    let output = child.stdout.take().context("cargo test has no standard output")?;
    let mut counts = Counts::default();
    let mut console = std::io::stdout().lock();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("read the output of cargo test")?;
        let line = String::from_utf8_lossy(&line);
        counts.add_line(&line);
        writeln!(console, "{line}").context("write to standard output")?;
    }
    drop(console);
    let status = child.wait().context("wait for cargo test")?;
    let seconds = started.elapsed().as_secs();
    let verdict = if status.success() { "ok" } else { "FAILED" };
    let summary = format!(
        "tests: {verdict}: {} passed, {} failed, {} ignored in {} min {} s",
        counts.passed,
        counts.failed,
        counts.ignored,
        seconds / 60,
        seconds % 60
    );
    println!("=== {summary}");
    leave_summary(root, &summary)?;
    if !status.success() {
        bail!("tests failed; repeat them with: {}", step.shell_line());
    }
    if counts.passed == 0 {
        bail!("no test ran; check the arguments: {}", step.shell_line());
    }
    Ok(())
}

fn selects_packages(arguments: &[String]) -> bool {
    let of_cargo = arguments.iter().take_while(|argument| *argument != "--");
    of_cargo
        .into_iter()
        .any(|a| a == "-p" || a == "--workspace" || a.starts_with("--package"))
}

fn leave_summary(root: &Path, summary: &str) -> Result<()> {
    let folder = crate::metadata::ours(root)?.target_directory.join("xtask");
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let file = folder.join("test-summary.txt");
    std::fs::write(&file, format!("{summary}\n")).with_context(|| format!("write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_add_up_and_others_do_not_count() {
        let mut counts = Counts::default();
        for line in [
            "running 3 tests",
            "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 9 filtered out; finished in 1.50s",
            "test result_of_something ... ok",
        ] {
            counts.add_line(line);
        }
        assert_eq!(
            counts,
            Counts {
                passed: 7,
                failed: 2,
                ignored: 1
            }
        );
    }

    #[test]
    fn arguments_for_the_test_binary_select_no_package() {
        let to_strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert!(selects_packages(&to_strings(&["-p", "bus"])));
        assert!(!selects_packages(&to_strings(&["--", "-p"])));
        assert!(!selects_packages(&to_strings(&["name"])));
    }
}
