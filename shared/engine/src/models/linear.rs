//! A product with weights in one of the storage types; input: rows of activations, output: rows with a fused epilogue.

use kernels::gemm::{Epilogue, PackedWeights, Storage, gemm};
use kernels::gemm_i8::{PackedWeightsI8, gemm_i8};
use kernels::{CpuExec, ShapeError};

use crate::backend::Precision;

/// Weights and bias, packed for the CPU.
#[derive(Debug)]
pub(crate) enum Linear {
    Float(PackedWeights),
    Int8(PackedWeightsI8),
}

impl Linear {
    /// Packs `weight` (`[columns, depth]`) and `bias` (`[columns]`).
    pub(crate) fn pack(
        exec: &mut CpuExec,
        (weight, bias): (&[f32], &[f32]),
        depth: usize,
        precision: Precision,
    ) -> Result<Self, ShapeError> {
        match precision {
            Precision::F32 => PackedWeights::pack(exec, weight, bias, depth, Storage::F32).map(Self::Float),
            Precision::Bf16 => PackedWeights::pack(exec, weight, bias, depth, Storage::Bf16).map(Self::Float),
            Precision::Int8 => PackedWeightsI8::pack(exec, weight, bias, depth).map(Self::Int8),
        }
    }

    /// The weights of one output.
    pub(crate) fn unpack_row(&self, column: usize, out: &mut [f32]) -> Result<(), ShapeError> {
        match self {
            Self::Float(weights) => weights.unpack_row(column, out),
            Self::Int8(weights) => weights.unpack_row(column, out),
        }
    }

    pub(crate) fn run(
        &self,
        exec: &mut CpuExec,
        a: &[f32],
        epilogue: Epilogue<'_>,
        out: &mut [f32],
    ) -> Result<(), ShapeError> {
        match self {
            Self::Float(weights) => gemm(exec, a, weights, epilogue, out),
            Self::Int8(weights) => gemm_i8(exec, a, weights, epilogue, out),
        }
    }
}
