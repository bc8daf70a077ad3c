//! The local mesh (`portalis up`) and the command line. Input: arguments. Output: a running mesh, or answers of one.

pub mod args;
mod cli;
mod mesh;
pub mod up;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};

/// Exit code of work that was done, but not the whole of it.
const INCOMPLETE: u8 = 3;

/// Runs the program: 0 when it did what it was asked, 2 for a wrong command line, 3 when it did a part of it, 1 otherwise;
/// with one line that says why.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(answer) => {
            // Nobody is left to tell when the terminal is gone.
            let _ = answer.print();
            return if answer.exit_code() == 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(2)
            };
        }
    };
    let outcome = match &cli.command {
        Command::Up(args) => up::run(args, &cli.mesh),
        command => cli::run(command, &cli.mesh),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {}", one_line(&error));
            if error.is::<cli::Incomplete>() {
                ExitCode::from(INCOMPLETE)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// An error with its causes on one line, whatever they hold.
fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}")
        .split(['\n', '\r'])
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_one_line() {
        let error = anyhow::anyhow!("inner\n  detail\r\n").context("outer");
        assert_eq!(one_line(&error), "outer: inner; detail");
    }

    #[test]
    fn exit_codes() {
        let code = |line: &str| format!("{:?}", run(line.split(' ').map(OsString::from)));
        assert_eq!(code("portalis --version"), format!("{:?}", ExitCode::SUCCESS));
        assert_eq!(code("portalis nope"), format!("{:?}", ExitCode::from(2)));
        let nowhere = "portalis keys list --data-dir /no/such/folder";
        assert_eq!(code(nowhere), format!("{:?}", ExitCode::FAILURE));
    }
}
