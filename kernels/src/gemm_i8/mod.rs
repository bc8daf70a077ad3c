//! Product with int8 weights and quantized activations; input: `[rows, depth]` f32, output: `[rows, columns]` f32 with a fused epilogue.
//!
//! Weights: symmetric, one scale per output column, -127..=127, quantized at load.
//! Activations: symmetric, one scale per row (token), 12 bits, quantized on each call; an instruction set with 8-bit products would use 8.
//! Products are summed exactly in i32 (no 16-bit saturation), which holds for a depth up to 2^31 / (127 * 2,047) = 8,260.
//! Layout: panels of 16 columns, pairs of depth beside each other (`[depth / 2, 16, 2]`), depth padded with zeros to a multiple of 8.

mod cpu;
mod quantize;
pub mod reference;

use crate::error::{ShapeError, expect_index, expect_len, expect_nonzero};
use crate::exec::CpuExec;
use crate::gemm::Epilogue;

pub(crate) use quantize::QuantizedRows;
pub use quantize::{ACTIVATION_LIMIT, WEIGHT_LIMIT, quantize_row};

/// Depth that one turn of the inner loop takes; rows and panels are padded to a multiple of it.
const DEPTH_STEP: usize = 8;

/// Largest depth whose sum of products fits an i32.
const MAX_DEPTH: usize = (i32::MAX / (WEIGHT_LIMIT as i32 * ACTIVATION_LIMIT as i32)) as usize;

/// An int8 weight matrix with its scales and bias, packed for the CPU kernel.
#[derive(Debug)]
pub struct PackedWeightsI8 {
    depth: usize,
    columns: usize,
    bias: Vec<f32>,
    scales: Vec<f32>,
    panels: Vec<i8>,
}

impl PackedWeightsI8 {
    /// Quantizes and packs `weight` (`[columns, depth]`) with `bias` (`[columns]`).
    pub fn pack(exec: &mut CpuExec, weight: &[f32], bias: &[f32], depth: usize) -> Result<Self, ShapeError> {
        const OP: &str = "gemm_i8 pack";
        let columns = bias.len();
        expect_nonzero(OP, "depth", depth)?;
        expect_nonzero(OP, "columns", columns)?;
        expect_len(OP, "weight", weight.len(), columns * depth)?;
        if depth > MAX_DEPTH {
            return Err(ShapeError::Length {
                op: OP,
                what: "depth",
                actual: depth,
                expected: MAX_DEPTH,
            });
        }
        let (panels, scales) = quantize::pack(exec, weight, depth);
        Ok(Self {
            depth,
            columns,
            bias: crate::gemm::padded(bias),
            scales,
            panels,
        })
    }

    /// Inputs of a row.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Outputs of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The weights of one output, as quantized; a model whose first and last layer share a matrix keeps it once.
    pub fn unpack_row(&self, column: usize, out: &mut [f32]) -> Result<(), ShapeError> {
        const OP: &str = "gemm_i8 unpack";
        expect_index(OP, "column", column, self.columns)?;
        expect_len(OP, "out", out.len(), self.depth)?;
        quantize::unpack(&self.panels, self.scales[column], column, out);
        Ok(())
    }
}

/// `out = epilogue(a * weight^T + bias)` in int8; the number of rows follows from `out`.
pub fn gemm_i8(
    exec: &mut CpuExec,
    a: &[f32],
    weights: &PackedWeightsI8,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) -> Result<(), ShapeError> {
    const OP: &str = "gemm_i8";
    let rows = out.len() / weights.columns;
    expect_len(OP, "out", out.len(), rows * weights.columns)?;
    expect_len(OP, "a", a.len(), rows * weights.depth)?;
    epilogue.check(OP, out.len())?;
    cpu::run(exec, a, weights, epilogue, out);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{all_execs, assert_close, random};

    #[test]
    fn matches_the_reference_for_awkward_shapes() {
        for (rows, depth, columns) in [(1, 1, 1), (7, 33, 40), (13, 64, 17), (16, 384, 1_152), (97, 1_536, 48)] {
            let a = random(rows * depth, 1);
            let weight = random(columns * depth, 2);
            let bias = random(columns, 3);
            let residual = random(rows * columns, 4);
            for mut exec in all_execs() {
                let packed = PackedWeightsI8::pack(&mut exec, &weight, &bias, depth).unwrap();
                for epilogue in [Epilogue::Bias, Epilogue::BiasGelu, Epilogue::BiasResidual(&residual)] {
                    let mut out = vec![f32::NAN; rows * columns];
                    gemm_i8(&mut exec, &a, &packed, epilogue, &mut out).unwrap();
                    let exact = reference::gemm_i8(&a, &weight, &bias, depth, epilogue);
                    assert_close(&out, &exact, 1e-5 * (depth as f64).sqrt());
                }
            }
        }
    }

    #[test]
    fn rows_come_back_as_quantized() {
        let weight = random(40 * 33, 2);
        let mut exec = CpuExec::new(1).unwrap();
        let packed = PackedWeightsI8::pack(&mut exec, &weight, &[0.0; 40], 33).unwrap();
        for (column, exact) in weight.chunks_exact(33).enumerate() {
            let mut row = [f32::NAN; 33];
            packed.unpack_row(column, &mut row).unwrap();
            // Half a step of the row's scale.
            let half_step = exact.iter().fold(0.0_f32, |largest, x| largest.max(x.abs())) / 253.0;
            assert!(row.iter().zip(exact).all(|(a, b)| (a - b).abs() <= half_step));
        }
        assert!(packed.unpack_row(40, &mut [0.0; 33]).is_err());
        assert!(packed.unpack_row(0, &mut [0.0; 32]).is_err());
    }

    #[test]
    fn the_largest_values_do_not_saturate() {
        let (depth, columns) = (MAX_DEPTH, 16);
        let a: Vec<f32> = vec![1.0; 3 * depth];
        let weight: Vec<f32> = vec![-1.0; columns * depth];
        for mut exec in all_execs() {
            let packed = PackedWeightsI8::pack(&mut exec, &weight, &[0.0; 16], depth).unwrap();
            let mut out = vec![0.0; 3 * columns];
            gemm_i8(&mut exec, &a, &packed, Epilogue::Bias, &mut out).unwrap();
            assert!(out.iter().all(|y| (y + MAX_DEPTH as f32).abs() < 0.01));
        }
    }

    #[test]
    fn a_depth_that_could_overflow_is_refused() {
        let depth = MAX_DEPTH + 1;
        let mut exec = CpuExec::new(1).unwrap();
        let packed = PackedWeightsI8::pack(&mut exec, &vec![0.0; depth], &[0.0], depth);
        assert!(packed.is_err());
    }

    #[test]
    fn a_row_of_zeros_gives_the_bias() {
        for mut exec in all_execs() {
            let bias = random(16, 9);
            let packed = PackedWeightsI8::pack(&mut exec, &random(64, 1), &bias, 4).unwrap();
            let mut out = vec![f32::NAN; 16];
            gemm_i8(&mut exec, &[0.0; 4], &packed, Epilogue::Bias, &mut out).unwrap();
            assert_eq!(out, bias);
        }
    }
}
