//! AVX2, FMA and F16C behind the `Simd` trait; input: detection at run time, output: intrinsics.

use std::arch::x86_64::*;

use super::{Kernel, Simd};

/// Proof that the processor has AVX2, FMA and F16C; the only way to make one is [`Avx2::detect`].
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// A proof when the processor has all three (the standard library caches the answer).
    #[inline]
    pub(crate) fn detect() -> Option<Self> {
        let has_all =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        has_all.then_some(Self(()))
    }

    /// Runs a kernel compiled with AVX2, FMA and F16C.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn inner<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` exists, so detection succeeded.
        unsafe { inner(self, kernel) }
    }
}

// Every `unsafe` block below calls instructions of AVX2, FMA or F16C; that is sound because an `Avx2` exists only after detection.
impl Simd for Avx2 {
    type V = __m256;
    type I32 = __m256i;
    type I16 = __m256i;
    type Bytes = __m256i;

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        // SAFETY: the processor has AVX2.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        // SAFETY: the processor has AVX2; the caller promises 8 readable f32.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, value: __m256) {
        // SAFETY: the processor has AVX2; the caller promises 8 writable f32.
        unsafe { _mm256_storeu_ps(to, value) }
    }

    #[inline(always)]
    fn prefetch(self, line: *const u8) {
        // SAFETY: a hint that never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the processor has AVX2.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the processor has AVX2.
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the processor has AVX2.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the processor has AVX2.
        unsafe { _mm256_div_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the processor has AVX2.
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the processor has AVX2.
        unsafe { _mm256_min_ps(a, b) }
    }

    #[inline(always)]
    fn abs(self, a: __m256) -> __m256 {
        // SAFETY: the processor has AVX2.
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    }

    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the processor has FMA.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        // SAFETY: the processor has AVX2.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    fn scale_by_pow2(self, a: __m256, exponent: __m256) -> __m256 {
        // SAFETY: the processor has AVX2.
        unsafe {
            let exponent = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(exponent));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), exponent))
        }
    }

    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        // SAFETY: the processor has AVX2.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn max_lane(self, a: __m256) -> f32 {
        // SAFETY: the processor has AVX2.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> (__m256, __m256) {
        // SAFETY: the processor has AVX2; the caller promises 16 readable u16.
        unsafe {
            let both = _mm256_loadu_si256(from.cast());
            let even = _mm256_slli_epi32::<16>(both);
            let odd = _mm256_and_si256(both, _mm256_set1_epi32(0xffff_0000_u32.cast_signed()));
            (_mm256_castsi256_ps(even), _mm256_castsi256_ps(odd))
        }
    }

    #[inline(always)]
    fn zero_i32(self) -> __m256i {
        // SAFETY: the processor has AVX2.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    fn to_f32(self, a: __m256i) -> __m256 {
        // SAFETY: the processor has AVX2.
        unsafe { _mm256_cvtepi32_ps(a) }
    }

    #[inline(always)]
    unsafe fn splat_pair(self, from: *const i16) -> __m256i {
        // SAFETY: the processor has AVX2; the caller promises 2 readable i16, read as one unaligned i32.
        unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> __m256i {
        // SAFETY: the processor has AVX2; the caller promises 16 readable i8.
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    fn madd(self, acc: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the processor has AVX2.
        unsafe { _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)) }
    }

    #[inline(always)]
    unsafe fn store_i16(self, to: *mut i16, value: __m256) {
        // SAFETY: the processor has AVX2; the caller promises 8 writable i16.
        unsafe {
            let wide = _mm256_cvtps_epi32(value);
            let low = _mm256_castsi256_si128(wide);
            let narrow = _mm_packs_epi32(low, _mm256_extracti128_si256::<1>(wide));
            _mm_storeu_si128(to.cast(), narrow);
        }
    }

    #[inline(always)]
    fn zero_i16(self) -> __m256i {
        self.zero_i32()
    }

    #[inline(always)]
    unsafe fn load_nibbles(self, from: *const u8) -> (__m256i, __m256i) {
        // SAFETY: the processor has AVX2; the caller promises 32 readable u8.
        unsafe {
            let both = _mm256_loadu_si256(from.cast());
            let mask = _mm256_set1_epi8(15);
            // A shift of 16-bit lanes: what crosses from byte to byte is masked away.
            let high = _mm256_srli_epi16::<4>(both);
            (_mm256_and_si256(both, mask), _mm256_and_si256(high, mask))
        }
    }

    #[inline(always)]
    unsafe fn splat_quad(self, from: *const i8) -> __m256i {
        // SAFETY: the processor has AVX2; the caller promises 4 readable i8, read as one unaligned i32.
        unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    fn madd_bytes(self, acc: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the processor has AVX2.
        unsafe { _mm256_add_epi16(acc, _mm256_maddubs_epi16(a, b)) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> __m256 {
        // SAFETY: the processor has F16C; the caller promises 8 readable u16.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> __m256 {
        // SAFETY: the processor has AVX2; the caller promises 8 readable u8.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8, value: __m256) {
        // SAFETY: the processor has AVX2; the caller promises 8 writable i8.
        unsafe {
            let wide = _mm256_cvtps_epi32(value);
            let half = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256::<1>(wide));
            _mm_storel_epi64(to.cast(), _mm_packs_epi16(half, half));
        }
    }
}
