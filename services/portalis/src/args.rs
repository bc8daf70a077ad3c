//! The command line. Input: arguments. Output: typed commands; what depends on the machine is checked in `up/plan.rs`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use schemas::ids::{MAX_MODEL_NAME_BYTES, is_token};

/// Portalis: a mesh that serves models over HTTP and NATS.
#[derive(Debug, Parser)]
#[command(name = "portalis", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// Where the mesh is and how to answer.
    #[command(flatten)]
    pub mesh: Mesh,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Where the mesh is and how to answer; for every command.
#[derive(Debug, Clone, Args)]
pub struct Mesh {
    /// Folder of models, keys, ledger and broker data
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = ".portalis",
        display_order = 100
    )]
    pub data_dir: PathBuf,
    /// nats-server to use; `up` starts one of its own without it, the others read DATA_DIR/nats-url
    #[arg(long, global = true, value_name = "URL", display_order = 101)]
    pub nats_url: Option<String>,
    /// Answer in JSON
    #[arg(long, global = true, display_order = 102)]
    pub json: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the whole mesh on this machine, in the foreground
    Up(Box<UpArgs>),
    /// Create, list, disable, enable and delete API keys
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Show what a key or a tenant used and what it cost
    Usage(UsageArgs),
    /// Look at work that failed for good, and put it back
    #[command(subcommand)]
    Dead(DeadCommand),
    /// Show services, workers, models and queues
    Status,
    /// Ask about the autoscaler
    #[command(subcommand)]
    Scale(ScaleCommand),
    /// Ask about the ledger
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// Manage cached answers
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Translate a Python file to Rust with a model of the mesh; exit code 3 when a part of it was not translated
    Translate(TranslateArgs),
}

/// `portalis up`.
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// Port of the HTTP API, 0 = any free one
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// Address the HTTP API listens on
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub host: std::net::IpAddr,
    /// Workers of each model at the start, and the fewest later
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub workers: u32,
    /// Most workers of each model [default: number of cores, at least --workers]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub max_workers: Option<u32>,
    /// Serve the model in folder PATH under this name; repeatable; replaces the default models
    #[arg(long = "model", value_name = "NAME=PATH", value_parser = parse_model)]
    pub models: Vec<ModelArg>,
    /// Also serve a model without weights that answers at once, for benchmarks; repeatable
    #[arg(long = "echo", value_name = "NAME", value_parser = parse_name)]
    pub echo: Vec<String>,
    /// Do not serve the default models
    #[arg(long)]
    pub no_default_model: bool,
    /// Quantize the weights of models that write text when they are loaded: int8 (symmetric, per output) or int4
    /// (asymmetric, per group of up to 128 inputs)
    #[arg(long, value_name = "FORMAT")]
    pub quantize: Option<Quantize>,
    /// Keep nothing: broker data, keys and ledger live in a temporary folder until the end
    #[arg(long)]
    pub ephemeral: bool,
    /// Port of health and metrics, 0 = any free one
    #[arg(long, default_value_t = 9464, value_name = "PORT")]
    pub ops_port: u16,
    /// The nats-server program [default: DATA_DIR/bin/nats-server, else the one on PATH]
    #[arg(long, value_name = "FILE")]
    pub nats_server: Option<PathBuf>,
    /// Port of the nats-server that is started, 0 = any free one
    #[arg(long, default_value_t = 0, value_name = "PORT", conflicts_with = "nats_url")]
    pub nats_port: u16,
    /// The worker program [default: portalis-gpu-worker beside this program]
    #[arg(long, value_name = "FILE")]
    pub worker_binary: Option<PathBuf>,
    /// Log to the terminal instead of DATA_DIR/logs: directives such as "info,gateway=debug"
    #[arg(long, value_name = "DIRECTIVES")]
    pub log: Option<String>,
    /// TOML file with one table per service, such as [gateway.http], on top of the services' defaults
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write what --json prints to this file as well, once the mesh is ready
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
}

/// A format of quantized weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Quantize {
    /// 8 bits
    Int8,
    /// 4 bits
    Int4,
}

impl Quantize {
    /// Its name in a worker's configuration.
    pub fn precision(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}

/// `NAME=PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelArg {
    /// The name that clients use.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
}

/// `portalis keys`.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Make a key and print it; it is shown this one time
    Create(CreateKeyArgs),
    /// List keys
    List {
        /// Only this tenant's
        #[arg(long, value_parser = parse_token)]
        tenant: Option<String>,
    },
    /// Stop a key from working until it is enabled
    Disable(KeyIdArg),
    /// Make a disabled key work again
    Enable(KeyIdArg),
    /// Delete a key for good
    Delete(KeyIdArg),
}

/// `portalis keys create`.
#[derive(Debug, Args)]
pub struct CreateKeyArgs {
    /// Who pays: a-z, 0-9, _ and -
    #[arg(long, value_parser = parse_token)]
    pub tenant: String,
    /// What people call the key
    #[arg(long)]
    pub name: String,
    /// Model it may use, * stands for any text; repeatable [default: all]
    #[arg(long = "model", value_name = "GLOB")]
    pub models: Vec<String>,
    /// Requests per minute [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rpm: Option<u32>,
    /// Requests at once [default: a tenth of --rpm, at least 1]
    #[arg(long, value_name = "N", requires = "rpm", value_parser = clap::value_parser!(u32).range(1..))]
    pub burst: Option<u32>,
    /// Time until it stops working, such as 30d, 12h, 15m or 90s [default: never]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub expires_in: Option<Duration>,
}

/// The id of a key.
#[derive(Debug, Args)]
pub struct KeyIdArg {
    /// The key's id, the third part of ptl_live_ID_…
    pub kid: String,
}

/// `portalis usage`.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct UsageArgs {
    /// Only this key's
    #[arg(long, value_name = "ID")]
    pub key: Option<String>,
    /// This tenant's
    #[arg(long, value_parser = parse_token)]
    pub tenant: Option<String>,
}

/// `portalis dead`.
#[derive(Debug, Subcommand)]
pub enum DeadCommand {
    /// List dead letters, newest first
    List {
        /// Most to list
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Show one whole
    Show {
        /// Its number in the list
        sequence: u64,
    },
    /// Queue one again and wait for its answer
    Replay(ReplayArgs),
}

/// `portalis dead replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// Its number in the list
    pub sequence: u64,
    /// File with the API key to replay it with: the identity of the first try is not kept [default: DATA_DIR/demo-key]
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Longest wait for the answer
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub wait: Duration,
}

/// `portalis scale`.
#[derive(Debug, Subcommand)]
pub enum ScaleCommand {
    /// Show the last decisions on a model and why they were made
    Explain {
        /// The model's name
        model: String,
        /// Most to show
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
}

/// `portalis ledger`.
#[derive(Debug, Subcommand)]
pub enum LedgerCommand {
    /// Derive all totals anew from the journal and compare
    Verify,
}

/// `portalis cache`.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Forget answers
    Purge {
        /// Only this tenant's [default: everybody's]
        #[arg(long, value_parser = parse_token)]
        tenant: Option<String>,
    },
}

/// `portalis translate`.
#[derive(Debug, Args)]
pub struct TranslateArgs {
    /// The Python file
    pub file: PathBuf,
    /// Write the Rust to this file [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The model that translates
    #[arg(long, value_name = "NAME", default_value = "nano-translator", value_parser = parse_name)]
    pub model: String,
    /// Compile each function with rustc; with --cases also run it. What a model wrote runs on this machine, in no sandbox
    #[arg(long)]
    pub verify: bool,
    /// Run the functions on these inputs and compare with Python's outputs: one JSON object per line
    #[arg(long, value_name = "FILE", requires = "verify")]
    pub cases: Option<PathBuf>,
    /// Write a report in JSON to this file
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// How often a function is asked for again, with the compiler's message
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(..=10))]
    pub retries: u32,
    /// Functions translated at once
    #[arg(long, value_name = "N", default_value = "8", value_parser = parse_parallel)]
    pub parallel: usize,
    /// Base URL of the mesh
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000/v1")]
    pub url: String,
    /// API key; other users of this machine can see it, --key-file hides it
    #[arg(long, value_name = "KEY", conflicts_with = "key_file")]
    pub key: Option<String>,
    /// File with the API key [default: DATA_DIR/demo-key]
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

/// One to 64, as many as a tenant may have in flight without care.
fn parse_parallel(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=64).contains(number));
    number.ok_or_else(|| "use a number from 1 to 64".to_owned())
}

fn parse_model(text: &str) -> Result<ModelArg, String> {
    let (name, path) = text
        .split_once('=')
        .ok_or("write it as NAME=PATH, for example all-minilm-l6-v2=models/minilm")?;
    if path.is_empty() {
        return Err("the path after = is missing".to_owned());
    }
    Ok(ModelArg {
        name: parse_name(name)?,
        path: PathBuf::from(path),
    })
}

fn parse_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > MAX_MODEL_NAME_BYTES || text.chars().any(char::is_control) {
        return Err(format!(
            "a model's name has 1 to {MAX_MODEL_NAME_BYTES} bytes and no control characters"
        ));
    }
    Ok(text.to_owned())
}

fn parse_token(text: &str) -> Result<String, String> {
    if is_token(text) {
        Ok(text.to_owned())
    } else {
        Err("use 1 to 64 of a-z, 0-9, _ and -".to_owned())
    }
}

/// `90s`, `15m`, `12h`, `30d`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    const HELP: &str = "use a whole number and a unit: 90s, 15m, 12h or 30d";
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit_s = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(HELP.to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| HELP.to_owned())?;
    let seconds = number.checked_mul(unit_s).filter(|&seconds| seconds > 0);
    seconds.map(Duration::from_secs).ok_or_else(|| HELP.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("portalis").chain(line.split_whitespace()))
    }

    fn up(line: &str) -> UpArgs {
        match parse(line).unwrap().command {
            Command::Up(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn up_has_the_documented_defaults() {
        let args = up("up");
        assert_eq!(
            (args.port, args.workers, args.max_workers, args.ops_port),
            (8000, 1, None, 9464)
        );
        assert!(args.models.is_empty() && args.echo.is_empty() && !args.ephemeral);
        assert_eq!(args.quantize, None);
        assert_eq!(parse("up").unwrap().mesh.data_dir, PathBuf::from(".portalis"));
    }

    #[test]
    fn up_takes_models_and_a_broker() {
        let args = up("up --model a=/m/a --model org/b=c=d --echo echo --workers 2 --max-workers 4");
        let models: Vec<_> = args
            .models
            .iter()
            .map(|model| (model.name.as_str(), model.path.to_str().unwrap()))
            .collect();
        assert_eq!(models, [("a", "/m/a"), ("org/b", "c=d")]);
        assert_eq!(
            (args.echo, args.workers, args.max_workers),
            (vec!["echo".to_owned()], 2, Some(4))
        );
        let cli = parse("--data-dir /d up --nats-url nats://h:1 --json").unwrap();
        assert_eq!(cli.mesh.nats_url.as_deref(), Some("nats://h:1"));
        assert!(cli.mesh.json);
        assert_eq!(cli.mesh.data_dir, PathBuf::from("/d"));
    }

    #[test]
    fn nonsense_is_refused_with_a_hint() {
        let cases = [
            ("up --model nopath", "NAME=PATH"),
            ("up --model a=", "missing"),
            ("up --model =b", "name has"),
            ("up --workers 0", "0"),
            ("up --nats-url x --nats-port 1", "cannot be used with"),
            ("keys create --tenant Up --name x", "a-z"),
            ("keys create --tenant t --name x --burst 3", "--rpm"),
            ("keys create --tenant t --name x --expires-in 3w", "30d"),
            ("keys create --tenant t --name x --expires-in 0s", "30d"),
            ("usage", "required"),
            ("translate", "required"),
            ("translate a.py --cases c.jsonl", "--verify"),
            ("translate a.py --parallel 0", "1 to 64"),
            ("nope", "nope"),
        ];
        for (line, hint) in cases {
            let text = parse(line).unwrap_err().to_string();
            assert!(text.contains(hint), "{line}: {text}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("2d"), Ok(Duration::from_secs(172_800)));
        for bad in [
            "",
            "5",
            "m",
            "1.5h",
            "-1s",
            "99999999999999999999d",
            "1000000000000000000d",
            "1ms",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
