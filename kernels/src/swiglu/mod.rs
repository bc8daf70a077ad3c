//! The gate of a Llama feed-forward layer; input: `[tokens, 2 * width]` f32 (gate, then up), output: `[tokens, width]`, `silu(gate) * up`.
//!
//! `silu(x) = x / (1 + e^-x)`; source: Shazeer 2020 (arXiv 2002.05202).
//! FLOPs: about 20 per output, most of them the exponential; bytes: 12 per output.

mod cpu;
pub mod reference;

use crate::error::{ShapeError, expect_len, expect_nonzero};
use crate::exec::CpuExec;

/// Fills `out` with `silu(gate) * up`.
pub fn swiglu(exec: &mut CpuExec, gate_up: &[f32], width: usize, out: &mut [f32]) -> Result<(), ShapeError> {
    const OP: &str = "swiglu";
    expect_nonzero(OP, "width", width)?;
    let tokens = out.len() / width;
    expect_len(OP, "out", out.len(), tokens * width)?;
    expect_len(OP, "gate_up", gate_up.len(), 2 * out.len())?;
    cpu::run(exec, gate_up, width, out);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{all_execs, assert_close, random};

    fn check(gate_up: &[f32], width: usize) {
        let exact = reference::swiglu(gate_up, width);
        for mut exec in all_execs() {
            let mut out = vec![f32::NAN; gate_up.len() / 2];
            swiglu(&mut exec, gate_up, width, &mut out).unwrap();
            assert_close(&out, &exact, 2e-6);
        }
    }

    #[test]
    fn matches_the_reference_for_awkward_widths() {
        for (tokens, width) in [(1, 1), (3, 7), (1, 11_008), (40, 704), (2, 8_193)] {
            let gate_up: Vec<f32> = random(2 * tokens * width, 1).iter().map(|x| x * 8.0).collect();
            check(&gate_up, width);
        }
    }

    #[test]
    fn gates_of_any_size_stay_finite() {
        let gates = [-1e30, -1e4, -100.0, -88.0, -20.0, -0.0, 0.0, 20.0, 88.0, 1e4, 1e30];
        let ones = [1.0; 11];
        check(&[gates, ones].concat(), 11);
        check(&[gates.map(|_| -90.0), ones].concat(), 11);
        // Through the vector path as well.
        check(&[[-1e30; 16], [1.0; 16]].concat(), 16);
        check(&[[1e30; 16], [1.0; 16]].concat(), 16);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn matches_the_reference_for_any_shape(tokens in 0..40_usize, width in 1..900_usize, seed in 0..100_u64) {
            check(&random(2 * tokens * width, seed), width);
        }
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let mut exec = CpuExec::new(1).unwrap();
        assert!(swiglu(&mut exec, &[], 0, &mut []).is_err());
        assert!(swiglu(&mut exec, &[0.0; 8], 4, &mut [0.0; 3]).is_err());
        assert!(swiglu(&mut exec, &[0.0; 7], 4, &mut [0.0; 4]).is_err());
    }
}
