//! What `portalis up` is going to run. Input: arguments, the machine. Output: a checked plan, or one line that says what is
//! wrong and what to do.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use engine::generate::is_generative;
use schemas::ids::model_slug;

use super::data_dir::DataDir;
use crate::args::{ModelArg, Quantize, UpArgs};

/// Names and folders of the models that `make up` installs: one embeds, one translates Python to Rust.
const DEFAULT_MODELS: [&str; 2] = ["all-minilm-l6-v2", TRANSLATOR];
/// The one that translates.
pub(super) const TRANSLATOR: &str = "nano-translator";
/// Most models of one local mesh; each is at least one process.
const MAX_MODELS: usize = 64;
/// Files without which a folder is no model.
const MODEL_FILES: [&str; 2] = ["config.json", "tokenizer.json"];

/// One model to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelPlan {
    /// The name that clients use.
    pub name: String,
    /// Its folder, `None` = the echo engine.
    pub path: Option<PathBuf>,
    /// Number format of its weights where it is not that of the configuration.
    pub precision: Option<&'static str>,
}

/// What is going to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where the HTTP API listens.
    pub http: SocketAddr,
    /// Models, at least one.
    pub models: Vec<ModelPlan>,
    /// Fewest workers of each.
    pub min_workers: u32,
    /// Most workers of each.
    pub max_workers: u32,
    /// The worker program.
    pub worker_binary: PathBuf,
    /// Threads that a worker computes with; 0 = one per core.
    pub threads: u32,
}

impl Plan {
    /// Checks everything that can be checked before anything is started.
    ///
    /// # Errors
    /// One line that says what to do.
    pub fn new(args: &UpArgs, data: &DataDir) -> anyhow::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let cores = u32::try_from(cores).unwrap_or(u32::MAX);
        let max_workers = args.max_workers.unwrap_or(args.workers.max(cores.min(64)));
        ensure!(
            max_workers >= args.workers,
            "--max-workers {max_workers} is below --workers {}",
            args.workers
        );
        // One worker uses the whole machine; several from the start share it.
        let threads = if args.workers == 1 {
            0
        } else {
            (cores / args.workers).max(1)
        };
        Ok(Self {
            models: models(args, data)?,
            min_workers: args.workers,
            max_workers,
            worker_binary: worker_binary(args.worker_binary.as_deref())?,
            threads,
            http: free_address(SocketAddr::new(args.host, args.port))?,
        })
    }
}

/// The models in the order of the command line, each name once.
fn models(args: &UpArgs, data: &DataDir) -> anyhow::Result<Vec<ModelPlan>> {
    let mut models = Vec::new();
    if args.models.is_empty() && !args.no_default_model {
        for name in DEFAULT_MODELS {
            let path = data.installed("models").join(name);
            ensure!(
                path.is_dir(),
                "no model in {}: install it with `make setup`, or name another with --model NAME=PATH",
                path.display()
            );
            models.push(real_model(name, &path, args.quantize)?);
        }
    }
    for ModelArg { name, path } in &args.models {
        models.push(real_model(name, path, args.quantize)?);
    }
    models.extend(args.echo.iter().map(|name| ModelPlan {
        name: name.clone(),
        path: None,
        precision: None,
    }));
    ensure!(
        !models.is_empty(),
        "nothing to serve: name a model with --model NAME=PATH or --echo NAME"
    );
    ensure!(
        models.len() <= MAX_MODELS,
        "{} models are more than {MAX_MODELS}",
        models.len()
    );
    let mut slugs: Vec<_> = models.iter().map(|model| model_slug(&model.name)).collect();
    slugs.sort_unstable();
    if let Some(twice) = slugs.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!("model {} is named twice", twice[0]);
    }
    Ok(models)
}

fn real_model(name: &str, path: &Path, quantize: Option<Quantize>) -> anyhow::Result<ModelPlan> {
    // Workers have this working folder, but messages should say where things are.
    let path = std::path::absolute(path).with_context(|| format!("cannot use {}", path.display()))?;
    for file in MODEL_FILES {
        ensure!(
            path.join(file).is_file(),
            "model {name}: {} is missing, name a folder in the Hugging Face layout with --model {name}=PATH",
            path.join(file).display()
        );
    }
    // A vector model in 4 bits would be a bad one, and small as it is it gains little from 8.
    let precision = match quantize {
        Some(format) if is_generative(&path)? => Some(format.precision()),
        _ => None,
    };
    Ok(ModelPlan {
        name: name.to_owned(),
        path: Some(path),
        precision,
    })
}

fn worker_binary(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let program = match named {
        Some(named) => std::path::absolute(named)?,
        None => std::env::current_exe()
            .context("cannot find this program's folder")?
            .with_file_name("portalis-gpu-worker"),
    };
    ensure!(
        program.is_file(),
        "no worker program at {}: build it with `cargo build -p gpu-worker`, or name it with --worker-binary",
        program.display()
    );
    Ok(program)
}

/// The address with a port that was free a moment ago; the service that takes it complains if it no longer is.
fn free_address(wanted: SocketAddr) -> anyhow::Result<SocketAddr> {
    match TcpListener::bind(wanted) {
        Ok(listener) => Ok(listener.local_addr()?),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => bail!(
            "port {} is in use: stop what listens there, or choose another with --port",
            wanted.port()
        ),
        Err(error) => Err(error)
            .with_context(|| format!("cannot listen on {wanted}: choose another address with --host or --port")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(line: &str) -> UpArgs {
        let cli = Cli::try_parse_from(std::iter::once("portalis").chain(line.split_whitespace())).unwrap();
        match cli.command {
            Command::Up(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    /// A data folder, a model in it, and a file that stands for the worker program.
    fn home() -> (tempfile::TempDir, DataDir, String) {
        let root = tempfile::tempdir().unwrap();
        for name in DEFAULT_MODELS {
            let model = root.path().join("models").join(name);
            std::fs::create_dir_all(&model).unwrap();
            for file in MODEL_FILES {
                std::fs::write(model.join(file), "{}").unwrap();
            }
        }
        let worker = root.path().join("worker");
        std::fs::write(&worker, "").unwrap();
        let data = DataDir::open(root.path(), false).unwrap();
        let rest = format!("--port 0 --worker-binary {}", worker.display());
        (root, data, rest)
    }

    #[test]
    fn the_default_is_one_worker_of_each_installed_model() {
        let (_root, data, rest) = home();
        let plan = Plan::new(&args(&format!("up {rest}")), &data).unwrap();
        assert_eq!((plan.min_workers, plan.threads), (1, 0));
        assert!(plan.max_workers >= 1 && plan.http.port() > 0);
        let names = |line: &str| {
            let plan = Plan::new(&args(&format!("up {rest} {line}")), &data).unwrap();
            plan.models.into_iter().map(|model| model.name).collect::<Vec<_>>()
        };
        assert_eq!(names(""), DEFAULT_MODELS);
        assert_eq!(names("--echo echo"), [&DEFAULT_MODELS[..], &["echo"]].concat());
        assert_eq!(names("--echo echo --no-default-model"), ["echo"]);
        let path = data.installed("models").join(DEFAULT_MODELS[0]);
        assert_eq!(names(&format!("--model a={}", path.display())), ["a"]);
    }

    #[test]
    fn models_that_write_text_are_quantized() {
        let (root, data, rest) = home();
        let config = root.path().join("models").join(TRANSLATOR).join("config.json");
        std::fs::write(config, r#"{"architectures": ["LlamaForCausalLM"]}"#).unwrap();
        let precisions = |line: &str| {
            let plan = Plan::new(&args(&format!("up {rest} --echo echo {line}")), &data).unwrap();
            plan.models.iter().map(|model| model.precision).collect::<Vec<_>>()
        };
        assert_eq!(precisions(""), [None; 3]);
        assert_eq!(precisions("--quantize int8"), [None, Some("int8"), None]);
        assert_eq!(precisions("--quantize int4"), [None, Some("int4"), None]);
    }

    #[test]
    fn what_cannot_run_is_told_in_one_line() {
        let (root, data, rest) = home();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let broken = root.path().join("broken");
        std::fs::create_dir(&broken).unwrap();
        let cases = [
            (format!("{rest} --model x=/no/such"), "--model x=PATH"),
            (
                format!("{rest} --model x={}", broken.display()),
                "config.json is missing",
            ),
            (format!("{rest} --echo e --echo e"), "named twice"),
            (format!("{rest} --no-default-model"), "nothing to serve"),
            (format!("{rest} --workers 3 --max-workers 2"), "below --workers"),
            (
                "--port 0 --worker-binary /no/such".to_owned(),
                "cargo build -p gpu-worker",
            ),
            (
                format!("--worker-binary {} --port {port}", root.path().join("worker").display()),
                "--port",
            ),
        ];
        for (line, hint) in cases {
            let text = format!("{:#}", Plan::new(&args(&format!("up {line}")), &data).unwrap_err());
            assert!(text.contains(hint) && !text.contains('\n'), "{line}: {text}");
        }
        std::fs::remove_dir_all(root.path().join("models")).unwrap();
        let text = Plan::new(&args(&format!("up {rest}")), &data).unwrap_err().to_string();
        assert!(text.contains("make setup"), "{text}");
    }
}
