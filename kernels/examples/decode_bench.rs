//! Speed of a decode step's kernels; input: threads (first argument, default 2), output: µs, GB/s and the share of the memory's read speed per case.
//!
//! `cargo run --release -p kernels --example decode_bench -- 2`
//! Each case walks through as many matrices (or blocks) as fill 256 MiB, so that none is found in a cache.

use std::hint::black_box;
use std::time::{Duration, Instant};

use kernels::gemm::{Epilogue, PackedWeights, Storage, gemm};
use kernels::gemm_i4::{GroupSize, PackedWeightsI4, Scheme, gemm_i4};
use kernels::gemm_i8::{PackedWeightsI8, gemm_i8};
use kernels::paged_attention::{KvCache, KvLayout, KvRows, KvStorage, PagedBatch, Span, paged_attention, write_kv};
use kernels::{CpuExec, Team};

/// Memory each case walks through: several times the largest cache of the machines this runs on.
const FOOTPRINT_BYTES: usize = 256 << 20;
/// Memory of one call when plain reading is measured: about the size of a matrix.
const READ_BYTES: usize = 8 << 20;
/// Time per case.
const CASE_TIME: Duration = Duration::from_millis(600);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).map_or(Ok(2), |text| text.parse())?;
    let read = read_speed(threads)?;
    println!("{threads} threads, memory read at {read:.1} GB/s");
    let mut exec = CpuExec::new(threads)?;
    for (depth, columns) in [(768, 2_048), (2_048, 768), (2_048, 11_264)] {
        for weights in ["f32", "bf16", "int8", "int4"] {
            let matrices = Matrices::new(&mut exec, weights, depth, columns)?;
            for rows in [1, 2, 4, 8, 16, 48] {
                report(read, &matrices.measure(&mut exec, rows)?);
            }
        }
    }
    for storage in [KvStorage::F32, KvStorage::Bf16] {
        for (sequences, context) in [(1, 256), (1, 4_096), (16, 1_024)] {
            report(read, &attend(&mut exec, storage, (sequences, context))?);
        }
    }
    Ok(())
}

/// One line of the table.
struct Line {
    name: String,
    bytes: usize,
    flops: usize,
    time: Duration,
}

fn report(read: f64, line: &Line) {
    let seconds = line.time.as_secs_f64();
    let speed = line.bytes as f64 / seconds / 1e9;
    println!(
        "{:<40} {:>9.1} µs {:>7.1} GB/s {:>5.0} % of read {:>7.1} GFLOP/s",
        line.name,
        seconds * 1e6,
        speed,
        100.0 * speed / read,
        line.flops as f64 / seconds / 1e9
    );
}

/// Shortest time of one call of `step`, whose argument goes round `0..count`; the shortest is what other processes disturb least.
fn shortest<E>(count: usize, mut step: impl FnMut(usize) -> Result<(), E>) -> Result<Duration, E> {
    let mut shortest = Duration::MAX;
    let start = Instant::now();
    while start.elapsed() < CASE_TIME {
        for index in 0..count {
            let call = Instant::now();
            step(index)?;
            shortest = shortest.min(call.elapsed());
        }
    }
    Ok(shortest)
}

/// GB/s of plain reading on all threads.
fn read_speed(threads: usize) -> Result<f64, Box<dyn std::error::Error>> {
    const PIECE_WORDS: usize = READ_BYTES / size_of::<u64>();
    let words = vec![1_u64; FOOTPRINT_BYTES / size_of::<u64>()];
    let mut team = Team::new(threads)?;
    let time = shortest(words.len() / PIECE_WORDS, |piece| {
        let words = &words[piece * PIECE_WORDS..][..PIECE_WORDS];
        team.run(threads * 4, &|task| {
            let part = words.len() / (threads * 4);
            let words = &words[task * part..][..part];
            black_box(sum_of_quarters(words));
        });
        Ok::<(), std::convert::Infallible>(())
    })?;
    Ok(READ_BYTES as f64 / time.as_secs_f64() / 1e9)
}

/// Reads four streams at once: one alone keeps too few cache lines under way.
fn sum_of_quarters(words: &[u64]) -> [u64; 4] {
    let quarter = words.len() / 4;
    let (front, back) = words.split_at(2 * quarter);
    let (first, second) = front.split_at(quarter);
    let (third, fourth) = back.split_at(quarter);
    let mut sums = [0_u64; 4];
    for (((a, b), c), d) in first.iter().zip(second).zip(third).zip(fourth) {
        for (sum, word) in sums.iter_mut().zip([a, b, c, d]) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums
}

enum Packed {
    Float(PackedWeights),
    Int8(PackedWeightsI8),
    Int4(PackedWeightsI4),
}

impl Packed {
    fn bytes(&self) -> usize {
        match self {
            Self::Float(weights) => weights.bytes(),
            Self::Int8(weights) => weights.bytes(),
            Self::Int4(weights) => weights.bytes(),
        }
    }
}

struct Matrices {
    name: String,
    depth: usize,
    columns: usize,
    bytes: usize,
    list: Vec<Packed>,
}

impl Matrices {
    fn new(
        exec: &mut CpuExec,
        weights: &str,
        depth: usize,
        columns: usize,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let values = ramp(depth * columns);
        let bias = vec![0.0; columns];
        let mut pack = || -> Result<Packed, kernels::ShapeError> {
            Ok(match weights {
                "f32" => Packed::Float(PackedWeights::pack(exec, &values, &bias, depth, Storage::F32)?),
                "bf16" => Packed::Float(PackedWeights::pack(exec, &values, &bias, depth, Storage::Bf16)?),
                "int8" => Packed::Int8(PackedWeightsI8::pack(exec, &values, &bias, depth)?),
                _ => {
                    let groups = (GroupSize::largest_for(depth), Scheme::Asymmetric);
                    Packed::Int4(PackedWeightsI4::pack(exec, &values, &bias, depth, groups)?)
                }
            })
        };
        let mut list = vec![pack()?];
        let bytes = list[0].bytes();
        while list.len() * bytes < FOOTPRINT_BYTES {
            list.push(pack()?);
        }
        Ok(Self {
            name: format!("gemm {weights} {depth}x{columns}"),
            depth,
            columns,
            bytes,
            list,
        })
    }

    fn measure(&self, exec: &mut CpuExec, rows: usize) -> Result<Line, kernels::ShapeError> {
        let a = ramp(rows * self.depth);
        let mut out = vec![0.0; rows * self.columns];
        let time = shortest(self.list.len(), |index| match &self.list[index] {
            Packed::Float(weights) => gemm(exec, &a, weights, Epilogue::Bias, &mut out),
            Packed::Int8(weights) => gemm_i8(exec, &a, weights, Epilogue::Bias, &mut out),
            Packed::Int4(weights) => gemm_i4(exec, &a, weights, Epilogue::Bias, &mut out),
        })?;
        Ok(Line {
            name: format!("{}, {rows} rows", self.name),
            bytes: self.bytes,
            flops: 2 * rows * self.depth * self.columns,
            time,
        })
    }
}

/// Decode attention of 32 heads in groups of 4 with 128 dims.
fn attend(
    exec: &mut CpuExec,
    storage: KvStorage,
    (sequences, context): (usize, usize),
) -> Result<Line, kernels::ShapeError> {
    let layout = KvLayout {
        kv_heads: 8,
        dims: 128,
        block_tokens: 16,
    };
    let heads = 32;
    let blocks = context / layout.block_tokens * sequences;
    let bytes = blocks * KvCache::bytes_per_block(1, layout, storage);
    let layers = FOOTPRINT_BYTES.div_ceil(bytes);
    let mut cache = KvCache::new(layers, blocks, layout, storage)?;
    let width = layout.kv_heads * layout.dims;
    let rows = ramp(context * sequences * width);
    let slots: Vec<u32> = (0..(context * sequences) as u32).collect();
    for layer in 0..layers {
        let rows = KvRows {
            rows: &rows,
            stride: width,
            keys: 0,
            values: 0,
        };
        write_kv(exec, &mut cache, layer, rows, &slots)?;
    }
    let ids: Vec<u32> = (0..blocks as u32).collect();
    let spans: Vec<Span<'_>> = ids
        .chunks_exact(blocks / sequences)
        .enumerate()
        .map(|(index, blocks)| Span {
            query_start: index as u32,
            query_len: 1,
            context_len: context as u32,
            blocks,
        })
        .collect();
    let qkv = ramp(sequences * heads * layout.dims);
    let mut out = vec![0.0; qkv.len()];
    let time = shortest(layers, |layer| {
        let batch = PagedBatch {
            layer,
            heads,
            qkv: &qkv,
            stride: heads * layout.dims,
            spans: &spans,
            window: None,
            scale: 0.09,
        };
        paged_attention(exec, &cache, &batch, &mut out)
    })?;
    Ok(Line {
        name: format!("attention {storage:?}, {sequences} sequences of {context}"),
        bytes,
        flops: 4 * heads * layout.dims * context * sequences,
        time,
    })
}

/// Values in -1..1 without a pattern that a processor could gain from.
fn ramp(len: usize) -> Vec<f32> {
    let value = |index: usize| (index * 7_919 % 2_003) as f32 / 1_001.5 - 1.0;
    (0..len).map(value).collect()
}
