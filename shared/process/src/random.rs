//! Random numbers for ids, not for secrets: takes the system's hash seed once per thread, gives 64 or 128 bits.

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher, RandomState};

// Two generators with independent seeds, so that 128-bit ids have 128 bits of state behind them.
thread_local! {
    static STATE: Cell<[u64; 2]> = Cell::new([seed(), seed()]);
}

fn seed() -> u64 {
    // The standard library seeds `RandomState` from the system; its hash of nothing is as random as its keys.
    RandomState::new().build_hasher().finish()
}

/// The next output of SplitMix64 (Steele, Lea and Flood 2014) and its next state.
fn split_mix(state: u64) -> (u64, u64) {
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31), state)
}

/// 128 random bits.
pub(crate) fn bits_128() -> u128 {
    STATE.with(|cell| {
        let [low, high] = cell.get();
        let (low_bits, low) = split_mix(low);
        let (high_bits, high) = split_mix(high);
        cell.set([low, high]);
        (u128::from(high_bits) << 64) | u128::from(low_bits)
    })
}

/// 64 random bits.
pub(crate) fn bits_64() -> u64 {
    // Truncation is the point: the low generator alone gives these.
    bits_128() as u64
}
