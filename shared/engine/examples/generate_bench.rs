//! Measures a decoder as it is served: a generator with continuous batching; input: a directory and options, output: one JSON line per number of requests.
//!
//! `generate_bench --model DIR [--precision f32|bf16|int8|int4] [--threads N] [--requests 1,16] [--prompt 128] [--answer 128] [--rounds 3] [--turn 0]`
//! Requests arrive together. Prompts are distinct and made of arbitrary tokens, answers are greedy and never end early; the best of the rounds counts,
//! after one to warm up. `--turn` is added to every token of the prompts, so that turns of a comparison differ.
//! Prefill ends with the first token of the last request; with one request decode is the rest. Total: answers' tokens in the time from first to last.

use std::path::PathBuf;
use std::time::Instant;

use engine::generate::{
    CpuGenerateBackend, GenerateOptions, Generation, Generator, GeneratorOptions, SpecialTokens, TextModel,
};

type Failure = Box<dyn std::error::Error>;

struct Options {
    model: PathBuf,
    load: GenerateOptions,
    requests: Vec<usize>,
    prompt: usize,
    answer: usize,
    rounds: usize,
    turn: usize,
}

fn options() -> Result<Options, Failure> {
    let mut options = Options {
        model: PathBuf::new(),
        load: GenerateOptions::default(),
        requests: vec![1, 16],
        prompt: 128,
        answer: 128,
        rounds: 3,
        turn: 0,
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
            "--turn" => options.turn = value()?.parse()?,
            "--requests" => {
                let counts: Result<_, _> = value()?.split(',').map(str::parse).collect();
                options.requests = counts?;
            }
            _ => return Err(format!("unknown option {name}").into()),
        }
    }
    if options.answer < 2 {
        return Err("--answer must be 2 at least".into());
    }
    Ok(options)
}

/// Seconds until every request has its first token, and until all have ended.
struct Times {
    prefill: f64,
    total: f64,
    /// The first request's answer.
    answer: Vec<u32>,
}

/// Tokens of an answer that are printed, to be compared with those of others.
const PRINTED_TOKENS: usize = 8;

/// Runs `count` requests that arrive together; no turn finds the prompts of an earlier one in the cache.
fn run(
    generator: &mut Generator,
    text: &TextModel,
    (count, turn): (usize, usize),
    (prompt, answer): (usize, usize),
) -> Result<Times, Failure> {
    let vocab = generator.info().vocab_size;
    let token = |request: usize, position: usize| ((request * 7_919 + position * 31 + turn) % vocab) as u32;
    let started = Instant::now();
    let mut first = None;
    for request in 0..count {
        let prompt = (0..prompt).map(|position| token(request, position)).collect();
        let mut generation = Generation::new(prompt, text.detokenizer(SpecialTokens::Skip));
        generation.sampling.temperature = 0.0;
        generation.max_tokens = Some(answer as u32);
        generation.ignore_eos = true;
        generation.salt = format!("{count} {turn}").into_bytes();
        let id = generator.add(generation)?;
        first.get_or_insert(id);
    }
    let (mut waiting, mut prefill, mut tokens) = (count, 0.0, Vec::new());
    while !generator.is_idle() {
        for progress in generator.step()?.progress {
            if progress.output_tokens == 1 && !progress.tokens.is_empty() {
                waiting -= 1;
            }
            if first == Some(progress.id) {
                tokens.extend(progress.tokens);
            }
        }
        if waiting == 0 && prefill == 0.0 {
            prefill = started.elapsed().as_secs_f64();
        }
    }
    Ok(Times {
        prefill,
        total: started.elapsed().as_secs_f64(),
        answer: tokens,
    })
}

fn main() -> Result<(), Failure> {
    let options = options()?;
    let text = TextModel::load(&options.model)?;
    let started = Instant::now();
    let backend = CpuGenerateBackend::load(&options.model, options.load)?;
    let load_ms = started.elapsed().as_secs_f64() * 1e3;
    let weight_bytes = backend.weight_bytes();
    let mut generator = Generator::new(Box::new(backend), GeneratorOptions::default());
    for &count in &options.requests {
        let mut best = Times {
            prefill: f64::INFINITY,
            total: f64::INFINITY,
            answer: Vec::new(),
        };
        let mut decode = f64::INFINITY;
        let warm_up = options.turn + options.rounds;
        run(&mut generator, &text, (count, warm_up), (options.prompt, 2))?;
        for round in 0..options.rounds {
            let lengths = (options.prompt, options.answer);
            let mut times = run(&mut generator, &text, (count, options.turn + round), lengths)?;
            times.answer.truncate(PRINTED_TOKENS);
            if round == 0 {
                best.answer = times.answer;
            }
            decode = decode.min(times.total - times.prefill);
            best.prefill = best.prefill.min(times.prefill);
            best.total = best.total.min(times.total);
        }
        let line = serde_json::json!({
            "requests": count,
            "prefill_tokens_per_second": (count * options.prompt) as f64 / best.prefill,
            // With several requests the first ones decode while the others are still read: then only the total means something.
            "decode_tokens_per_second": (count == 1).then(|| (options.answer - 1) as f64 / decode),
            "total_tokens_per_second": (count * options.answer) as f64 / best.total,
            "precision": options.load.precision.name(),
            "threads": options.load.threads,
            "load_ms": load_ms,
            "weight_bytes": weight_bytes,
            "first_tokens": best.answer,
        });
        println!("{line}");
    }
    Ok(())
}
