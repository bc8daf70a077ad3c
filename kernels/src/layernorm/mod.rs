//! Layer normalization in place; input: `[rows, width]` f32 and an optional residual to add first, output: the same shape.
//!
//! Sums in f32 over eight lanes, variance about the mean (two passes over a row that is in the first-level cache).

pub(crate) mod cpu;
pub mod reference;

use crate::error::{ShapeError, expect_len, expect_nonzero};
use crate::exec::CpuExec;

/// Weight, bias and epsilon of one normalization.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    epsilon: f32,
}

impl LayerNorm {
    /// Checks that weight and bias have the same, non-zero width.
    pub fn new(weight: Vec<f32>, bias: Vec<f32>, epsilon: f32) -> Result<Self, ShapeError> {
        const OP: &str = "layernorm";
        expect_nonzero(OP, "width", weight.len())?;
        expect_len(OP, "bias", bias.len(), weight.len())?;
        Ok(Self { weight, bias, epsilon })
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.weight.len()
    }
}

/// Replaces each row of `x` by its normalized form, after adding `residual` when there is one.
pub fn layernorm(
    exec: &mut CpuExec,
    norm: &LayerNorm,
    residual: Option<&[f32]>,
    x: &mut [f32],
) -> Result<(), ShapeError> {
    const OP: &str = "layernorm";
    let rows = x.len() / norm.width();
    expect_len(OP, "x", x.len(), rows * norm.width())?;
    if let Some(residual) = residual {
        expect_len(OP, "residual", residual.len(), x.len())?;
    }
    cpu::run(exec, norm, residual, x);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{all_execs, assert_close, random};

    #[test]
    fn matches_the_reference_for_awkward_widths() {
        for (rows, width) in [(1, 1), (3, 7), (5, 8), (9, 33), (130, 384)] {
            let norm = LayerNorm::new(random(width, 1), random(width, 2), 1e-12).unwrap();
            let residual = random(rows * width, 3);
            for mut exec in all_execs() {
                for residual in [None, Some(&residual[..])] {
                    let x = random(rows * width, 4);
                    let exact = reference::layernorm(&norm, residual, &x);
                    let mut out = x.clone();
                    layernorm(&mut exec, &norm, residual, &mut out).unwrap();
                    assert_close(&out, &exact, 1e-5);
                }
            }
        }
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert!(LayerNorm::new(vec![], vec![], 1e-5).is_err());
        assert!(LayerNorm::new(vec![1.0; 4], vec![0.0; 3], 1e-5).is_err());
        let norm = LayerNorm::new(vec![1.0; 4], vec![0.0; 4], 1e-5).unwrap();
        let mut exec = CpuExec::new(1).unwrap();
        assert!(layernorm(&mut exec, &norm, None, &mut [0.0; 6]).is_err());
        assert!(layernorm(&mut exec, &norm, Some(&[0.0; 4]), &mut [0.0; 8]).is_err());
    }
}
