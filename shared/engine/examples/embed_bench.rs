//! Measures a model; input: a directory, a text file of one JSON list of strings per line (a batch each) and options, output: one JSON line per round.
//!
//! `embed_bench --model DIR --batches FILE [--precision f32|bf16|int8] [--threads N] [--seconds S] [--serve]`
//! With `--serve` it runs one round for each line on standard input (a peer runs between two rounds) until the input ends.

use std::io::BufRead;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use engine::{EmbeddingModel, Input, LoadOptions, TokenIds, Truncate};

type Failure = Box<dyn std::error::Error>;

struct Options {
    model: PathBuf,
    batches: PathBuf,
    load: LoadOptions,
    round: Duration,
    serve: bool,
}

fn options() -> Result<Options, Failure> {
    let mut options = Options {
        model: PathBuf::new(),
        batches: PathBuf::new(),
        load: LoadOptions::default(),
        round: Duration::from_secs(2),
        serve: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{name} needs a value"));
        match name.as_str() {
            "--model" => options.model = value()?.into(),
            "--batches" => options.batches = value()?.into(),
            "--precision" => options.load.precision = value()?.parse()?,
            "--threads" => options.load.threads = value()?.parse()?,
            "--seconds" => options.round = Duration::try_from_secs_f64(value()?.parse()?)?,
            "--serve" => options.serve = true,
            _ => return Err(format!("unknown option {name}").into()),
        }
    }
    Ok(options)
}

/// Tokenizes and embeds one batch; returns its tokens.
fn run(model: &EmbeddingModel, batch: &[String]) -> Result<usize, Failure> {
    let inputs: Result<Vec<TokenIds>, _> = batch
        .iter()
        .map(|text| model.tokenize(Input::Text(text), Truncate::End))
        .collect();
    let inputs = inputs?;
    let tokens = inputs.iter().map(TokenIds::len).sum();
    let vectors = model.embed(&inputs)?;
    if vectors.len() != batch.len() {
        return Err("a vector is missing".into());
    }
    std::hint::black_box(vectors);
    Ok(tokens)
}

/// Goes through the batches again and again for the time of a round (at least once) and prints what was reached.
fn round(model: &EmbeddingModel, batches: &[Vec<String>], options: &Options) -> Result<(), Failure> {
    let started = Instant::now();
    let (mut sentences, mut tokens) = (0, 0);
    while sentences == 0 || started.elapsed() < options.round {
        for batch in batches {
            tokens += run(model, batch)?;
            sentences += batch.len();
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let line = serde_json::json!({
        "file": options.batches.file_name().map(|name| name.to_string_lossy()),
        "sentences_per_second": sentences as f64 / seconds,
        "tokens_per_second": tokens as f64 / seconds,
        "sentences": sentences,
        "seconds": seconds,
        "threads": options.load.threads,
        "precision": options.load.precision.name(),
    });
    println!("{line}");
    Ok(())
}

fn main() -> Result<(), Failure> {
    let options = options()?;
    let started = Instant::now();
    let model = EmbeddingModel::load(&options.model, options.load)?;
    let load_ms = started.elapsed().as_secs_f64() * 1e3;
    let text = std::fs::read_to_string(&options.batches)?;
    let batches: Result<Vec<Vec<String>>, _> = text.lines().map(serde_json::from_str).collect();
    let batches = batches?;
    for batch in &batches {
        run(&model, batch)?;
    }
    println!(
        "{}",
        serde_json::json!({ "load_ms": load_ms, "batches": batches.len() })
    );
    if !options.serve {
        return round(&model, &batches, &options);
    }
    for line in std::io::stdin().lock().lines() {
        line?;
        round(&model, &batches, &options)?;
    }
    Ok(())
}
