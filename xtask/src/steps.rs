//! Runs the steps of a task: input is a list of commands, output is a header and a time per step on standard output.
//! The first failure stops, with the command to repeat it.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// A named command that must succeed, run in the repository's root.
#[derive(Debug, Clone)]
pub struct Step {
    /// What it checks, for the header line.
    pub name: &'static str,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Environment on top of ours.
    pub env: Vec<(&'static str, &'static str)>,
}

impl Step {
    /// A step from a program and its arguments.
    pub fn new(name: &'static str, command: &[&str]) -> Self {
        Self {
            name,
            command: command.iter().map(|part| (*part).to_owned()).collect(),
            env: Vec::new(),
        }
    }

    /// The same step with one more environment variable.
    pub fn env(mut self, key: &'static str, value: &'static str) -> Self {
        self.env.push((key, value));
        self
    }

    /// The same step with more arguments.
    pub fn args(mut self, more: &[String]) -> Self {
        self.command.extend_from_slice(more);
        self
    }

    /// What to type to run this step alone.
    pub fn shell_line(&self) -> String {
        let env = self.env.iter().map(|(key, value)| format!("{key}={}", quoted(value)));
        env.chain(self.command.iter().map(|part| quoted(part)))
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// The command, ready to spawn in `root`.
    pub fn command(&self, root: &Path) -> Result<Command> {
        let (program, arguments) = self.command.split_first().context("a step without a program")?;
        let program = if program == "cargo" {
            crate::metadata::cargo()
        } else {
            program.clone()
        };
        let mut command = Command::new(program);
        command.args(arguments).current_dir(root);
        for variable in own_variables() {
            command.env_remove(variable);
        }
        command.envs(self.env.iter().copied());
        Ok(command)
    }

    /// Runs the step, or says how to repeat it.
    pub fn run(&self, root: &Path) -> Result<()> {
        timed(self.name, || {
            let status = self
                .command(root)?
                .status()
                .with_context(|| format!("start `{}`", self.shell_line()))?;
            if !status.success() {
                bail!("{} failed ({status}); repeat it with: {}", self.name, self.shell_line());
            }
            Ok(())
        })
    }
}

/// What cargo tells this program about its own package. Passed on, it looks like a changed environment to build scripts
/// that watch these variables (ring's does), and all that stands on such a crate would be built anew each time.
fn own_variables() -> impl Iterator<Item = OsString> {
    let is_own = |name: &OsString| {
        name.to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
    };
    std::env::vars_os().map(|(name, _)| name).filter(is_own)
}

/// Prints a header, runs `work`, prints how long it took.
pub fn timed<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("=== {name}");
    let started = Instant::now();
    let result = work()?;
    println!("=== {name}: ok in {:.1} s", started.elapsed().as_secs_f64());
    Ok(result)
}

fn quoted(part: &str) -> String {
    let plain = !part.is_empty()
        && part
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_./=:,@+".contains(c));
    if plain {
        part.to_owned()
    } else {
        format!("'{}'", part.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shown_line_can_be_pasted() {
        let step = Step::new("doc", &["cargo", "doc", "it's"]).env("RUSTDOCFLAGS", "-D warnings");
        assert_eq!(step.shell_line(), "RUSTDOCFLAGS='-D warnings' cargo doc 'it'\\''s'");
    }

    #[test]
    fn our_own_package_is_not_told_to_others() {
        let command = Step::new("build", &["cargo", "build"]).command(Path::new(".")).unwrap();
        // Cargo sets it for this test as well.
        let removed = command
            .get_envs()
            .any(|(name, value)| name == "CARGO_PKG_NAME" && value.is_none());
        assert!(removed);
    }

    #[test]
    fn a_failing_step_says_how_to_repeat_it() {
        let error = Step::new("nothing", &["false", "x"])
            .run(Path::new("."))
            .unwrap_err()
            .to_string();
        assert!(error.contains("repeat it with: false x"), "{error}");
        Step::new("something", &["true"]).run(Path::new(".")).unwrap();
    }
}
