//! The int8 product in plain code; input: the arguments of [`super::gemm_i8`] with unquantized weights, output: exact to f64 for the quantized values.

use super::{ACTIVATION_LIMIT, WEIGHT_LIMIT, quantize_row};
use crate::gemm::Epilogue;
use crate::gemm::reference::finish;

/// Quantizes both sides as the kernel does, sums in i64 and applies the epilogue in f64.
pub fn gemm_i8(a: &[f32], weight: &[f32], bias: &[f32], depth: usize, epilogue: Epilogue<'_>) -> Vec<f64> {
    let weights: Vec<_> = weight
        .chunks_exact(depth)
        .map(|row| quantize_row(row, WEIGHT_LIMIT))
        .collect();
    let mut out = Vec::new();
    for row in a.chunks_exact(depth) {
        let (x, x_scale) = quantize_row(row, ACTIVATION_LIMIT);
        for ((w, w_scale), bias) in weights.iter().zip(bias) {
            let dot: i64 = x.iter().zip(w).map(|(x, w)| i64::from(*x) * i64::from(*w)).sum();
            let sum = dot as f64 * f64::from(x_scale) * f64::from(*w_scale) + f64::from(*bias);
            out.push(finish(sum, out.len(), epilogue));
        }
    }
    out
}
