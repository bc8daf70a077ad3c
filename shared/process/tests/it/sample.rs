//! A service for the tests of `process`: does what `sample.mode` says, tells each step on standard output, and waits for a line on standard input before it lets go.

#![expect(clippy::panic, reason = "the tests want to see what a panic does")]

use std::io::{self, BufRead, Write};

use anyhow::Context as _;
use process::{Context, Service};
use serde::Deserialize;

struct Sample;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    sample: Section,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    mode: Mode,
    // Read by nobody: the tests look for it in what is printed.
    #[expect(dead_code, reason = "only its redaction is tested")]
    password: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mode {
    Polite,
    Stuck,
    StuckTask,
    TaskFails,
    TaskPanics,
    Panics,
    Returns,
}

impl Service for Sample {
    const NAME: &'static str = "sample";
    const DEFAULT_CONFIG: &'static str = "
        [process]
        log_format = \"json\"
        [sample]
        mode = \"polite\"
        password = \"\"
    ";
    type Config = Config;

    fn serve(config: Config, context: Context) -> process::Serving {
        Box::pin(serve(config, context))
    }
}

async fn serve(config: Config, context: Context) -> anyhow::Result<()> {
    let mode = config.sample.mode;
    context.health.component("sample").set_ready();
    process::metrics::int_counter(&context.registry, "portalis_sample_total", "Samples.")?.inc();
    say("serving")?;
    match mode {
        Mode::Panics => panic!("the sample was told to panic"),
        Mode::Returns => return Ok(()),
        Mode::TaskFails => drop(context.tasks.spawn("failing", async { anyhow::bail!("told to fail") })),
        Mode::TaskPanics => drop(context.tasks.spawn("panicking", async { panic!("told to panic") })),
        Mode::StuckTask => drop(context.tasks.spawn("stuck-task", std::future::pending())),
        Mode::Polite | Mode::Stuck => {}
    }
    context.shutdown.stopping().await;
    say("draining")?;
    match mode {
        Mode::Stuck => std::future::pending().await,
        Mode::Polite => tokio::task::spawn_blocking(wait_for_line).await?,
        _ => Ok(()),
    }
}

fn say(step: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{step}").context("cannot write to standard output")
}

fn wait_for_line() -> anyhow::Result<()> {
    let mut line = String::new();
    io::stdin()
        .lock()
        .read_line(&mut line)
        .context("cannot read standard input")?;
    Ok(())
}

fn main() -> std::process::ExitCode {
    process::run::<Sample>()
}
