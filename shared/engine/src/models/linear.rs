//! A product with weights in one of the storage types; input: rows of activations, output: rows with a fused epilogue.

use kernels::gemm::{Epilogue, PackedWeights, Storage, gemm};
use kernels::gemm_i4::{GroupSize, PackedWeightsI4, Scheme, gemm_i4};
use kernels::gemm_i8::{PackedWeightsI8, gemm_i8};
use kernels::{CpuExec, ShapeError};

use crate::backend::Precision;

/// Weights and bias, packed for the CPU.
#[derive(Debug)]
pub(crate) enum Linear {
    Float(PackedWeights),
    Int8(PackedWeightsI8),
    Int4(PackedWeightsI4),
    /// Outputs one behind the other, for parts that cannot be one matrix: a checkpoint may store them differently.
    Stacked(Vec<Linear>),
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
            Precision::Int4 => {
                let groups = (GroupSize::largest_for(depth), Scheme::Asymmetric);
                PackedWeightsI4::pack(exec, weight, bias, depth, groups).map(Self::Int4)
            }
        }
    }

    /// Outputs of a row.
    fn columns(&self) -> usize {
        match self {
            Self::Float(weights) => weights.columns(),
            Self::Int8(weights) => weights.columns(),
            Self::Int4(weights) => weights.columns(),
            Self::Stacked(parts) => parts.iter().map(Self::columns).sum(),
        }
    }

    /// Memory of the weights with what they need to be read, without the bias.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Float(weights) => weights.bytes(),
            Self::Int8(weights) => weights.bytes(),
            Self::Int4(weights) => weights.bytes(),
            Self::Stacked(parts) => parts.iter().map(Self::bytes).sum(),
        }
    }

    /// The weights of one output.
    pub(crate) fn unpack_row(&self, column: usize, out: &mut [f32]) -> Result<(), ShapeError> {
        match self {
            Self::Float(weights) => weights.unpack_row(column, out),
            Self::Int8(weights) => weights.unpack_row(column, out),
            Self::Int4(weights) => weights.unpack_row(column, out),
            Self::Stacked(parts) => {
                let mut first = 0;
                for part in parts {
                    if column < first + part.columns() {
                        return part.unpack_row(column - first, out);
                    }
                    first += part.columns();
                }
                Err(ShapeError::Index {
                    op: "stacked unpack",
                    what: "column",
                    index: column,
                    rows: first,
                })
            }
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
            Self::Int4(weights) => gemm_i4(exec, a, weights, epilogue, out),
            Self::Stacked(parts) => run_parts(parts, (exec, a), epilogue, out),
        }
    }
}

/// Runs each part by itself and moves its columns to their place.
fn run_parts(
    parts: &[Linear],
    (exec, a): (&mut CpuExec, &[f32]),
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) -> Result<(), ShapeError> {
    let columns: usize = parts.iter().map(Linear::columns).sum();
    let (of_part, residual) = match epilogue {
        Epilogue::BiasResidual(residual) => (Epilogue::Bias, Some(residual)),
        other => (other, None),
    };
    let rows = out.len() / columns;
    let mut first = 0;
    for part in parts {
        let width = part.columns();
        let mut piece = vec![0.0; rows * width];
        part.run(exec, a, of_part, &mut piece)?;
        for (out, piece) in out.chunks_exact_mut(columns).zip(piece.chunks_exact(width)) {
            out[first..first + width].copy_from_slice(piece);
        }
        first += width;
    }
    for (out, residual) in out.iter_mut().zip(residual.unwrap_or_default()) {
        *out += residual;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacked_parts_are_one_matrix() {
        let mut exec = CpuExec::new(1).unwrap();
        let value = |index: usize| (index * 37 % 101) as f32 / 50.0 - 1.0;
        let weight: Vec<f32> = (0..30 * 8).map(value).collect();
        let bias: Vec<f32> = (0..30).map(value).collect();
        let a: Vec<f32> = (100..100 + 3 * 8).map(value).collect();
        let residual: Vec<f32> = (500..500 + 3 * 30).map(value).collect();
        let mut pack = |columns: std::ops::Range<usize>| {
            let weight = &weight[columns.start * 8..columns.end * 8];
            Linear::pack(&mut exec, (weight, &bias[columns]), 8, Precision::F32).unwrap()
        };
        let whole = pack(0..30);
        let parts = Linear::Stacked(vec![pack(0..5), pack(5..22), pack(22..30)]);
        assert_eq!(parts.columns(), 30);
        for epilogue in [Epilogue::Bias, Epilogue::BiasGelu, Epilogue::BiasResidual(&residual)] {
            let (mut one, mut other) = ([f32::NAN; 90], [f32::NAN; 90]);
            whole.run(&mut exec, &a, epilogue, &mut one).unwrap();
            parts.run(&mut exec, &a, epilogue, &mut other).unwrap();
            assert_eq!(one, other);
        }
        for column in 0..30 {
            let mut row = [f32::NAN; 8];
            parts.unpack_row(column, &mut row).unwrap();
            assert_eq!(row, weight[column * 8..][..8]);
        }
        assert!(parts.unpack_row(30, &mut [0.0; 8]).is_err());
    }
}
