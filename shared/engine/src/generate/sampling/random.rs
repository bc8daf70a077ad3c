//! Random numbers that are a function of where they are used; input: seed, choice and place, output: a number in [0, 1).

/// Odd constants with well mixed bits: the golden ratio and two of the multipliers of xxHash64.
const SEED_STEP: u64 = 0x9e37_79b9_7f4a_7c15;
const CHOICE_STEP: u64 = 0xc2b2_ae3d_27d4_eb4f;
const PLACE_STEP: u64 = 0x1656_67b1_9e37_79f9;

/// A number in [0, 1) with 53 random bits.
pub(super) fn uniform(seed: u64, choice: u32, place: u64) -> f64 {
    let state = mix(seed.wrapping_add(SEED_STEP));
    let state = mix(state ^ u64::from(choice).wrapping_add(1).wrapping_mul(CHOICE_STEP));
    let state = mix(state ^ place.wrapping_add(1).wrapping_mul(PLACE_STEP));
    // 2^-53: the spacing of f64 below 1.
    (state >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

/// SplitMix64's finalizer (Stafford's variant 13): each bit of the input changes each bit of the output with probability near 1/2.
fn mix(mut state: u64) -> u64 {
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chi-square over 64 equal cells; 63 degrees of freedom have 103.4 at p = 0.001.
    fn evenness(numbers: impl Iterator<Item = f64>) -> f64 {
        let mut cells = [0_u32; 64];
        let mut count = 0.0;
        for number in numbers {
            assert!((0.0..1.0).contains(&number));
            cells[(number * 64.0) as usize] += 1;
            count += 1.0;
        }
        let expected = count / 64.0;
        cells
            .iter()
            .map(|&cell| (f64::from(cell) - expected).powi(2) / expected)
            .sum()
    }

    #[test]
    fn numbers_are_even_along_each_argument() {
        assert!(evenness((0..64_000).map(|place| uniform(7, 0, place))) < 103.4);
        assert!(evenness((0..64_000).map(|seed| uniform(seed, 0, 0))) < 103.4);
        assert!(evenness((0..64_000).map(|choice| uniform(7, choice, 3))) < 103.4);
    }

    #[test]
    fn neighbours_are_independent() {
        // 8 by 8 cells of two consecutive numbers, along place and along seed.
        let pair = |a: f64, b: f64| ((a * 8.0).floor() * 8.0 + (b * 8.0).floor()) / 64.0;
        let places = (0..64_000).map(|i| pair(uniform(1, 0, 2 * i), uniform(1, 0, 2 * i + 1)));
        assert!(evenness(places) < 103.4);
        let seeds = (0..64_000).map(|i| pair(uniform(2 * i, 0, 5), uniform(2 * i + 1, 0, 5)));
        assert!(evenness(seeds) < 103.4);
        let choices = (0..64_000).map(|i| pair(uniform(i, 0, 0), uniform(i, 1, 0)));
        assert!(evenness(choices) < 103.4);
    }
}
