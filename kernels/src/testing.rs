//! What kernel tests share: seeded values, every instruction set and thread count, and a tolerance check that names the element.

use crate::{CpuExec, Isa, Team};

/// Values in -1..1 from a seed (a linear congruential generator: tests only need variety).
pub(crate) fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Portable and detected instruction set, alone and with two threads.
pub(crate) fn all_execs() -> Vec<CpuExec> {
    let mut execs = Vec::new();
    for isa in [Isa::Portable, Isa::detect()] {
        for threads in [1, 2] {
            execs.push(CpuExec::with_isa(Team::new(threads).unwrap(), isa));
        }
    }
    execs
}

/// Every element within `tolerance` (absolute, plus the same share of the exact value).
pub(crate) fn assert_close(actual: &[f32], exact: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), exact.len());
    for (index, (actual, exact)) in actual.iter().zip(exact).enumerate() {
        let error = (f64::from(*actual) - exact).abs();
        assert!(
            error <= tolerance * (1.0 + exact.abs()),
            "element {index}: {actual} instead of {exact}"
        );
    }
}
