//! The first layer in plain f64; input: the arguments of [`super::embed`], output: exact to f64.

use super::EmbeddingTables;
use crate::layernorm::reference::normalize;

/// Word + position + type row of each token, normalized.
pub fn embed(tables: &EmbeddingTables, ids: &[u32], cu_seqlens: &[u32]) -> Vec<f64> {
    let width = tables.width();
    let mut out = Vec::with_capacity(ids.len() * width);
    for pair in cu_seqlens.windows(2) {
        for (position, id) in ids[pair[0] as usize..pair[1] as usize].iter().enumerate() {
            let word = &tables.word[*id as usize * width..][..width];
            let position = &tables.position[position * width..][..width];
            let sums = word.iter().zip(position);
            let mut row: Vec<f64> = sums.map(|(w, p)| f64::from(*w) + f64::from(*p)).collect();
            normalize(&tables.norm, &mut row);
            out.append(&mut row);
        }
    }
    out
}
