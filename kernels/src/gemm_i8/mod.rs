//! Product with int8 weights and quantized activations; input: `[rows, depth]` f32, output: `[rows, columns]` f32 with a fused epilogue.
//!
//! Weights: symmetric, one scale per output column, -127..=127, quantized at load.
//! Activations: symmetric, one scale per row (token), 12 bits, quantized on each call; an instruction set with 8-bit products would use 8.
//! Products are summed exactly in i32 (no 16-bit saturation) over pieces of 8,192 of the depth, and the pieces in f32.
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

/// Depth that is summed in i32: the sum of products fits even when a checkpoint brings weights of -128.
const PIECE_DEPTH: usize = 8_192;
const _: () = assert!(PIECE_DEPTH as i64 * 128 * ACTIVATION_LIMIT as i64 <= i32::MAX as i64);
const _: () = assert!(PIECE_DEPTH.is_multiple_of(DEPTH_STEP));

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
        let (panels, scales) = quantize::pack(exec, weight, depth);
        Ok(Self {
            depth,
            columns,
            bias: crate::gemm::padded(bias),
            scales,
            panels,
        })
    }

    /// Packs weights that are quantized already: `values` is `[columns, depth]`, `scales` and `bias` are `[columns]`.
    pub fn from_quantized(
        exec: &mut CpuExec,
        values: &[i8],
        scales: &[f32],
        bias: &[f32],
        depth: usize,
    ) -> Result<Self, ShapeError> {
        const OP: &str = "gemm_i8 from_quantized";
        let columns = bias.len();
        expect_nonzero(OP, "depth", depth)?;
        expect_nonzero(OP, "columns", columns)?;
        expect_len(OP, "values", values.len(), columns * depth)?;
        expect_len(OP, "scales", scales.len(), columns)?;
        Ok(Self {
            depth,
            columns,
            bias: crate::gemm::padded(bias),
            scales: crate::gemm::padded(scales),
            panels: quantize::pack_values(exec, values, depth),
        })
    }

    /// Memory of the weights with their scales, in bytes.
    pub fn bytes(&self) -> usize {
        self.panels.len() + size_of_val(&self.scales[..])
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
    fn the_largest_values_do_not_saturate_at_any_depth() {
        for depth in [PIECE_DEPTH, PIECE_DEPTH + 1, 14_336, 3 * PIECE_DEPTH] {
            let a: Vec<f32> = vec![1.0; 3 * depth];
            let weight: Vec<f32> = vec![-1.0; 16 * depth];
            for mut exec in all_execs() {
                let packed = PackedWeightsI8::pack(&mut exec, &weight, &[0.0; 16], depth).unwrap();
                let mut out = vec![0.0; 3 * 16];
                gemm_i8(&mut exec, &a, &packed, Epilogue::Bias, &mut out).unwrap();
                assert!(out.iter().all(|y| (y + depth as f32).abs() < 0.02));
                let (values, scales) = (vec![-128; 16 * depth], [1.0; 16]);
                let packed = PackedWeightsI8::from_quantized(&mut exec, &values, &scales, &[0.0; 16], depth).unwrap();
                gemm_i8(&mut exec, &a, &packed, Epilogue::Bias, &mut out).unwrap();
                assert!(out.iter().all(|y| (y / 128.0 + depth as f32).abs() < 0.02));
            }
        }
    }

    #[test]
    fn a_deep_product_matches_the_reference() {
        let (rows, depth, columns) = (3, 2 * PIECE_DEPTH + 24, 17);
        let (a, weight, bias) = (random(rows * depth, 1), random(columns * depth, 2), random(columns, 3));
        let exact = reference::gemm_i8(&a, &weight, &bias, depth, Epilogue::Bias);
        for mut exec in all_execs() {
            let packed = PackedWeightsI8::pack(&mut exec, &weight, &bias, depth).unwrap();
            let mut out = vec![f32::NAN; rows * columns];
            gemm_i8(&mut exec, &a, &packed, Epilogue::Bias, &mut out).unwrap();
            assert_close(&out, &exact, 1e-5 * (depth as f64).sqrt());
        }
    }

    #[test]
    fn ready_weights_are_those_quantized_here() {
        let (depth, columns) = (33, 40);
        let weight = random(columns * depth, 2);
        let mut exec = CpuExec::new(1).unwrap();
        let packed = PackedWeightsI8::pack(&mut exec, &weight, &vec![0.0; columns], depth).unwrap();
        let rows = weight.chunks_exact(depth).map(|row| quantize_row(row, WEIGHT_LIMIT));
        let (values, scales): (Vec<Vec<i16>>, Vec<f32>) = rows.unzip();
        let values: Vec<i8> = values.concat().into_iter().map(|value| value as i8).collect();
        let ready = PackedWeightsI8::from_quantized(&mut exec, &values, &scales, &vec![0.0; columns], depth).unwrap();
        assert_eq!((ready.panels, ready.scales), (packed.panels, packed.scales));
        let short = PackedWeightsI8::from_quantized(&mut exec, &values, &scales[1..], &vec![0.0; columns], depth);
        assert!(short.is_err());
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
