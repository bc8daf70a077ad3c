//! IEEE half precision (f16) to and from f32; input: bits or a value, output: the exact value or the nearest bits.

/// The value of f16 bits, exact.
pub fn f32_from_f16(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let exponent = u32::from(bits >> 10) & 0x1f;
    let fraction = u32::from(bits) & 0x3ff;
    let magnitude = match exponent {
        // Subnormal: a multiple of 2^-24.
        0 => (fraction as f32 * 2_f32.powi(-24)).to_bits(),
        0x1f => 0x7f80_0000 | (fraction << 13),
        // The exponent's bias goes from 15 to 127.
        _ => ((exponent + 112) << 23) | (fraction << 13),
    };
    f32::from_bits(sign | magnitude)
}

/// The nearest finite f16, ties to even; what is larger than the largest becomes the largest.
pub fn f16_from_f32(value: f32) -> u16 {
    const LARGEST: f32 = 65_504.0;
    /// 1.5 * 2^23: added to a small number it leaves the rounded number in the low bits.
    const SHIFT: f32 = 12_582_912.0;
    let sign = (value.to_bits() >> 16) as u16 & 0x8000;
    let magnitude = value.abs().min(LARGEST);
    if magnitude < 2_f32.powi(-14) {
        // Subnormal; rounded up to 1,024 it is the smallest normal number, bits and all.
        return sign | ((magnitude * 2_f32.powi(24) + SHIFT).to_bits() as u16 & 0x7ff);
    }
    let bits = magnitude.to_bits();
    let rounded = (bits + 0xfff + ((bits >> 13) & 1)) >> 13;
    sign | (rounded - (112 << 10)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corners_are_exact() {
        assert_eq!(f32_from_f16(0x0001), 2_f32.powi(-24));
        assert_eq!(f32_from_f16(0x03ff), 1_023.0 * 2_f32.powi(-24));
        assert_eq!(f32_from_f16(0x0400), 2_f32.powi(-14));
        assert_eq!(f32_from_f16(0x8000).to_bits(), (-0.0_f32).to_bits());
        assert_eq!(f32_from_f16(0xfc00), f32::NEG_INFINITY);
        assert!(f32_from_f16(0x7e00).is_nan());
    }

    #[test]
    fn every_finite_f16_comes_back_and_ties_go_to_even() {
        for bits in (0..=u16::MAX).filter(|bits| bits & 0x7c00 != 0x7c00) {
            assert_eq!(f16_from_f32(f32_from_f16(bits)), bits);
        }
        assert_eq!(f16_from_f32(1.0 + 2_f32.powi(-11)), 0x3c00);
        assert_eq!(f16_from_f32(1.0 + 3.0 * 2_f32.powi(-11)), 0x3c02);
        assert_eq!(f16_from_f32(2_f32.powi(-25)), 0);
        assert_eq!(f16_from_f32(-1e9), 0xfbff);
    }
}
