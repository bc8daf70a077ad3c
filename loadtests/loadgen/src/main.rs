//! `portalis-loadgen`: input is a command line, output is tables on standard output and an exit code.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match loadgen::run(loadgen::cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
