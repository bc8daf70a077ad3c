//! Pooling in plain f64; input: the arguments of [`super::pool`], output: exact to f64.

use super::{PoolOptions, Pooling};

/// One row per sequence.
pub fn pool(options: PoolOptions, x: &[f32], cu_seqlens: &[u32], width: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for pair in cu_seqlens.windows(2) {
        let rows = &x[pair[0] as usize * width..pair[1] as usize * width];
        let tokens = match options.pooling {
            Pooling::Mean => rows.len() / width,
            Pooling::Cls => (rows.len() / width).min(1),
        };
        let mut row = vec![0.0; width];
        for token in rows.chunks_exact(width).take(tokens) {
            for (sum, x) in row.iter_mut().zip(token) {
                *sum += f64::from(*x) / tokens as f64;
            }
        }
        let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        if options.normalize && length > 0.0 {
            row.iter_mut().for_each(|x| *x /= length);
        }
        out.append(&mut row);
    }
    out
}
