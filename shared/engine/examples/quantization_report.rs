//! What quantizing at load costs; input: a model directory with `eval_pairs.jsonl` (default: the shipped translator), output: one table.
//!
//! `cargo run --release -p engine --example quantization_report -- [--model DIR] [--pairs 100]`
//! The text is fixed: the first pairs, each as the chat prompt of its Python and the Rust that answers it. Logits and perplexity are those of
//! the answers' tokens, each given all that stands before it. Every number is against the same model in f32.

use std::path::{Path, PathBuf};

use engine::Precision;
use engine::generate::{
    AddSpecial, ChatRequest, CpuGenerateBackend, GenerateBackend, GenerateOptions, LogitRows, StepBatch, StepSpan,
    TextModel,
};
use serde::Deserialize;

type Failure = Box<dyn std::error::Error>;

#[derive(Deserialize)]
struct Pair {
    python: String,
    rust: String,
}

/// The tokens of a pair; those from `answer` on are predicted.
struct Sample {
    tokens: Vec<u32>,
    answer: usize,
}

struct Options {
    model: PathBuf,
    pairs: usize,
}

fn options() -> Result<Options, Failure> {
    let mut options = Options {
        model: Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano-translator"),
        pairs: 100,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or(format!("{name} needs a value"))?;
        match name.as_str() {
            "--model" => options.model = value.into(),
            "--pairs" => options.pairs = value.parse()?,
            _ => return Err(format!("unknown option {name}").into()),
        }
    }
    Ok(options)
}

fn samples(options: &Options) -> Result<Vec<Sample>, Failure> {
    let text = TextModel::load(&options.model)?;
    let lines = std::fs::read_to_string(options.model.join("eval_pairs.jsonl"))?;
    let sample = |line: &str| -> Result<Sample, Failure> {
        let pair: Pair = serde_json::from_str(line)?;
        let messages = serde_json::json!([{ "role": "user", "content": pair.python.trim_end_matches('\n') }]);
        let prompt = text.render_chat(&ChatRequest::new(&messages, 0))?;
        let mut tokens = text.encode(&prompt, AddSpecial::No)?;
        let answer = tokens.len();
        tokens.extend(text.encode(pair.rust.trim_end_matches('\n'), AddSpecial::No)?);
        Ok(Sample { tokens, answer })
    };
    lines.lines().take(options.pairs).map(sample).collect()
}

/// Logits of every answer's tokens, one row after the other.
fn logits(backend: &mut CpuGenerateBackend, samples: &[Sample]) -> Result<Vec<Vec<f32>>, Failure> {
    let mut all = Vec::new();
    for Sample { tokens, answer } in samples {
        let end = tokens.len() - 1;
        let blocks = end.div_ceil(backend.info().block_tokens) as u32;
        let span = |range: std::ops::Range<usize>, logits| StepSpan {
            first_position: range.start as u32,
            tokens: tokens[range].to_vec(),
            blocks: (0..blocks).collect(),
            logits,
        };
        // The token before the answer predicts its first one.
        for span in [
            span(0..answer - 1, LogitRows::None),
            span(answer - 1..end, LogitRows::All),
        ] {
            let step = backend.step(&StepBatch { spans: vec![span] })?;
            all.extend(step.rows().map(<[f32]>::to_vec));
        }
    }
    Ok(all)
}

fn best(row: &[f32]) -> Option<usize> {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]))
}

/// `e` to the mean of the negative log-probabilities.
fn perplexity(rows: &[Vec<f32>], samples: &[Sample]) -> f64 {
    let wanted = samples.iter().flat_map(|sample| &sample.tokens[sample.answer..]);
    let loss = |(row, token): (&Vec<f32>, &u32)| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|logit| f64::from(logit - largest).exp()).sum();
        sum.ln() + f64::from(largest - row[*token as usize])
    };
    let total: f64 = rows.iter().zip(wanted).map(loss).sum();
    (total / rows.len() as f64).exp()
}

struct Errors {
    largest: f32,
    /// Root of the mean square, as a share of that of the logits.
    relative: f64,
    /// Share of rows whose best token is the same.
    agreement: f64,
}

fn errors(rows: &[Vec<f32>], exact: &[Vec<f32>]) -> Errors {
    let (mut largest, mut errors, mut squares, mut same) = (0.0_f32, 0.0, 0.0, 0);
    for (row, exact) in rows.iter().zip(exact) {
        for (logit, exact) in row.iter().zip(exact) {
            let error = logit - exact;
            largest = largest.max(error.abs());
            errors += f64::from(error).powi(2);
            squares += f64::from(*exact).powi(2);
        }
        same += usize::from(best(row) == best(exact));
    }
    Errors {
        largest,
        relative: (errors / squares).sqrt(),
        agreement: same as f64 / rows.len() as f64,
    }
}

fn main() -> Result<(), Failure> {
    let options = options()?;
    let samples = samples(&options)?;
    let load = |precision| {
        let load = GenerateOptions {
            precision,
            ..GenerateOptions::default()
        };
        CpuGenerateBackend::load(&options.model, load)
    };
    let bf16_bytes = load(Precision::Bf16)?.weight_bytes();
    let exact = logits(&mut load(Precision::F32)?, &samples)?;
    println!("{} answers, {} predicted tokens", samples.len(), exact.len());
    println!(
        "| precision | weights, bytes | of bf16 | largest logit error | relative RMS error | same best token | perplexity |"
    );
    println!("|---|---|---|---|---|---|---|");
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8, Precision::Int4] {
        let mut backend = load(precision)?;
        let rows = logits(&mut backend, &samples)?;
        let errors = errors(&rows, &exact);
        println!(
            "| {precision} | {} | {:.3} | {:.4} | {:.5} | {:.2} % | {:.4} |",
            backend.weight_bytes(),
            backend.weight_bytes() as f64 / bf16_bytes as f64,
            errors.largest,
            errors.relative,
            100.0 * errors.agreement,
            perplexity(&rows, &samples)
        );
    }
    Ok(())
}
