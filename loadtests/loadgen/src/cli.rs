//! The command line. Input: arguments. Output: typed commands.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Load generator and benchmark of Portalis.
#[derive(Debug, Parser)]
#[command(name = "portalis-loadgen", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure the mesh and its baselines in one run, print tables and ratios
    Bench(BenchArgs),
    /// Put load on a running mesh, or any server that takes the same requests
    Http(HttpArgs),
    /// Measure `portalis up` from start to ready, and look for what it leaves behind
    StartTime(StartTimeArgs),
    /// Measure how even many streams of text are while a long prompt joins them
    Streams(StreamsArgs),
    /// The baseline: an axum server that answers every request with the same bytes
    ServeBare(BareArgs),
    /// The baseline: answers on the bare broker; its URL comes in LOADGEN_NATS_URL
    ServeNats,
}

/// `bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Twenty seconds instead of six minutes; for development, not for figures that are published
    #[arg(long, conflicts_with = "scenario")]
    pub quick: bool,
    /// Repetitions, windows and connections, as in loadtests/scenarios/bench.toml
    #[arg(long, value_name = "FILE")]
    pub scenario: Option<PathBuf>,
    /// Also write all medians as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Also write the report into docs/benchmarks/DATE-mesh.md
    #[arg(long)]
    pub write: bool,
    /// Only rows whose name holds this text
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// Where the programs are
    #[command(flatten)]
    pub programs: Programs,
}

/// Where the programs are.
#[derive(Debug, Clone, Args)]
pub struct Programs {
    /// Folder of the services' programs [default: that of this program]
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// The nats-server program [default: .portalis/bin/nats-server, else the one on PATH]
    #[arg(long, value_name = "FILE")]
    pub nats_server: Option<PathBuf>,
}

/// `http`.
#[derive(Debug, Clone, Args)]
pub struct HttpArgs {
    /// Base URL, with or without /v1; http only
    #[arg(long)]
    pub url: String,
    /// API key
    #[arg(long)]
    pub key: String,
    /// Model
    #[arg(long)]
    pub model: String,
    /// Connections, each with one request in flight
    #[arg(long, default_value_t = 16)]
    pub connections: usize,
    /// Measured seconds
    #[arg(long, default_value_t = 10.0)]
    pub duration: f64,
    /// Seconds of load before that
    #[arg(long, default_value_t = 1.0)]
    pub warm_up: f64,
    /// Inputs: each its own, so that nothing is cached, or all the same
    #[arg(long, value_enum, default_value_t = InputKind::Unique)]
    pub input: InputKind,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// Which inputs are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InputKind {
    /// Each its own.
    Unique,
    /// All the same.
    Same,
}

/// `start-time`.
#[derive(Debug, Clone, Args)]
pub struct StartTimeArgs {
    /// Starts to measure
    #[arg(long, default_value_t = 5)]
    pub runs: u32,
    /// Data folder with the installed model and nats-server; nothing in it is changed
    #[arg(long, default_value = ".portalis", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Most seconds that a start may take before it counts as failed
    #[arg(long, default_value_t = 60.0)]
    pub limit: f64,
    /// Folder of the programs [default: that of this program]
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
    /// More arguments for `portalis up`, after --
    #[arg(last = true)]
    pub up: Vec<String>,
}

/// `streams`.
#[derive(Debug, Clone, Args)]
pub struct StreamsArgs {
    /// Streams that are written at once
    #[arg(long, default_value_t = 64)]
    pub streams: usize,
    /// Tokens of the prompt that joins them
    #[arg(long, default_value_t = 900)]
    pub prompt_tokens: usize,
    /// Most tokens of a stream; it has to last until the prompt is read
    #[arg(long, default_value_t = 900)]
    pub max_tokens: usize,
    /// Seconds of streams alone before the prompt joins
    #[arg(long, default_value_t = 2.0)]
    pub before_seconds: f64,
    /// Most that the longest stall may be, over the median time between two tokens
    #[arg(long, default_value_t = 3.0)]
    pub most: f64,
    /// Folder of the model
    #[arg(long, default_value = "models/nano-translator", value_name = "DIR")]
    pub model: PathBuf,
    /// CPU cores that everything runs on
    #[arg(long, default_value_t = 2)]
    pub cores: usize,
    /// A setting of the worker, such as generation.max_step_tokens=128
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Also write every gap between two tokens as CSV: stream, seconds since the prompt joined, milliseconds
    #[arg(long, value_name = "FILE")]
    pub gaps: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
    /// Where the programs are
    #[command(flatten)]
    pub programs: Programs,
}

#[cfg(test)]
impl StreamsArgs {
    /// The defaults.
    pub(crate) fn for_test() -> Self {
        match Cli::parse_from(["loadgen", "streams"]).command {
            Command::Streams(args) => args,
            other => panic!("not streams: {other:?}"),
        }
    }
}

/// `serve-bare`.
#[derive(Debug, Clone, Args)]
pub struct BareArgs {
    /// File with the body of every answer
    #[arg(long, value_name = "FILE")]
    pub answer: PathBuf,
}
