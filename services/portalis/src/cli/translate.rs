//! `portalis translate`. Input: a Python file and a mesh that serves a model for it. Output: a Rust file, a report, and success
//! only when all of it was translated.

mod client;

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use anyhow::Context;
use translate::{Cases, ItemReport, Kind, Limits, Module, Options, Report, Status, Verifier, assemble};

use self::client::Client;
use super::{Incomplete, show};
use crate::args::{Mesh, TranslateArgs};

/// The compiler that verifies, found on PATH.
const RUSTC: &str = "rustc";
/// Width of the progress bar, in characters.
const BAR_WIDTH: usize = 24;

pub(super) async fn run(args: &TranslateArgs, mesh: &Mesh) -> anyhow::Result<()> {
    let source = read(&args.file)?;
    let module = Module::parse(&source).with_context(|| args.file.display().to_string())?;
    let cases = match &args.cases {
        Some(file) => Some(Cases::parse(&read(file)?).with_context(|| file.display().to_string())?),
        None => None,
    };
    let client = Client::new(&args.url, key(args, mesh)?, args.model.clone())?;
    let options = Options {
        parallel: args.parallel,
        retries: args.retries,
        verifier: args.verify.then(|| Verifier::new(RUSTC, Limits::default())),
        cases,
    };
    let mut progress = Progress::new(&module);
    let job = translate::translate(
        &module,
        &options,
        |messages| client.ask(messages),
        |_, item| progress.done(item),
    );
    // Dropping the job ends what it has started and takes its folders away.
    let report = tokio::select! {
        report = job => report.map_err(anyhow::Error::from),
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted, nothing is written")),
    };
    progress.clear();
    let report = report?;
    write(args, mesh, &module, &report)?;
    tell(&report);
    if report.complete {
        return Ok(());
    }
    let told = format!(
        "{} is not translated as a whole: {} of {} functions are, see the comments in the output or --report",
        args.file.display(),
        report.good(),
        report.summary.functions
    );
    Err(Incomplete(told).into())
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// The key that was named, else that of the mesh in the data folder.
fn key(args: &TranslateArgs, mesh: &Mesh) -> anyhow::Result<String> {
    if let Some(key) = &args.key {
        return Ok(key.clone());
    }
    let file = args.key_file.clone().unwrap_or_else(|| mesh.data_dir.join("demo-key"));
    let key = std::fs::read_to_string(&file).with_context(|| {
        format!(
            "no key in {}: start a mesh with `make up`, or name a key with --key-file or --key",
            file.display()
        )
    })?;
    Ok(key.trim().to_owned())
}

fn write(args: &TranslateArgs, mesh: &Mesh, module: &Module, report: &Report) -> anyhow::Result<()> {
    let rust = assemble(module, report);
    match &args.output {
        Some(file) => save(file, &rust)?,
        // With --json standard output is for the report, which holds the Rust of each function.
        None if mesh.json => {}
        None => show::line(rust.trim_end())?,
    }
    if let Some(file) = &args.report {
        save(file, &format!("{}\n", serde_json::to_string_pretty(report)?))?;
    }
    if mesh.json { show::json(report) } else { Ok(()) }
}

fn save(file: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Sums up for people, on standard error: standard output is for the result.
fn tell(report: &Report) {
    let summary = report.summary;
    let counts = [
        (summary.translated, "translated"),
        (summary.repaired, "repaired"),
        (summary.unverified, "unverified"),
        (summary.failed, "failed"),
        (summary.unsupported, "unsupported"),
    ];
    let counts: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, name)| format!("{count} {name}"))
        .collect();
    say(&format!("{} functions: {}", summary.functions, counts.join(", ")));
    let told = |item: &&ItemReport| {
        let as_wanted = item.status == Status::Translated || (item.status == Status::Unverified && !report.verified);
        // Imports are for what is not translated anyway.
        item.kind != Kind::Import && !as_wanted
    };
    for item in report.items.iter().filter(told) {
        let reason = item.reason.as_deref().unwrap_or_default();
        say(&format!(
            "  line {} {}: {}: {}",
            item.line,
            item.name.as_deref().unwrap_or("(statement)"),
            status(item.status),
            first_line(reason)
        ));
    }
    if let Some(problem) = &report.file_problem {
        say(&format!("  together they do not compile: {}", first_line(problem)));
    }
}

fn status(status: Status) -> &'static str {
    match status {
        Status::Translated => "translated",
        Status::Repaired => "repaired",
        Status::Unverified => "unverified",
        Status::Failed => "failed",
        Status::Unsupported => "unsupported",
    }
}

/// The first line of what a compiler or model said, without what could rewrite the terminal.
fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.replace(char::is_control, " ")
}

fn say(text: &str) {
    // Nobody reads: the result is still written.
    let _ = writeln!(io::stderr(), "{text}");
}

/// A line on a terminal that counts functions; nothing elsewhere.
struct Progress {
    shown: bool,
    done: usize,
    total: usize,
}

impl Progress {
    fn new(module: &Module) -> Self {
        let functions = module.items.iter().filter(|item| item.kind == Kind::Function);
        Self {
            shown: io::stderr().is_terminal(),
            done: 0,
            total: functions.count(),
        }
    }

    fn done(&mut self, item: &ItemReport) {
        if item.kind != Kind::Function {
            return;
        }
        self.done += 1;
        if self.shown {
            let _ = write!(
                io::stderr(),
                "\r\x1b[K{}",
                self.line(item.name.as_deref().unwrap_or_default())
            );
            let _ = io::stderr().flush();
        }
    }

    fn line(&self, name: &str) -> String {
        let full = BAR_WIDTH * self.done / self.total.max(1);
        let bar = format!("{}{}", "#".repeat(full), "-".repeat(BAR_WIDTH.saturating_sub(full)));
        format!("[{bar}] {}/{} {name}", self.done, self.total)
    }

    fn clear(&self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_grows_to_its_end() {
        let mut progress = Progress {
            shown: false,
            done: 0,
            total: 2,
        };
        assert_eq!(progress.line("f"), format!("[{}] 0/2 f", "-".repeat(BAR_WIDTH)));
        progress.done = 2;
        assert_eq!(progress.line("f"), format!("[{}] 2/2 f", "#".repeat(BAR_WIDTH)));
    }

    #[test]
    fn reasons_are_one_tame_line() {
        assert_eq!(first_line("error: \x1b[2J\nmore"), "error:  [2J");
    }
}
