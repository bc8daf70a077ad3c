//! Product of activations and a weight matrix packed once at load; input: `[rows, depth]` f32, output: `[rows, columns]` f32 with a fused epilogue.
//!
//! Weights are stored as f32 or bf16, always accumulated in f32.
//! Layout: panels of 16 columns, each `[depth, 16]`, so that the inner loop reads weights in one stream (the idea is BLIS's).
//! FLOPs: `2 * rows * depth * columns`; bytes: weights once per block of rows, which stays in the second-level cache.
//! A row's sums are taken in one order, so its result is the same bit for bit whatever rows come with it.

mod cpu;
mod pack;
pub mod reference;

use crate::error::{ShapeError, expect_index, expect_len};
use crate::exec::CpuExec;
use pack::Panels;

pub(crate) use cpu::{Grid, Writer, share};
pub use pack::bf16_from_f32;
pub(crate) use pack::padded;

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// 4 bytes a weight.
    F32,
    /// 2 bytes a weight: half the memory traffic, relative error up to 2^-9.
    Bf16,
}

/// A weight matrix with its bias, packed for the CPU kernel.
#[derive(Debug)]
pub struct PackedWeights {
    depth: usize,
    columns: usize,
    bias: Vec<f32>,
    panels: Panels,
}

impl PackedWeights {
    /// Packs `weight` (`[columns, depth]`, as checkpoints store it: one row per output) and `bias` (`[columns]`).
    pub fn pack(
        exec: &mut CpuExec,
        weight: &[f32],
        bias: &[f32],
        depth: usize,
        storage: Storage,
    ) -> Result<Self, ShapeError> {
        const OP: &str = "gemm pack";
        let columns = bias.len();
        crate::error::expect_nonzero(OP, "depth", depth)?;
        crate::error::expect_nonzero(OP, "columns", columns)?;
        expect_len(OP, "weight", weight.len(), columns * depth)?;
        Ok(Self {
            depth,
            columns,
            bias: pack::padded(bias),
            panels: Panels::pack(exec, weight, depth, storage),
        })
    }

    /// Memory of the weights, in bytes.
    pub fn bytes(&self) -> usize {
        self.panels.bytes()
    }

    /// Inputs of a row.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Outputs of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The weights of one output, as stored; a model whose first and last layer share a matrix keeps it once.
    pub fn unpack_row(&self, column: usize, out: &mut [f32]) -> Result<(), ShapeError> {
        const OP: &str = "gemm unpack";
        expect_index(OP, "column", column, self.columns)?;
        expect_len(OP, "out", out.len(), self.depth)?;
        self.panels.unpack(column, out);
        Ok(())
    }
}

/// What is done to a tile while it is still in registers.
#[derive(Debug, Clone, Copy)]
pub enum Epilogue<'a> {
    /// `x + bias`.
    Bias,
    /// `gelu(x + bias)`, with the error function.
    BiasGelu,
    /// `x + bias + residual`; the residual has the shape of the output.
    BiasResidual(&'a [f32]),
}

impl Epilogue<'_> {
    pub(crate) fn check(&self, op: &'static str, outputs: usize) -> Result<(), ShapeError> {
        match self {
            Self::Bias | Self::BiasGelu => Ok(()),
            Self::BiasResidual(residual) => expect_len(op, "residual", residual.len(), outputs),
        }
    }
}

/// `out = epilogue(a * weight^T + bias)`; the number of rows follows from `out`.
pub fn gemm(
    exec: &mut CpuExec,
    a: &[f32],
    weights: &PackedWeights,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) -> Result<(), ShapeError> {
    const OP: &str = "gemm";
    let rows = out.len() / weights.columns;
    expect_len(OP, "out", out.len(), rows * weights.columns)?;
    expect_len(OP, "a", a.len(), rows * weights.depth)?;
    epilogue.check(OP, out.len())?;
    match &weights.panels {
        Panels::F32(panels) => cpu::run(exec, a, (weights, panels), epilogue, out),
        Panels::Bf16(panels) => cpu::run(exec, a, (weights, panels), epilogue, out),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{all_execs, assert_close, random};

    fn check(rows: usize, depth: usize, columns: usize, storage: Storage) {
        let a = random(rows * depth, 1);
        let weight = random(columns * depth, 2);
        let bias = random(columns, 3);
        let residual = random(rows * columns, 4);
        let tolerance = match storage {
            Storage::F32 => 1e-6 * (depth as f64).sqrt() + 2e-6,
            Storage::Bf16 => 4e-3 * (depth as f64).sqrt(),
        };
        for mut exec in all_execs() {
            let packed = PackedWeights::pack(&mut exec, &weight, &bias, depth, storage).unwrap();
            for epilogue in [Epilogue::Bias, Epilogue::BiasGelu, Epilogue::BiasResidual(&residual)] {
                let mut out = vec![f32::NAN; rows * columns];
                gemm(&mut exec, &a, &packed, epilogue, &mut out).unwrap();
                let exact = reference::gemm(&a, &weight, &bias, depth, epilogue);
                assert_close(&out, &exact, tolerance);
            }
        }
    }

    #[test]
    fn matches_the_reference_for_awkward_shapes() {
        for storage in [Storage::F32, Storage::Bf16] {
            for rows in [1, 2, 5, 6, 7, 13, 49, 100] {
                check(rows, 33, 40, storage);
            }
            check(16, 384, 1_152, storage);
            check(97, 384, 17, storage);
            check(3, 1_536, 384, storage);
            check(1, 1, 1, storage);
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn matches_the_reference_for_any_shape(
            rows in 0..120_usize,
            depth in 1..70_usize,
            columns in 1..70_usize,
            bf16 in proptest::bool::ANY,
        ) {
            let storage = if bf16 { Storage::Bf16 } else { Storage::F32 };
            check(rows, depth, columns, storage);
        }
    }

    #[test]
    fn a_row_has_the_same_bits_whatever_comes_with_it() {
        let (depth, columns) = (70, 150);
        let a = random(20 * depth, 1);
        let (weight, bias) = (random(columns * depth, 2), random(columns, 3));
        for storage in [Storage::F32, Storage::Bf16] {
            for mut exec in all_execs() {
                let packed = PackedWeights::pack(&mut exec, &weight, &bias, depth, storage).unwrap();
                let mut all = vec![f32::NAN; 20 * columns];
                gemm(&mut exec, &a, &packed, Epilogue::Bias, &mut all).unwrap();
                for rows in 1..20 {
                    let mut out = vec![f32::NAN; rows * columns];
                    gemm(&mut exec, &a[..rows * depth], &packed, Epilogue::Bias, &mut out).unwrap();
                    assert_eq!(out, all[..rows * columns]);
                }
            }
        }
    }

    #[test]
    fn rows_come_back_as_stored() {
        let weight = random(40 * 33, 2);
        let mut exec = CpuExec::new(1).unwrap();
        for (storage, tolerance) in [(Storage::F32, 0.0), (Storage::Bf16, 4e-3)] {
            let packed = PackedWeights::pack(&mut exec, &weight, &[0.0; 40], 33, storage).unwrap();
            for (column, exact) in weight.chunks_exact(33).enumerate() {
                let mut row = [f32::NAN; 33];
                packed.unpack_row(column, &mut row).unwrap();
                assert!(row.iter().zip(exact).all(|(a, b)| (a - b).abs() <= tolerance * b.abs()));
            }
            assert!(packed.unpack_row(40, &mut [0.0; 33]).is_err());
            assert!(packed.unpack_row(0, &mut [0.0; 32]).is_err());
        }
    }

    #[test]
    fn no_rows_is_no_work() {
        let mut exec = CpuExec::new(1).unwrap();
        let packed = PackedWeights::pack(&mut exec, &[1.0; 32], &[0.0; 16], 2, Storage::F32).unwrap();
        gemm(&mut exec, &[], &packed, Epilogue::Bias, &mut []).unwrap();
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let mut exec = CpuExec::new(1).unwrap();
        assert!(PackedWeights::pack(&mut exec, &[1.0; 31], &[0.0; 16], 2, Storage::F32).is_err());
        let packed = PackedWeights::pack(&mut exec, &[1.0; 32], &[0.0; 16], 2, Storage::F32).unwrap();
        let error = gemm(&mut exec, &[0.0; 3], &packed, Epilogue::Bias, &mut [0.0; 16]);
        assert_eq!(error.unwrap_err().to_string(), "gemm: a has 3 elements, expected 2");
        let residual = Epilogue::BiasResidual(&[0.0; 15]);
        assert!(gemm(&mut exec, &[0.0; 2], &packed, residual, &mut [0.0; 16]).is_err());
    }
}
