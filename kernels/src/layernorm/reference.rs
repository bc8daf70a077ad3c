//! Layer normalization in plain f64; input: the arguments of [`super::layernorm`], output: exact to f64.

use super::LayerNorm;

/// Normalizes each row of `x + residual`.
pub fn layernorm(norm: &LayerNorm, residual: Option<&[f32]>, x: &[f32]) -> Vec<f64> {
    let mut sum: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    for (sum, residual) in sum.iter_mut().zip(residual.unwrap_or_default()) {
        *sum += f64::from(*residual);
    }
    for row in sum.chunks_exact_mut(norm.width()) {
        normalize(norm, row);
    }
    sum
}

/// Normalizes one row.
pub fn normalize(norm: &LayerNorm, row: &mut [f64]) {
    let width = row.len() as f64;
    let mean = row.iter().sum::<f64>() / width;
    let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width;
    let factor = 1.0 / (variance + f64::from(norm.epsilon)).sqrt();
    for ((x, weight), bias) in row.iter_mut().zip(&norm.weight).zip(&norm.bias) {
        *x = (*x - mean) * factor * f64::from(*weight) + f64::from(*bias);
    }
}
