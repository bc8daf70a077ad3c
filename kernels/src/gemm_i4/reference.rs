//! The int4 product in plain code; input: the arguments of [`super::gemm_i4`] with unquantized weights, output: exact to f64 for the quantized values.

use super::{GroupSize, Scheme, quantize_activations, quantize_group};
use crate::gemm::Epilogue;
use crate::gemm::reference::finish;
use crate::half::f32_from_f16;

/// Quantizes both sides as the kernel does, sums in i64 within groups and in f64 over them, and applies the epilogue in f64.
pub fn gemm_i4(
    a: &[f32],
    (weight, bias): (&[f32], &[f32]),
    depth: usize,
    (group, scheme): (GroupSize, Scheme),
    epilogue: Epilogue<'_>,
) -> Vec<f64> {
    let mut out = Vec::new();
    for row in a.chunks_exact(depth) {
        for (w, bias) in weight.chunks_exact(depth).zip(bias) {
            let groups = row.chunks(group.get()).zip(w.chunks(group.get()));
            let dot: f64 = groups.map(|(x, w)| group_dot(x, w, scheme)).sum();
            out.push(finish(dot + f64::from(*bias), out.len(), epilogue));
        }
    }
    out
}

fn group_dot(x: &[f32], w: &[f32], scheme: Scheme) -> f64 {
    let (x, x_scale) = quantize_activations(x);
    let (w, w_scale, zero) = quantize_group(w, scheme);
    let product = |(x, w): (&i16, &u8)| i64::from(*x) * (i64::from(*w) - i64::from(zero));
    let dot: i64 = x.iter().zip(&w).map(product).sum();
    dot as f64 * f64::from(x_scale) * f64::from(f32_from_f16(w_scale))
}
