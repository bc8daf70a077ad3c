//! The `Simd` trait in plain Rust for any target; input: arrays of eight lanes, output: loops the compiler vectorizes.

use super::Simd;
use crate::half::f32_from_f16;

/// Arrays of eight lanes.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

type F = [f32; 8];

/// 1.5 * 2^23: a number below 2^22 added to it is rounded to even, and stands in the low bits as a whole number.
const SHIFT: f32 = 12_582_912.0;

#[inline(always)]
fn map(a: F, f: impl Fn(f32) -> f32) -> F {
    std::array::from_fn(|lane| f(a[lane]))
}

#[inline(always)]
fn zip(a: F, b: F, f: impl Fn(f32, f32) -> f32) -> F {
    std::array::from_fn(|lane| f(a[lane], b[lane]))
}

impl Simd for Portable {
    type V = F;
    type I32 = [i32; 8];
    type I16 = [i16; 16];
    type Bytes = [u8; 32];

    #[inline(always)]
    fn splat(self, value: f32) -> F {
        [value; 8]
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> F {
        // SAFETY: the caller promises 8 readable f32.
        unsafe { from.cast::<F>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, value: F) {
        // SAFETY: the caller promises 8 writable f32.
        unsafe { to.cast::<F>().write_unaligned(value) }
    }

    #[inline(always)]
    fn prefetch(self, _: *const u8) {}

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn abs(self, a: F) -> F {
        map(a, f32::abs)
    }

    // Not `mul_add`: without hardware support that is a slow library call.
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        std::array::from_fn(|lane| a[lane] * b[lane] + c[lane])
    }

    #[inline(always)]
    fn round(self, a: F) -> F {
        map(a, |a| (a + SHIFT) - SHIFT)
    }

    #[inline(always)]
    fn scale_by_pow2(self, a: F, exponent: F) -> F {
        zip(a, exponent, |a, exponent| {
            let exponent = (exponent + SHIFT).to_bits() << 23;
            f32::from_bits(a.to_bits().wrapping_add(exponent))
        })
    }

    #[inline(always)]
    fn sum(self, a: F) -> f32 {
        ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    }

    #[inline(always)]
    fn max_lane(self, a: F) -> f32 {
        a.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> (F, F) {
        // SAFETY: the caller promises 16 readable u16.
        let both = unsafe { from.cast::<[u16; 16]>().read_unaligned() };
        let widen = |bits: u16| f32::from_bits(u32::from(bits) << 16);
        (
            std::array::from_fn(|lane| widen(both[2 * lane])),
            std::array::from_fn(|lane| widen(both[2 * lane + 1])),
        )
    }

    #[inline(always)]
    fn zero_i32(self) -> [i32; 8] {
        [0; 8]
    }

    #[inline(always)]
    fn to_f32(self, a: [i32; 8]) -> F {
        std::array::from_fn(|lane| a[lane] as f32)
    }

    #[inline(always)]
    unsafe fn splat_pair(self, from: *const i16) -> [i16; 16] {
        // SAFETY: the caller promises 2 readable i16.
        let pair = unsafe { from.cast::<[i16; 2]>().read_unaligned() };
        std::array::from_fn(|lane| pair[lane % 2])
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> [i16; 16] {
        // SAFETY: the caller promises 16 readable i8.
        let narrow = unsafe { from.cast::<[i8; 16]>().read_unaligned() };
        std::array::from_fn(|lane| i16::from(narrow[lane]))
    }

    #[inline(always)]
    fn madd(self, acc: [i32; 8], a: [i16; 16], b: [i16; 16]) -> [i32; 8] {
        std::array::from_fn(|lane| {
            let even = i32::from(a[2 * lane]) * i32::from(b[2 * lane]);
            acc[lane] + even + i32::from(a[2 * lane + 1]) * i32::from(b[2 * lane + 1])
        })
    }

    #[inline(always)]
    unsafe fn store_i16(self, to: *mut i16, value: F) {
        let narrow: [i16; 8] = std::array::from_fn(|lane| (value[lane] + SHIFT).to_bits() as u16 as i16);
        // SAFETY: the caller promises 8 writable i16.
        unsafe { to.cast::<[i16; 8]>().write_unaligned(narrow) }
    }

    #[inline(always)]
    fn zero_i16(self) -> [i16; 16] {
        [0; 16]
    }

    #[inline(always)]
    unsafe fn load_nibbles(self, from: *const u8) -> ([u8; 32], [u8; 32]) {
        // SAFETY: the caller promises 32 readable u8.
        let both = unsafe { from.cast::<[u8; 32]>().read_unaligned() };
        (both.map(|byte| byte & 15), both.map(|byte| byte >> 4))
    }

    #[inline(always)]
    unsafe fn splat_quad(self, from: *const i8) -> [u8; 32] {
        // SAFETY: the caller promises 4 readable i8.
        let quad = unsafe { from.cast::<[u8; 4]>().read_unaligned() };
        std::array::from_fn(|lane| quad[lane % 4])
    }

    #[inline(always)]
    fn madd_bytes(self, acc: [i16; 16], a: [u8; 32], b: [u8; 32]) -> [i16; 16] {
        let product = |at: usize| i16::from(a[at]) * i16::from(b[at] as i8);
        std::array::from_fn(|lane| acc[lane] + product(2 * lane) + product(2 * lane + 1))
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> F {
        // SAFETY: the caller promises 8 readable u16.
        unsafe { from.cast::<[u16; 8]>().read_unaligned() }.map(f32_from_f16)
    }

    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> F {
        // SAFETY: the caller promises 8 readable u8.
        unsafe { from.cast::<[u8; 8]>().read_unaligned() }.map(f32::from)
    }

    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8, value: F) {
        let narrow: [i8; 8] = std::array::from_fn(|lane| (value[lane] + SHIFT).to_bits() as u8 as i8);
        // SAFETY: the caller promises 8 writable i8.
        unsafe { to.cast::<[i8; 8]>().write_unaligned(narrow) }
    }
}
