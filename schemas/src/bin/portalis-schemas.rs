//! Writes or checks the generated documents. Input: a mode and a folder. Output: files, or exit status 1 when stale.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use schemas::documents::{self, DocumentError, WRITE_COMMAND};

const USAGE: &str = "usage: portalis-schemas --write FOLDER | --check FOLDER";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        ["--write", folder] => write(Path::new(folder)),
        ["--check", folder] => check(Path::new(folder)),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    outcome.unwrap_or_else(|error| {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        eprintln!("error: {text}");
        ExitCode::FAILURE
    })
}

fn write(folder: &Path) -> Result<ExitCode, DocumentError> {
    for difference in documents::write(folder)? {
        println!("was {difference}");
    }
    Ok(ExitCode::SUCCESS)
}

fn check(folder: &Path) -> Result<ExitCode, DocumentError> {
    let differences = documents::check(folder)?;
    if differences.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for difference in differences {
        eprintln!("{difference}");
    }
    eprintln!("mend with: {WRITE_COMMAND}");
    Ok(ExitCode::FAILURE)
}
