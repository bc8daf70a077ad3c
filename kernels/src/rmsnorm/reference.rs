//! Root mean square normalization in plain f64; input: the arguments of [`super::rmsnorm`], output: exact to f64.

use super::RmsNorm;

/// Normalizes each row.
pub fn rmsnorm(norm: &RmsNorm, input: &[f32]) -> Vec<f64> {
    let mut out: Vec<f64> = input.iter().map(|x| f64::from(*x)).collect();
    out.chunks_exact_mut(norm.width()).for_each(|row| normalize(norm, row));
    out
}

/// Normalizes one row.
pub fn normalize(norm: &RmsNorm, row: &mut [f64]) {
    let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
    let factor = 1.0 / (mean + f64::from(norm.epsilon)).sqrt();
    for (x, weight) in row.iter_mut().zip(&norm.weight) {
        *x *= factor * f64::from(*weight);
    }
}
