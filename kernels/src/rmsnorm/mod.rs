//! Root mean square normalization; input: `[rows, width]` f32, output: `x / sqrt(mean(x²) + epsilon) * weight`, the same shape.
//!
//! Source: Zhang and Sennrich 2019 (arXiv 1910.07467), in the order of Llama: normalize, then weight.
//! Sums in f32 over 32 lanes. FLOPs: 4 per element; bytes: 8 per element, the row staying in the first-level cache.

mod cpu;
pub mod reference;

use crate::error::{ShapeError, expect_len, expect_nonzero};
use crate::exec::CpuExec;
use crate::head_columns::HeadColumns;

/// Weight and epsilon of one normalization.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Vec<f32>,
    epsilon: f32,
}

impl RmsNorm {
    /// Checks that the width is not zero.
    pub fn new(weight: Vec<f32>, epsilon: f32) -> Result<Self, ShapeError> {
        expect_nonzero("rmsnorm", "width", weight.len())?;
        Ok(Self { weight, epsilon })
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.weight.len()
    }
}

/// Fills `out` with the normalized rows of `input`, both `[rows, width]`.
pub fn rmsnorm(exec: &mut CpuExec, norm: &RmsNorm, input: &[f32], out: &mut [f32]) -> Result<(), ShapeError> {
    const OP: &str = "rmsnorm";
    let rows = input.len() / norm.width();
    expect_len(OP, "input", input.len(), rows * norm.width())?;
    expect_len(OP, "out", out.len(), input.len())?;
    cpu::run(exec, norm, input, out);
    Ok(())
}

/// Normalizes each head of each row in place (Qwen3 does so with queries and keys); a head has the norm's width.
pub fn rmsnorm_heads(
    exec: &mut CpuExec,
    norm: &RmsNorm,
    columns: HeadColumns,
    rows: &mut [f32],
) -> Result<(), ShapeError> {
    columns.tokens("rmsnorm heads", norm.width(), rows.len())?;
    cpu::run_heads(exec, norm, columns, rows);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{all_execs, assert_close, random};

    fn check(rows: usize, width: usize) {
        let norm = RmsNorm::new(random(width, 1), 1e-5).unwrap();
        let input = random(rows * width, 2);
        let exact = reference::rmsnorm(&norm, &input);
        for mut exec in all_execs() {
            let mut out = vec![f32::NAN; rows * width];
            rmsnorm(&mut exec, &norm, &input, &mut out).unwrap();
            assert_close(&out, &exact, 2e-6);
        }
    }

    #[test]
    fn matches_the_reference_for_awkward_widths() {
        for (rows, width) in [(1, 1), (3, 7), (5, 8), (9, 33), (70, 768), (2, 4_096)] {
            check(rows, width);
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn matches_the_reference_for_any_shape(rows in 0..200_usize, width in 1..200_usize) {
            check(rows, width);
        }

        #[test]
        fn heads_are_normalized_alone_and_the_rest_is_left(
            tokens in 0..70_usize,
            dims in 1..40_usize,
            heads in 0..5_usize,
            first in 0..9_usize,
            after in 1..9_usize,
        ) {
            let columns = HeadColumns { stride: first + heads * dims + after, first, heads };
            let norm = RmsNorm::new(random(dims, 1), 1e-6).unwrap();
            let rows = random(tokens * columns.stride, 2);
            let mut exact: Vec<f64> = rows.iter().map(|x| f64::from(*x)).collect();
            for row in exact.chunks_exact_mut(columns.stride) {
                row[first..][..heads * dims].chunks_exact_mut(dims).for_each(|head| reference::normalize(&norm, head));
            }
            for mut exec in all_execs() {
                let mut out = rows.clone();
                rmsnorm_heads(&mut exec, &norm, columns, &mut out).unwrap();
                assert_close(&out, &exact, 2e-6);
            }
        }
    }

    #[test]
    fn a_row_of_zeros_stays_zero() {
        let norm = RmsNorm::new(vec![1.0; 24], 1e-6).unwrap();
        let mut out = vec![f32::NAN; 24];
        rmsnorm(&mut CpuExec::new(1).unwrap(), &norm, &[0.0; 24], &mut out).unwrap();
        assert_eq!(out, [0.0; 24]);
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert!(RmsNorm::new(vec![], 1e-5).is_err());
        let norm = RmsNorm::new(vec![1.0; 4], 1e-5).unwrap();
        let mut exec = CpuExec::new(1).unwrap();
        assert!(rmsnorm(&mut exec, &norm, &[0.0; 6], &mut [0.0; 6]).is_err());
        assert!(rmsnorm(&mut exec, &norm, &[0.0; 8], &mut [0.0; 4]).is_err());
        let columns = HeadColumns {
            stride: 8,
            first: 1,
            heads: 2,
        };
        assert!(rmsnorm_heads(&mut exec, &norm, columns, &mut [0.0; 8]).is_err());
    }
}
