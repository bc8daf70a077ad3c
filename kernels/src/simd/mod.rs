//! Eight f32 lanes as a trait, so that each kernel is written once; input: an [`Isa`], output: the kernel compiled for it.
//!
//! A value of a `Simd` type is the proof that the processor has the instructions: it is made only after detection.

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
    /// x86-64 with AVX2 and FMA.
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

    fn splat(self, value: f32) -> Self::V;
    /// # Safety
    /// `from` must be valid for reading 8 f32.
    unsafe fn load(self, from: *const f32) -> Self::V;
    /// # Safety
    /// `to` must be valid for writing 8 f32.
    unsafe fn store(self, to: *mut f32, value: Self::V);
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
}

/// Element type of a weight panel of the f32 product.
pub(crate) trait PanelElement: Copy + Send + Sync + 'static {
    /// 16 columns of one row of a panel.
    ///
    /// # Safety
    /// `from` must be valid for reading 16 elements.
    unsafe fn load_row<S: Simd>(simd: S, from: *const Self) -> (S::V, S::V);
}

impl PanelElement for f32 {
    #[inline(always)]
    unsafe fn load_row<S: Simd>(simd: S, from: *const Self) -> (S::V, S::V) {
        // SAFETY: the caller promises 16 readable elements.
        unsafe { (simd.load(from), simd.load(from.add(8))) }
    }
}

impl PanelElement for u16 {
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
    for k in 0..depth {
        // SAFETY: `k < depth`, so panel row `k` lies inside the panel.
        let (low, high) = unsafe { W::load_row(simd, panel.add(k * PANEL)) };
        for (row, acc) in acc.iter_mut().enumerate() {
            // SAFETY: row `row < R` has `depth` readable elements.
            let x = simd.splat(unsafe { *a.add(row * lda + k) });
            acc[0] = simd.fma(x, low, acc[0]);
            acc[1] = simd.fma(x, high, acc[1]);
        }
    }
    acc
}
