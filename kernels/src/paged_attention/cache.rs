//! The key-value cache of all layers in blocks; input: rows of new tokens and their slots, output: keys and values in the order the products read them.
//!
//! Layout of a layer: block, then key-value head, then its tokens in panels of 16, so that both products of attention use the tile of `gemm`:
//! keys transposed, `[block_tokens / 16, dims, 16 tokens]`, values `[dims / 16 rounded up, block_tokens, 16 dims]`.

use crate::error::{ShapeError, expect_at_most, expect_index, expect_len, expect_multiple, expect_nonzero};
use crate::exec::CpuExec;
use crate::gemm::share;
use crate::resident;
use crate::shared_mut::SharedMut;
use crate::simd::{PANEL, PanelElement};

/// Elements of one task of a write: about 10 µs, so that a decode step stays on one thread.
const TASK_ELEMENTS: usize = 16 * 1024;

/// Shape of one layer's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvLayout {
    /// Key-value heads.
    pub kv_heads: usize,
    /// Elements of one head.
    pub dims: usize,
    /// Tokens of one block, a multiple of 16.
    pub block_tokens: usize,
}

impl KvLayout {
    /// Elements of the keys of one head in one block.
    #[inline(always)]
    pub(super) fn key_len(&self) -> usize {
        self.block_tokens * self.dims
    }

    /// Elements of the values of one head in one block.
    #[inline(always)]
    pub(super) fn value_len(&self) -> usize {
        self.block_tokens * self.dims.next_multiple_of(PANEL)
    }

    fn check(&self, op: &'static str) -> Result<(), ShapeError> {
        expect_nonzero(op, "kv_heads", self.kv_heads)?;
        expect_nonzero(op, "dims", self.dims)?;
        expect_nonzero(op, "block_tokens", self.block_tokens)?;
        expect_multiple(op, "block_tokens", self.block_tokens, PANEL)
    }
}

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvStorage {
    /// 4 bytes an element.
    F32,
    /// 2 bytes an element: twice the context in the same memory, relative error up to 2^-9.
    Bf16,
}

impl KvStorage {
    fn bytes(self) -> usize {
        match self {
            Self::F32 => size_of::<f32>(),
            Self::Bf16 => size_of::<u16>(),
        }
    }
}

/// Keys and values of one layer.
#[derive(Debug)]
pub(super) struct Layer<T> {
    /// `[blocks, kv_heads, key_len]`.
    pub(super) keys: Vec<T>,
    /// `[blocks, kv_heads, value_len]`.
    pub(super) values: Vec<T>,
}

#[derive(Debug)]
pub(super) enum Layers {
    F32(Vec<Layer<f32>>),
    Bf16(Vec<Layer<u16>>),
}

/// Keys and values of all layers; a slot is `block * block_tokens + offset`.
#[derive(Debug)]
pub struct KvCache {
    layout: KvLayout,
    blocks: usize,
    pub(super) layers: Layers,
}

impl KvCache {
    /// Room for `blocks` blocks in each of `layers` layers, all zero and resident: taking it takes time, once.
    pub fn new(layers: usize, blocks: usize, layout: KvLayout, storage: KvStorage) -> Result<Self, ShapeError> {
        const OP: &str = "kv cache";
        layout.check(OP)?;
        expect_nonzero(OP, "layers", layers)?;
        expect_nonzero(OP, "blocks", blocks)?;
        let elements = [layout.block_tokens, layout.dims.saturating_add(PANEL), blocks, layers]
            .iter()
            .fold(layout.kv_heads, |product, &factor| product.saturating_mul(factor));
        // Two of up to four bytes each must not exceed what a pointer can span.
        expect_at_most(OP, "elements", elements, isize::MAX as usize / 8)?;
        let lengths = (
            blocks * layout.kv_heads * layout.key_len(),
            blocks * layout.kv_heads * layout.value_len(),
        );
        let layers = match storage {
            KvStorage::F32 => Layers::F32(of_layers(layers, lengths)),
            KvStorage::Bf16 => Layers::Bf16(of_layers(layers, lengths)),
        };
        Ok(Self { layout, blocks, layers })
    }

    /// Bytes that one block takes over all layers, to choose how many blocks fit the memory.
    pub fn bytes_per_block(layers: usize, layout: KvLayout, storage: KvStorage) -> usize {
        let elements = layout.key_len().saturating_add(layout.value_len());
        let of_layer = elements.saturating_mul(layout.kv_heads);
        of_layer.saturating_mul(layers).saturating_mul(storage.bytes())
    }

    /// Bytes of all blocks.
    pub fn bytes(&self) -> usize {
        self.blocks * Self::bytes_per_block(self.layers(), self.layout, self.storage())
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        match &self.layers {
            Layers::F32(layers) => layers.len(),
            Layers::Bf16(layers) => layers.len(),
        }
    }

    /// Blocks of each layer.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Shape of a layer.
    pub fn layout(&self) -> KvLayout {
        self.layout
    }

    /// How elements are stored.
    pub fn storage(&self) -> KvStorage {
        match self.layers {
            Layers::F32(_) => KvStorage::F32,
            Layers::Bf16(_) => KvStorage::Bf16,
        }
    }
}

fn of_layers<T: PanelElement>(layers: usize, (keys, values): (usize, usize)) -> Vec<Layer<T>> {
    let layer = |_| Layer {
        keys: resident::zeroed(keys),
        values: resident::zeroed(values),
    };
    (0..layers).map(layer).collect()
}

/// Rows that hold the keys and values of new tokens.
#[derive(Debug, Clone, Copy)]
pub struct KvRows<'a> {
    /// `[tokens, stride]`.
    pub rows: &'a [f32],
    /// Elements of a row.
    pub stride: usize,
    /// First column of the keys, `[kv_heads, dims]`.
    pub keys: usize,
    /// First column of the values, `[kv_heads, dims]`.
    pub values: usize,
}

impl KvRows<'_> {
    fn check(&self, layout: KvLayout, tokens: usize) -> Result<(), ShapeError> {
        let width = layout.kv_heads * layout.dims;
        let end = self.keys.max(self.values).saturating_add(width);
        expect_at_most(WRITE, "heads", end, self.stride)?;
        expect_len(WRITE, "rows", self.rows.len(), tokens.saturating_mul(self.stride))
    }
}

const WRITE: &str = "write kv";

/// Puts keys and values of each row into the slot of the row; of two rows with the same slot the later one stays.
pub fn write_kv(
    exec: &mut CpuExec,
    cache: &mut KvCache,
    layer: usize,
    rows: KvRows<'_>,
    slots: &[u32],
) -> Result<(), ShapeError> {
    rows.check(cache.layout, slots.len())?;
    expect_index(WRITE, "layer", layer, cache.layers())?;
    if let Some(&largest) = slots.iter().max() {
        expect_index(
            WRITE,
            "slot",
            largest as usize,
            cache.blocks * cache.layout.block_tokens,
        )?;
    }
    let layout = cache.layout;
    match &mut cache.layers {
        Layers::F32(layers) => write(exec, layout, &mut layers[layer], rows, slots),
        Layers::Bf16(layers) => write(exec, layout, &mut layers[layer], rows, slots),
    }
    Ok(())
}

fn write<T: PanelElement>(exec: &mut CpuExec, layout: KvLayout, layer: &mut Layer<T>, rows: KvRows<'_>, slots: &[u32]) {
    let KvLayout { kv_heads, dims, .. } = layout;
    let tasks = (slots.len() * kv_heads * dims).div_ceil(TASK_ELEMENTS).min(kv_heads);
    let (keys, values) = (SharedMut::new(&mut layer.keys), SharedMut::new(&mut layer.values));
    exec.team.run(tasks, &|task| {
        for (token, &slot) in slots.iter().enumerate() {
            let row = &rows.rows[token * rows.stride..][..rows.stride];
            let (block, offset) = (slot as usize / layout.block_tokens, slot as usize % layout.block_tokens);
            for head in share(kv_heads, tasks, task) {
                let at = block * kv_heads + head;
                // SAFETY: each head belongs to one task, which uses one of its blocks at a time.
                let (keys, values) = unsafe {
                    (
                        keys.part(at * layout.key_len()..(at + 1) * layout.key_len()),
                        values.part(at * layout.value_len()..(at + 1) * layout.value_len()),
                    )
                };
                put_key(keys, offset, &row[rows.keys + head * dims..][..dims]);
                put_value(
                    values,
                    (offset, layout.block_tokens),
                    &row[rows.values + head * dims..][..dims],
                );
            }
        }
    });
}

/// One key into the keys of a head and block.
fn put_key<T: PanelElement>(keys: &mut [T], offset: usize, key: &[f32]) {
    let at = offset / PANEL * key.len() * PANEL + T::place(offset % PANEL);
    for (slot, x) in keys[at..].iter_mut().step_by(PANEL).zip(key) {
        *slot = T::narrow(*x);
    }
}

/// One value into the values of a head and block.
fn put_value<T: PanelElement>(values: &mut [T], (offset, block_tokens): (usize, usize), value: &[f32]) {
    for (panel, value) in value.chunks(PANEL).enumerate() {
        let slots = &mut values[(panel * block_tokens + offset) * PANEL..][..PANEL];
        for (column, x) in value.iter().enumerate() {
            slots[T::place(column)] = T::narrow(*x);
        }
    }
}
