//! Where an encoder layer's time goes; input: threads (first argument, default 2), output: µs and GFLOP/s of each kernel at MiniLM's sizes.
//!
//! `cargo run --release -p kernels --example encoder_bench -- 2`
//! Weights and activations stay in the caches, as they do in a small model: 1.8 MB a layer in int8.

use std::time::{Duration, Instant};

use kernels::attention::{Heads, attention};
use kernels::gemm::{Epilogue, PackedWeights, Storage, gemm};
use kernels::gemm_i8::{PackedWeightsI8, gemm_i8};
use kernels::layernorm::{LayerNorm, layernorm};
use kernels::{CpuExec, ShapeError};

const WIDTH: usize = 384;
const HEADS: usize = 12;
/// Name, depth and columns of each product of a layer, and whether it ends in GELU or in a residual.
const PRODUCTS: [(&str, usize, usize, Last); 4] = [
    ("qkv", WIDTH, 3 * WIDTH, Last::Bias),
    ("attention out", WIDTH, WIDTH, Last::Residual),
    ("up", WIDTH, 4 * WIDTH, Last::Gelu),
    ("down", 4 * WIDTH, WIDTH, Last::Residual),
];
/// Time per case.
const CASE_TIME: Duration = Duration::from_millis(250);

#[derive(Clone, Copy)]
enum Last {
    Bias,
    Gelu,
    Residual,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).map_or(Ok(2), |text| text.parse())?;
    let mut exec = CpuExec::new(threads)?;
    for (texts, tokens) in [(1, 16), (32, 16), (1, 256), (8, 256)] {
        println!("{texts} texts of {tokens} tokens");
        let [whole, small] = products(&mut exec, texts * tokens)?;
        let rest = others(&mut exec, texts, tokens)?;
        println!("layer: {:.1} µs in f32, {:.1} µs in int8", whole + rest, small + rest);
    }
    Ok(())
}

/// µs of all products of a layer in f32 and in int8.
fn products(exec: &mut CpuExec, rows: usize) -> Result<[f64; 2], ShapeError> {
    let mut totals = [0.0; 2];
    for (name, depth, columns, last) in PRODUCTS {
        let weight = ramp(depth * columns);
        let bias = vec![0.1; columns];
        let whole = PackedWeights::pack(exec, &weight, &bias, depth, Storage::F32)?;
        let small = PackedWeightsI8::pack(exec, &weight, &bias, depth)?;
        let (a, residual) = (ramp(rows * depth), ramp(rows * columns));
        let mut out = vec![0.0; rows * columns];
        let epilogue = match last {
            Last::Bias => Epilogue::Bias,
            Last::Gelu => Epilogue::BiasGelu,
            Last::Residual => Epilogue::BiasResidual(&residual),
        };
        let flops = 2 * rows * depth * columns;
        totals[0] += report(&format!("f32 {name}"), flops, || {
            gemm(exec, &a, &whole, epilogue, &mut out)
        })?;
        totals[1] += report(&format!("int8 {name}"), flops, || {
            gemm_i8(exec, &a, &small, epilogue, &mut out)
        })?;
    }
    Ok(totals)
}

/// µs of attention and of both normalizations.
fn others(exec: &mut CpuExec, texts: usize, tokens: usize) -> Result<f64, ShapeError> {
    let rows = texts * tokens;
    let heads = Heads {
        count: HEADS,
        dims: WIDTH / HEADS,
    };
    let qkv = ramp(rows * 3 * WIDTH);
    let ends: Vec<u32> = (0..=texts).map(|text| (text * tokens) as u32).collect();
    let mut out = vec![0.0; rows * WIDTH];
    let attention = report("attention", 4 * rows * tokens * WIDTH, || {
        attention(exec, heads, &qkv, &ends, &mut out)
    })?;
    let norm = LayerNorm::new(vec![1.0; WIDTH], vec![0.0; WIDTH], 1e-12)?;
    let layernorm = report("layernorm", 8 * rows * WIDTH, || layernorm(exec, &norm, None, &mut out))?;
    Ok(attention + 2.0 * layernorm)
}

/// Prints one line; the shortest time of a call in µs.
fn report(name: &str, flops: usize, mut call: impl FnMut() -> Result<(), ShapeError>) -> Result<f64, ShapeError> {
    let mut shortest = Duration::MAX;
    let start = Instant::now();
    while start.elapsed() < CASE_TIME {
        let one = Instant::now();
        call()?;
        shortest = shortest.min(one.elapsed());
    }
    let micros = shortest.as_secs_f64() * 1e6;
    println!(
        "{name:<20} {micros:>9.1} µs {:>7.1} GFLOP/s",
        flops as f64 / micros / 1e3
    );
    Ok(micros)
}

/// Values in -1..1 without a pattern that a processor could gain from.
fn ramp(len: usize) -> Vec<f32> {
    let value = |index: usize| (index * 7_919 % 2_003) as f32 / 1_001.5 - 1.0;
    (0..len).map(value).collect()
}
