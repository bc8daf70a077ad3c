//! Paged attention against its reference; input: sequences in scattered blocks of a poisoned cache, output: pass or the element that is wrong.

use super::*;
use crate::gemm::bf16_from_f32;
use crate::testing::{all_execs, assert_close, random};
use reference::Shape;

/// New tokens and context of one sequence.
type Lengths = (u32, u32);

/// Sequences with their keys and values in a cache.
struct Case {
    shape: Shape,
    layout: KvLayout,
    storage: KvStorage,
    lengths: Vec<Lengths>,
    /// Keys and values of each sequence, `[context, 2, kv_heads, dims]`.
    rows: Vec<Vec<f32>>,
    blocks: Vec<Vec<u32>>,
    /// `[tokens, stride]`.
    qkv: Vec<f32>,
}

impl Case {
    fn new(shape: Shape, block_tokens: usize, storage: KvStorage, lengths: &[Lengths]) -> Self {
        let layout = KvLayout {
            kv_heads: shape.kv_heads,
            dims: shape.dims,
            block_tokens,
        };
        let width = 2 * shape.kv_heads * shape.dims;
        let tokens: u32 = lengths.iter().map(|(queries, _)| queries).sum();
        let rows = lengths
            .iter()
            .enumerate()
            .map(|(index, &(_, context))| random(context as usize * width, index as u64 + 10))
            .collect();
        // Neighbours in a sequence lie far apart in the cache.
        let mut free: Vec<u32> = (0..Self::block_count(block_tokens, lengths)).rev().collect();
        free.sort_by_key(|block| block % 3);
        let take = |&(_, context): &Lengths| free.split_off(free.len() - (context as usize).div_ceil(block_tokens));
        Self {
            shape,
            layout,
            storage,
            lengths: lengths.to_vec(),
            rows,
            blocks: lengths.iter().map(take).collect(),
            // Larger than unit scale, so that the softmax is far from uniform.
            qkv: random(tokens as usize * Self::stride(shape), 1)
                .iter()
                .map(|x| x * 3.0)
                .collect(),
        }
    }

    fn block_count(block_tokens: usize, lengths: &[Lengths]) -> u32 {
        let blocks = lengths
            .iter()
            .map(|&(_, context)| context.div_ceil(block_tokens as u32));
        blocks.sum::<u32>() + 1
    }

    /// Three more columns than queries, keys and values need.
    fn stride(shape: Shape) -> usize {
        (shape.heads + 2 * shape.kv_heads) * shape.dims + 3
    }

    /// A cache of two layers in which every slot that was not written is NaN.
    fn cache(&self, exec: &mut CpuExec) -> KvCache {
        let blocks = Self::block_count(self.layout.block_tokens, &self.lengths) as usize;
        let mut cache = KvCache::new(2, blocks, self.layout, self.storage).unwrap();
        let width = self.layout.kv_heads * self.layout.dims;
        let mut write = |rows: &[f32], slots: &[u32]| {
            let rows = KvRows {
                rows,
                stride: 2 * width,
                keys: 0,
                values: width,
            };
            write_kv(exec, &mut cache, 1, rows, slots).unwrap();
        };
        let slots: Vec<u32> = (0..(blocks * self.layout.block_tokens) as u32).collect();
        write(&vec![f32::NAN; slots.len() * 2 * width], &slots);
        for (rows, blocks) in self.rows.iter().zip(&self.blocks) {
            let tokens = (rows.len() / (2 * width)) as u32;
            let block_tokens = self.layout.block_tokens as u32;
            let slot = |token: u32| blocks[(token / block_tokens) as usize] * block_tokens + token % block_tokens;
            write(rows, &(0..tokens).map(slot).collect::<Vec<_>>());
        }
        cache
    }

    /// Runs all sequences at once; blocks wholly before the window are made unusable.
    fn run(&self, exec: &mut CpuExec) -> Vec<f32> {
        let cache = self.cache(exec);
        let mut blocks = self.blocks.clone();
        for (blocks, &(queries, context)) in blocks.iter_mut().zip(&self.lengths) {
            let first = self
                .shape
                .window
                .map_or(0, |window| (context - queries + 1).saturating_sub(window));
            blocks[..first as usize / self.layout.block_tokens].fill(u32::MAX);
        }
        let mut spans = Vec::new();
        let mut query_start = 0;
        for (blocks, &(query_len, context_len)) in blocks.iter().zip(&self.lengths) {
            spans.push(Span {
                query_start,
                query_len,
                context_len,
                blocks,
            });
            query_start += query_len;
        }
        self.run_spans(exec, &cache, &spans)
    }

    fn run_spans(&self, exec: &mut CpuExec, cache: &KvCache, spans: &[Span<'_>]) -> Vec<f32> {
        let stride = Self::stride(self.shape);
        let batch = PagedBatch {
            layer: 1,
            heads: self.shape.heads,
            qkv: &self.qkv,
            stride,
            spans,
            window: self.shape.window,
            scale: self.shape.scale,
        };
        let mut out = vec![f32::NAN; self.qkv.len() / stride * self.shape.heads * self.shape.dims];
        paged_attention(exec, cache, &batch, &mut out).unwrap();
        out
    }

    fn exact(&self) -> Vec<f64> {
        let width = self.layout.kv_heads * self.layout.dims;
        let mut queries = self
            .qkv
            .chunks_exact(Self::stride(self.shape))
            .map(|row| &row[..self.shape.heads * self.shape.dims]);
        let mut out = Vec::new();
        for (rows, &(count, _)) in self.rows.iter().zip(&self.lengths) {
            let stored: Vec<f32> = rows.iter().map(|x| self.stored(*x)).collect();
            let part = |part| {
                let rows = stored.chunks_exact(2 * width);
                rows.flat_map(move |row| &row[part * width..][..width])
                    .copied()
                    .collect::<Vec<f32>>()
            };
            let queries = queries.by_ref().take(count as usize).collect::<Vec<_>>().concat();
            out.append(&mut reference::attention(self.shape, &queries, &part(0), &part(1)));
        }
        out
    }

    fn stored(&self, x: f32) -> f32 {
        match self.storage {
            KvStorage::F32 => x,
            KvStorage::Bf16 => f32::from_bits(u32::from(bf16_from_f32(x)) << 16),
        }
    }

    fn check(&self) {
        let exact = self.exact();
        for mut exec in all_execs() {
            assert_close(&self.run(&mut exec), &exact, 1e-5);
        }
    }
}

fn shape(heads: usize, kv_heads: usize, dims: usize, window: Option<u32>) -> Shape {
    Shape {
        heads,
        kv_heads,
        dims,
        window,
        scale: 1.0 / (dims as f32).sqrt(),
    }
}

#[test]
fn matches_the_reference_for_mixed_batches() {
    let lengths = [
        (1, 1),
        (0, 3),
        (33, 33),
        (1, 700),
        (40, 1_100),
        (5, 516),
        (1, 512),
        (1, 513),
    ];
    for storage in [KvStorage::F32, KvStorage::Bf16] {
        for (heads, kv_heads, dims) in [(8, 4, 32), (4, 4, 16), (7, 1, 20), (64, 1, 5)] {
            Case::new(shape(heads, kv_heads, dims, None), 16, storage, &lengths).check();
        }
        Case::new(shape(8, 2, 64, Some(100)), 32, storage, &lengths).check();
    }
}

#[test]
fn one_long_context_is_split_over_threads() {
    for window in [None, Some(1_000)] {
        Case::new(shape(8, 2, 64, window), 16, KvStorage::F32, &[(1, 3_000)]).check();
    }
}

#[test]
fn bits_do_not_depend_on_chunks_batch_or_threads() {
    let width = 4 * 32;
    for window in [None, Some(90)] {
        let shape = shape(4, 2, 32, window);
        let whole = Case::new(shape, 16, KvStorage::Bf16, &[(1_300, 1_300), (1_100, 1_100)]);
        let mut alone = CpuExec::new(1).unwrap();
        let expected = whole.run(&mut alone);
        for threads in [1, 2, 3] {
            let mut exec = CpuExec::new(threads).unwrap();
            assert_eq!(whole.run(&mut exec), expected);
            // Each token of the first sequence's end by itself, so that contexts are split over threads.
            let cache = whole.cache(&mut exec);
            for token in 1_290..1_300 {
                let span = Span {
                    query_start: token,
                    query_len: 1,
                    context_len: token + 1,
                    blocks: &whole.blocks[0],
                };
                let out = whole.run_spans(&mut exec, &cache, &[span]);
                let row = token as usize * width..(token as usize + 1) * width;
                assert_eq!(out[row.clone()], expected[row.clone()]);
                assert!(out[..row.start].iter().all(|x| x.is_nan()));
            }
            // A chunk of the middle, beside a decode row of the other sequence.
            let chunk = Span {
                query_start: 700,
                query_len: 600,
                context_len: 1_300,
                blocks: &whole.blocks[0],
            };
            let decode = Span {
                query_start: 1_300 + 1_000,
                query_len: 1,
                context_len: 1_001,
                blocks: &whole.blocks[1],
            };
            let spans = [chunk, decode];
            let out = whole.run_spans(&mut exec, &cache, &spans);
            assert_eq!(out[700 * width..1_300 * width], expected[700 * width..1_300 * width]);
            assert_eq!(
                out[2_300 * width..2_301 * width],
                expected[2_300 * width..2_301 * width]
            );
        }
    }
}

#[test]
fn a_broken_query_gives_nan_and_not_a_number_that_looks_right() {
    for mut exec in all_execs() {
        let mut case = Case::new(shape(1, 1, 16, None), 16, KvStorage::F32, &[(1, 40)]);
        case.qkv[3] = f32::NAN;
        assert!(case.run(&mut exec).iter().all(|x| x.is_nan()));
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(96))]
    #[test]
    fn matches_the_reference_for_any_batch(
        lengths in proptest::collection::vec((0..60_u32, 0..200_u32), 0..6),
        kv_heads in 1..4_usize,
        group in 1..9_usize,
        dims in 1..40_usize,
        window in proptest::option::of(1..150_u32),
        wide_blocks in proptest::bool::ANY,
        bf16 in proptest::bool::ANY,
    ) {
        let lengths: Vec<Lengths> = lengths.iter().map(|&(queries, before)| (queries, queries + before)).collect();
        let storage = if bf16 { KvStorage::Bf16 } else { KvStorage::F32 };
        let block_tokens = if wide_blocks { 48 } else { 16 };
        Case::new(shape(kv_heads * group, kv_heads, dims, window), block_tokens, storage, &lengths).check();
    }
}

#[test]
fn sizes_are_told() {
    let layout = KvLayout {
        kv_heads: 2,
        dims: 20,
        block_tokens: 32,
    };
    let cache = KvCache::new(3, 5, layout, KvStorage::Bf16).unwrap();
    // Values are padded from 20 to 32 elements.
    assert_eq!(
        KvCache::bytes_per_block(3, layout, KvStorage::Bf16),
        3 * 2 * 32 * (20 + 32) * 2
    );
    assert_eq!(cache.bytes(), 5 * 3 * 2 * 32 * (20 + 32) * 2);
    assert_eq!((cache.layers(), cache.blocks()), (3, 5));
    assert_eq!((cache.layout(), cache.storage()), (layout, KvStorage::Bf16));
}

#[test]
fn impossible_caches_are_refused() {
    let layout = KvLayout {
        kv_heads: 1,
        dims: 8,
        block_tokens: 16,
    };
    let new = |layers, blocks, layout| KvCache::new(layers, blocks, layout, KvStorage::F32);
    assert!(new(1, 1, layout).is_ok());
    assert!(new(0, 1, layout).is_err() && new(1, 0, layout).is_err());
    assert!(new(1, usize::MAX / 64, layout).is_err());
    for (kv_heads, dims, block_tokens) in [(0, 8, 16), (1, 0, 16), (1, 8, 0)] {
        let layout = KvLayout {
            kv_heads,
            dims,
            block_tokens,
        };
        assert!(new(1, 1, layout).is_err());
    }
    let layout = KvLayout {
        block_tokens: 24,
        ..layout
    };
    let error = new(1, 1, layout).unwrap_err();
    assert_eq!(error.to_string(), "kv cache: block_tokens 24 is not a multiple of 16");
}

#[test]
fn wrong_writes_are_refused() {
    let layout = KvLayout {
        kv_heads: 2,
        dims: 4,
        block_tokens: 16,
    };
    let mut exec = CpuExec::new(1).unwrap();
    let mut cache = KvCache::new(1, 2, layout, KvStorage::F32).unwrap();
    let rows = KvRows {
        rows: &[0.0; 40],
        stride: 20,
        keys: 4,
        values: 12,
    };
    write_kv(&mut exec, &mut cache, 0, rows, &[31, 0]).unwrap();
    assert!(write_kv(&mut exec, &mut cache, 1, rows, &[31, 0]).is_err());
    assert!(write_kv(&mut exec, &mut cache, 0, rows, &[32, 0]).is_err());
    assert!(write_kv(&mut exec, &mut cache, 0, rows, &[1]).is_err());
    assert!(write_kv(&mut exec, &mut cache, 0, KvRows { values: 13, ..rows }, &[1, 0]).is_err());
}

#[test]
fn wrong_batches_are_refused() {
    let layout = KvLayout {
        kv_heads: 2,
        dims: 4,
        block_tokens: 16,
    };
    let mut exec = CpuExec::new(1).unwrap();
    let cache = KvCache::new(1, 4, layout, KvStorage::F32).unwrap();
    fn batch<'a>(spans: &'a [Span<'a>]) -> PagedBatch<'a> {
        PagedBatch {
            layer: 0,
            heads: 4,
            qkv: &[0.0; 3 * 40],
            stride: 40,
            spans,
            window: None,
            scale: 0.5,
        }
    }
    let span = |query_start, query_len, context_len, blocks| Span {
        query_start,
        query_len,
        context_len,
        blocks,
    };
    let mut out = [0.0; 48];
    let mut refused = |batch: PagedBatch<'_>| paged_attention(&mut exec, &cache, &batch, &mut out).is_err();
    let good = [span(0, 1, 20, &[3, 1]), span(2, 1, 1, &[0])];
    assert!(!refused(batch(&good)));
    assert!(refused(PagedBatch {
        layer: 1,
        ..batch(&good)
    }));
    assert!(refused(PagedBatch {
        heads: 3,
        ..batch(&good)
    }));
    assert!(refused(PagedBatch {
        heads: 0,
        ..batch(&good)
    }));
    assert!(refused(PagedBatch {
        stride: 39,
        ..batch(&good)
    }));
    assert!(refused(PagedBatch {
        window: Some(0),
        ..batch(&good)
    }));
    assert!(refused(batch(&[span(0, 2, 20, &[3, 1]), span(1, 1, 1, &[0])])));
    assert!(refused(batch(&[span(2, 2, 20, &[3, 1])])));
    assert!(refused(batch(&[span(0, 3, 2, &[0])])));
    assert!(refused(batch(&[span(0, 1, 17, &[0])])));
    assert!(refused(batch(&[span(0, 1, 17, &[0, 4])])));
}
