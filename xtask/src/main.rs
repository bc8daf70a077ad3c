//! `cargo xtask <task>`: input is a task's name, output is its steps' output and an exit code.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use xtask::steps::{Step, timed};
use xtask::{licences, repo_root, tests_run};

const HELP: &str = "\
usage: cargo xtask <task> [arguments]

  test [arguments of cargo test]   install what the tests need, run them all
  ci [--rest]                      the tests, then every other check; --rest: without the tests
  schemas [--check]                write the generated documents, or check that they are fresh
  licences                         licences, bans and sources of all dependencies, offline
  bench [arguments of loadgen]     measure the mesh and its baselines in one run
  bench-streams [arguments]        measure how even 64 streams are while a long prompt joins
  setup                            install nats-server, the model and the test tools
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let root = repo_root()?;
    let (task, rest) = arguments
        .split_first()
        .map_or(("help", arguments), |(task, rest)| (task.as_str(), rest));
    match task {
        "test" => test(&root, rest),
        "ci" => ci(&root, rest),
        "schemas" => schemas(rest)?.run(&root),
        "licences" => timed("licences, bans, sources", || licences::check_repository(&root)),
        "bench" => bench(&root, rest),
        "bench-streams" => bench_streams(&root, rest),
        "setup" => setup().run(&root),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        unknown => bail!("unknown task `{unknown}`\n{HELP}"),
    }
}

fn setup() -> Step {
    Step::new("setup", &["scripts/setup.sh", "--tests"])
}

fn test(root: &Path, arguments: &[String]) -> Result<()> {
    setup().run(root)?;
    tests_run::run(root, arguments)
}

fn ci(root: &Path, arguments: &[String]) -> Result<()> {
    match arguments {
        [] => test(root, &[])?,
        [rest] if rest == "--rest" => {}
        _ => bail!("ci takes --rest or nothing"),
    }
    check_component(root, "fmt", "rustfmt")?;
    check_component(root, "clippy", "clippy")?;
    Step::new("format", &["cargo", "fmt", "--all", "--check"]).run(root)?;
    // The workspace's features, as in the tests: nothing is built twice.
    Step::new(
        "tidy",
        &["cargo", "test", "--quiet", "--workspace", "--locked", "--test", "tidy"],
    )
    .run(root)?;
    Step::new(
        "clippy",
        &[
            "cargo",
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ],
    )
    .run(root)?;
    timed("licences, bans, sources", || licences::check_repository(root))?;
    Step::new("docs", &["cargo", "doc", "--workspace", "--no-deps", "--locked"])
        .env("RUSTDOCFLAGS", "-D warnings")
        .run(root)?;
    schemas(&["--check".to_owned()])?.run(root)
}

/// A toolchain without a component fails in the middle of the checks; say it first, with the remedy.
fn check_component(root: &Path, subcommand: &str, component: &str) -> Result<()> {
    let output = Step::new("component", &["cargo", subcommand, "--version"])
        .command(root)?
        .output()
        .with_context(|| format!("start cargo {subcommand}"))?;
    if !output.status.success() {
        bail!("cargo {subcommand} is missing; install it with: rustup component add {component}");
    }
    Ok(())
}

fn schemas(arguments: &[String]) -> Result<Step> {
    let (name, mode) = match arguments {
        [] => ("write generated files", "--write"),
        [check] if check == "--check" => ("generated files are fresh", "--check"),
        _ => bail!("schemas takes --check or nothing"),
    };
    let command = [
        "cargo",
        "run",
        "--quiet",
        "--locked",
        "--package",
        "schemas",
        "--bin",
        "portalis-schemas",
        "--",
    ];
    Ok(Step::new(name, &command).args(&[mode.to_owned(), "schemas/generated".to_owned()]))
}

/// Everything in release mode first: a build in the middle would disturb what is measured. Gives the load generator's path.
fn release_build(root: &Path) -> Result<String> {
    setup().run(root)?;
    Step::new(
        "build",
        &[
            "cargo",
            "build",
            "--release",
            "--locked",
            "--workspace",
            "--exclude",
            "xtask",
            "--bins",
        ],
    )
    .run(root)?;
    let release = xtask::metadata::ours(root)?.target_directory.join("release");
    Ok(release.join("portalis-loadgen").to_string_lossy().into_owned())
}

fn bench_streams(root: &Path, arguments: &[String]) -> Result<()> {
    let loadgen = release_build(root)?;
    Step::new("streams while a long prompt joins", &[&loadgen, "streams"])
        .args(arguments)
        .run(root)
}

fn bench(root: &Path, arguments: &[String]) -> Result<()> {
    let loadgen = release_build(root)?;
    Step::new("mesh against its baselines", &[&loadgen, "bench"])
        .args(arguments)
        .run(root)?;
    let peers = "MiniLM against sentence-transformers and onnxruntime";
    Step::new(peers, &["bash", "scripts/engine/bench.sh"]).run(root)
}
