//! Measures a decoder; input: a directory and options, output: one JSON line per number of sequences with prefill and decode tokens per second.
//!
//! `generate_bench --model DIR [--precision f32|bf16|int8] [--threads N] [--sequences 1,16] [--prompt 128] [--answer 128] [--rounds 3]`
//! Prompts are distinct and made of arbitrary tokens, answers are greedy and never end early; the best of the rounds counts.

use std::path::PathBuf;
use std::time::Instant;

use engine::generate::{CpuGenerateBackend, GenerateBackend, GenerateOptions, LogitRows, StepBatch, StepSpan};

type Failure = Box<dyn std::error::Error>;

struct Options {
    model: PathBuf,
    load: GenerateOptions,
    sequences: Vec<usize>,
    prompt: usize,
    answer: usize,
    rounds: usize,
}

fn options() -> Result<Options, Failure> {
    let mut options = Options {
        model: PathBuf::new(),
        load: GenerateOptions::default(),
        sequences: vec![1, 16],
        prompt: 128,
        answer: 128,
        rounds: 3,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{name} needs a value"));
        match name.as_str() {
            "--model" => options.model = value()?.into(),
            "--precision" => options.load.precision = value()?.parse()?,
            "--threads" => options.load.threads = value()?.parse()?,
            "--prompt" => options.prompt = value()?.parse()?,
            "--answer" => options.answer = value()?.parse()?,
            "--rounds" => options.rounds = value()?.parse()?,
            "--sequences" => {
                let counts: Result<_, _> = value()?.split(',').map(str::parse).collect();
                options.sequences = counts?;
            }
            _ => return Err(format!("unknown option {name}").into()),
        }
    }
    Ok(options)
}

/// Seconds of the prefill and of the decode of `count` sequences.
fn round(backend: &mut CpuGenerateBackend, count: usize, options: &Options) -> Result<(f64, f64), Failure> {
    let (vocab, block_tokens) = (backend.info().vocab_size as u32, backend.info().block_tokens);
    let each = (options.prompt + options.answer).div_ceil(block_tokens);
    let token = |sequence: usize, position: usize| (sequence * 7_919 + position * 31) as u32 % vocab;
    let span = |sequence: usize| StepSpan {
        tokens: (0..options.prompt).map(|position| token(sequence, position)).collect(),
        first_position: 0,
        blocks: (sequence * each..(sequence + 1) * each)
            .map(|block| block as u32)
            .collect(),
        logits: LogitRows::Last,
    };
    let mut batch = StepBatch {
        spans: (0..count).map(span).collect(),
    };
    let started = Instant::now();
    let mut logits = backend.step(&batch)?;
    let prefill = started.elapsed().as_secs_f64();
    let started = Instant::now();
    for _ in 0..options.answer {
        for (span, row) in batch.spans.iter_mut().zip(logits.rows()) {
            let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap_or(0);
            span.first_position += span.tokens.len() as u32;
            span.tokens = vec![best as u32];
        }
        logits = backend.step(&batch)?;
    }
    Ok((prefill, started.elapsed().as_secs_f64()))
}

fn main() -> Result<(), Failure> {
    let options = options()?;
    let started = Instant::now();
    let mut backend = CpuGenerateBackend::load(&options.model, options.load)?;
    let load_ms = started.elapsed().as_secs_f64() * 1e3;
    for &count in &options.sequences {
        let (mut prefill, mut decode) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..options.rounds {
            let round = round(&mut backend, count, &options)?;
            (prefill, decode) = (prefill.min(round.0), decode.min(round.1));
        }
        let line = serde_json::json!({
            "sequences": count,
            "prefill_tokens_per_second": (count * options.prompt) as f64 / prefill,
            "decode_tokens_per_second": (count * options.answer) as f64 / decode,
            "precision": options.load.precision.name(),
            "threads": options.load.threads,
            "load_ms": load_ms,
        });
        println!("{line}");
    }
    Ok(())
}
