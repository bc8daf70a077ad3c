//! Eight f32 lanes as a trait, so that each kernel is written once; input: an [`Isa`], output: the kernel compiled for it.
//!
//! A value of a `Simd` type is the proof that the processor has the instructions: it is made only after detection.

use crate::gemm::bf16_from_f32;

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
pub(crate) mod math;
pub(crate) mod portable;

/// Columns of one weight panel: two vectors of eight lanes.
pub(crate) const PANEL: usize = 16;

/// The instruction sets the CPU kernels are compiled for; AVX-512, VNNI and NEON would each be one more variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust that the compiler vectorizes for the target's baseline.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
}

impl Isa {
    /// The best one this processor runs.
    pub fn detect() -> Self {
        Self::Avx2.or_portable()
    }

    /// Itself when the processor runs it, else the portable one.
    pub(crate) fn or_portable(self) -> Self {
        #[cfg(target_arch = "x86_64")]
        if self == Self::Avx2 && avx2::Avx2::detect().is_some() {
            return Self::Avx2;
        }
        Self::Portable
    }

    /// Its name, for logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
        }
    }

    /// Runs a kernel compiled for this instruction set.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => match avx2::Avx2::detect() {
                Some(simd) => simd.run(kernel),
                None => kernel.run(portable::Portable),
            },
            _ => kernel.run(portable::Portable),
        }
    }
}

/// A kernel written over [`Simd`]; `run` and all it calls must be `#[inline(always)]` to be compiled with the right features.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Vector arithmetic of one instruction set.
pub(crate) trait Simd: Copy + Send + Sync {
    /// Eight f32.
    type V: Copy;
    /// Eight i32.
    type I32: Copy;
    /// Sixteen i16.
    type I16: Copy;
    /// Thirty-two bytes.
    type Bytes: Copy;

    fn splat(self, value: f32) -> Self::V;
    /// # Safety
    /// `from` must be valid for reading 8 f32.
    unsafe fn load(self, from: *const f32) -> Self::V;
    /// # Safety
    /// `to` must be valid for writing 8 f32.
    unsafe fn store(self, to: *mut f32, value: Self::V);
    /// Asks for a cache line that is needed soon; any address will do.
    fn prefetch(self, line: *const u8);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    fn abs(self, a: Self::V) -> Self::V;
    /// `a * b + c`; fused where the hardware fuses.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Nearest whole number, ties to even.
    fn round(self, a: Self::V) -> Self::V;
    /// `a * 2^exponent` for a positive normal `a` and a whole number; the result must be normal too.
    fn scale_by_pow2(self, a: Self::V, exponent: Self::V) -> Self::V;
    fn sum(self, a: Self::V) -> f32;
    fn max_lane(self, a: Self::V) -> f32;
    /// 16 bf16 as two vectors; element `2i` is lane `i` of the first, `2i + 1` lane `i` of the second.
    ///
    /// # Safety
    /// `from` must be valid for reading 16 u16.
    unsafe fn load_bf16(self, from: *const u16) -> (Self::V, Self::V);

    fn zero_i32(self) -> Self::I32;
    fn to_f32(self, a: Self::I32) -> Self::V;
    /// The pair of i16 at `from`, repeated eight times.
    ///
    /// # Safety
    /// `from` must be valid for reading 2 i16.
    unsafe fn splat_pair(self, from: *const i16) -> Self::I16;
    /// 16 i8, widened.
    ///
    /// # Safety
    /// `from` must be valid for reading 16 i8.
    unsafe fn load_i8(self, from: *const i8) -> Self::I16;
    /// Lane `i`: `acc[i] + a[2i] * b[2i] + a[2i + 1] * b[2i + 1]`, exact in i32.
    fn madd(self, acc: Self::I32, a: Self::I16, b: Self::I16) -> Self::I32;
    /// Rounds 8 f32 in -32768..=32767 to i16.
    ///
    /// # Safety
    /// `to` must be valid for writing 8 i16.
    unsafe fn store_i16(self, to: *mut i16, value: Self::V);

    fn zero_i16(self) -> Self::I16;
    /// The 64 half bytes of 32 bytes: the low ones and the high ones, 0..=15 each.
    ///
    /// # Safety
    /// `from` must be valid for reading 32 u8.
    unsafe fn load_nibbles(self, from: *const u8) -> (Self::Bytes, Self::Bytes);
    /// The four i8 at `from`, repeated eight times.
    ///
    /// # Safety
    /// `from` must be valid for reading 4 i8.
    unsafe fn splat_quad(self, from: *const i8) -> Self::Bytes;
    /// Lane `i`: `acc[i] + a[2i] * b[2i] + a[2i + 1] * b[2i + 1]` with unsigned `a` and signed `b`; the caller keeps every sum within i16.
    fn madd_bytes(self, acc: Self::I16, a: Self::Bytes, b: Self::Bytes) -> Self::I16;
    /// 8 f16, widened.
    ///
    /// # Safety
    /// `from` must be valid for reading 8 u16.
    unsafe fn load_f16(self, from: *const u16) -> Self::V;
    /// 8 u8 as f32.
    ///
    /// # Safety
    /// `from` must be valid for reading 8 u8.
    unsafe fn load_u8(self, from: *const u8) -> Self::V;
    /// Rounds 8 f32 in -128..=127 to i8.
    ///
    /// # Safety
    /// `to` must be valid for writing 8 i8.
    unsafe fn store_i8(self, to: *mut i8, value: Self::V);
}

/// Element type of a panel: rows of 16 columns, in the order its vectors are loaded.
pub(crate) trait PanelElement: Copy + Default + Send + Sync + 'static {
    /// Where column `column` stands in a row of 16.
    fn place(column: usize) -> usize;
    /// The nearest value of this type.
    fn narrow(value: f32) -> Self;
    /// 16 columns of one row of a panel.
    ///
    /// # Safety
    /// `from` must be valid for reading 16 elements.
    unsafe fn load_row<S: Simd>(simd: S, from: *const Self) -> (S::V, S::V);
}

impl PanelElement for f32 {
    #[inline(always)]
    fn place(column: usize) -> usize {
        column
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }

    #[inline(always)]
    unsafe fn load_row<S: Simd>(simd: S, from: *const Self) -> (S::V, S::V) {
        // SAFETY: the caller promises 16 readable elements.
        unsafe { (simd.load(from), simd.load(from.add(8))) }
    }
}

/// The bits of bf16; columns are interleaved (0, 8, 1, 9, …): one shift and one mask then widen 16 of them.
impl PanelElement for u16 {
    #[inline(always)]
    fn place(column: usize) -> usize {
        (column % 8) * 2 + column / 8
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        bf16_from_f32(value)
    }

    #[inline(always)]
    unsafe fn load_row<S: Simd>(simd: S, from: *const Self) -> (S::V, S::V) {
        // SAFETY: the caller promises 16 readable elements.
        unsafe { simd.load_bf16(from) }
    }
}

/// Most rows a register tile holds: 6 x 2 accumulators, 2 panel vectors and 1 broadcast fit 16 registers.
pub(crate) const MAX_TILE_ROWS: usize = 6;

/// Rows of the next tile when `left` rows remain: as even as possible, so that no tile is too short to hide the FMA latency.
#[inline(always)]
pub(crate) fn tile_rows(left: usize) -> usize {
    left.div_ceil(left.div_ceil(MAX_TILE_ROWS))
}

/// The register tile that all products share: `R` rows of `a` (leading dimension `lda`) times one panel `[depth, 16]`.
///
/// # Safety
/// `a` must be valid for reading `depth` elements at each of `R` rows, `panel` for `depth * 16` elements.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, W: PanelElement, const R: usize>(
    simd: S,
    a: *const f32,
    lda: usize,
    panel: *const W,
    depth: usize,
) -> [[S::V; 2]; R] {
    let mut acc = [[simd.splat(0.0); 2]; R];
    // SAFETY: as promised by the caller.
    unsafe { tile_onto(simd, &mut acc, (a, lda), (panel, depth), None) };
    acc
}

/// Memory to ask for while a tile is computed: a little with each step of its depth.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    pub(crate) from: *const u8,
    /// Bytes from one step to the next.
    pub(crate) step: usize,
}

/// [`tile`] added to sums that exist already.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
pub(crate) unsafe fn tile_onto<S: Simd, W: PanelElement, const R: usize>(
    simd: S,
    acc: &mut [[S::V; 2]; R],
    (a, lda): (*const f32, usize),
    (panel, depth): (*const W, usize),
    ahead: Option<Ahead>,
) {
    for k in 0..depth {
        if let Some(ahead) = ahead {
            simd.prefetch(ahead.from.wrapping_add(k * ahead.step));
        }
        // SAFETY: `k < depth`, so panel row `k` lies inside the panel.
        let (low, high) = unsafe { W::load_row(simd, panel.add(k * PANEL)) };
        for (row, acc) in acc.iter_mut().enumerate() {
            // SAFETY: row `row < R` has `depth` readable elements.
            let x = simd.splat(unsafe { *a.add(row * lda + k) });
            acc[0] = simd.fma(x, low, acc[0]);
            acc[1] = simd.fma(x, high, acc[1]);
        }
    }
}

/// `R` rows of `a` times `P` panels that follow one another: with few rows one panel has too few sums to hide the FMA latency.
///
/// Each sum is taken in the same order as by [`tile`], so a row's result does not depend on how many rows come with it.
///
/// # Safety
/// `a` must be valid for reading `depth` elements at each of `R` rows, `panels` for `P * depth * 16` elements.
#[inline(always)]
pub(crate) unsafe fn tiles<S: Simd, W: PanelElement, const R: usize, const P: usize>(
    simd: S,
    a: *const f32,
    lda: usize,
    panels: *const W,
    depth: usize,
) -> [[[S::V; 2]; R]; P] {
    let mut acc = [[[simd.splat(0.0); 2]; R]; P];
    for k in 0..depth {
        let mut x = [simd.splat(0.0); R];
        for (row, x) in x.iter_mut().enumerate() {
            // SAFETY: `k < depth`, and row `row < R` has `depth` readable elements.
            *x = simd.splat(unsafe { *a.add(row * lda + k) });
        }
        for (panel, acc) in acc.iter_mut().enumerate() {
            // SAFETY: `k < depth`, so row `k` lies inside each of the `P` panels.
            let (low, high) = unsafe { W::load_row(simd, panels.add((panel * depth + k) * PANEL)) };
            for (acc, x) in acc.iter_mut().zip(x) {
                acc[0] = simd.fma(x, low, acc[0]);
                acc[1] = simd.fma(x, high, acc[1]);
            }
        }
    }
    acc
}
