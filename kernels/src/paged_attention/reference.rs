//! Causal attention of one sequence in plain f64; input: queries, keys and values in order, output: exact to f64.

/// What does not change from token to token.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub dims: usize,
    /// Tokens a query sees, itself included.
    pub window: Option<u32>,
    /// Factor of the scores.
    pub scale: f32,
}

/// `softmax(scale q k^T) v` for `queries` (`[queries, heads, dims]`), the last tokens of `keys` and `values` (`[context, kv_heads, dims]`).
pub fn attention(shape: Shape, queries: &[f32], keys: &[f32], values: &[f32]) -> Vec<f64> {
    let Shape {
        heads, kv_heads, dims, ..
    } = shape;
    let context = keys.len() / (kv_heads * dims);
    let count = queries.len() / (heads * dims);
    let mut out = Vec::with_capacity(queries.len());
    for query in 0..count {
        let position = context - count + query;
        let first = shape
            .window
            .map_or(0, |window| (position + 1).saturating_sub(window as usize));
        for head in 0..heads {
            let q = &queries[(query * heads + head) * dims..][..dims];
            let kv_head = head / (heads / kv_heads);
            let at = |token: usize| (token * kv_heads + kv_head) * dims..(token * kv_heads + kv_head + 1) * dims;
            let score = |token| dot(q, &keys[at(token)]) * f64::from(shape.scale);
            let scores: Vec<f64> = (first..=position).map(score).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            let mut sums = vec![0.0; dims];
            for (token, weight) in (first..=position).zip(&weights) {
                for (sum, value) in sums.iter_mut().zip(&values[at(token)]) {
                    *sum += weight / total * f64::from(*value);
                }
            }
            out.append(&mut sums);
        }
    }
    out
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
