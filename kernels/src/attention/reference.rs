//! Attention in plain f64; input: the arguments of [`super::attention`], output: exact to f64.

use super::Heads;

/// `softmax(q k^T / sqrt(dims)) v` per sequence and head.
pub fn attention(heads: Heads, qkv: &[f32], cu_seqlens: &[u32]) -> Vec<f64> {
    let width = heads.width();
    let at = |token: usize, part: usize, index: usize| f64::from(qkv[token * 3 * width + part * width + index]);
    let mut out = vec![0.0; qkv.len() / 3];
    for pair in cu_seqlens.windows(2) {
        let tokens = pair[0] as usize..pair[1] as usize;
        for head in 0..heads.count {
            let dims = head * heads.dims..(head + 1) * heads.dims;
            for query in tokens.clone() {
                let score = |key| -> f64 { dims.clone().map(|d| at(query, 0, d) * at(key, 1, d)).sum() };
                let scores: Vec<f64> = tokens
                    .clone()
                    .map(|key| score(key) / (heads.dims as f64).sqrt())
                    .collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                for d in dims.clone() {
                    let values = tokens.clone().map(|value| at(value, 2, d));
                    let sum: f64 = values.zip(&weights).map(|(v, w)| v * w).sum();
                    out[query * width + d] = sum / total;
                }
            }
        }
    }
    out
}
