//! What constraints cost. Input: a decoder's folder. Output: time to compile a grammar, to copy it, and the share of masks in the steps of constrained
//! answers that run together.
//! Run: cargo run --release -p engine --example guided_bench -- models/nano-translator

use std::path::PathBuf;
use std::time::{Duration, Instant};

use engine::generate::sampling::SamplingParams;
use engine::generate::{
    AddSpecial, CpuGenerateBackend, GenerateOptions, Generation, Generator, GeneratorOptions, Grammar, SpecialTokens,
    TextModel,
};

/// Answers that run together.
const ANSWERS: u64 = 16;
const SCHEMA: &str = r#"{"type":"object","properties":{"name":{"type":"string","maxLength":40},"kind":{"enum":["a","b","c"]},
    "numbers":{"type":"array","items":{"type":"integer","minimum":0,"maximum":9999},"maxItems":8}},
    "required":["name","kind","numbers"],"additionalProperties":false}"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder: PathBuf = std::env::args_os()
        .nth(1)
        .ok_or("the folder of a decoder is missing")?
        .into();
    let text = TextModel::load(&folder)?;
    let prompt = text.encode("def f(a: int) -> int:", AddSpecial::Yes)?;
    let mut generator = Generator::new(
        Box::new(CpuGenerateBackend::load(&folder, GenerateOptions::default())?),
        GeneratorOptions::default(),
    );
    // The vocabulary's tree is made for the first grammar.
    let began = Instant::now();
    text.constraint(&Grammar::Regex("a".to_owned()))?;
    println!("vocabulary of {} tokens: {:?}", text.vocab_size(), began.elapsed());
    for (name, grammar) in [
        ("any JSON object", Grammar::JsonObject),
        ("JSON of a schema", Grammar::JsonSchema(SCHEMA.to_owned())),
        ("expression", Grammar::Regex("([a-z]{1,8} ){2,40}[0-9]+".to_owned())),
        (
            "choice of 3",
            Grammar::Choice(["red", "redder", "green and blue"].map(str::to_owned).to_vec()),
        ),
    ] {
        let began = Instant::now();
        text.constraint(&grammar)?;
        let compiled = began.elapsed();
        let began = Instant::now();
        let constraint = text.constraint(&grammar)?;
        let copied = began.elapsed();
        for seed in 0..ANSWERS {
            generator.add(Generation {
                constraint: Some(constraint.clone()),
                max_tokens: Some(200),
                sampling: SamplingParams {
                    seed,
                    ..SamplingParams::default()
                },
                ..Generation::new(prompt.clone(), text.detokenizer(SpecialTokens::Skip))
            })?;
        }
        let (mut masks, mut longest, mut tokens, mut busy) = (Duration::ZERO, Duration::ZERO, 0_u32, Duration::ZERO);
        while !generator.is_idle() {
            let step = generator.step()?;
            masks += step.stats.masking;
            busy += step.stats.busy;
            longest = longest.max(step.stats.masking);
            tokens += step
                .progress
                .iter()
                .map(|progress| progress.tokens.len() as u32)
                .sum::<u32>();
        }
        println!(
            "{name:17} compiled in {compiled:9.1?}, copied in {copied:8.1?}; {tokens:5} tokens, {:8.1?} a mask, at most {longest:8.1?} a step of {ANSWERS}, {:4.1} % of the steps",
            masks / tokens.max(1),
            100.0 * masks.as_secs_f64() / busy.as_secs_f64(),
        );
    }
    Ok(())
}
