//! The first layer in plain f64; input: the arguments of [`super::embed`], output: exact to f64.

use super::{EmbeddingTables, Sequences};
use crate::layernorm::reference::normalize;

/// Word + position + type row of each token, normalized.
pub fn embed(tables: &EmbeddingTables, sequences: Sequences<'_>) -> Vec<f64> {
    let width = tables.width();
    let mut out = Vec::with_capacity(sequences.ids.len() * width);
    for (index, pair) in sequences.cu_seqlens.windows(2).enumerate() {
        for (position, id) in sequences.ids[pair[0] as usize..pair[1] as usize].iter().enumerate() {
            let word = &tables.word[*id as usize * width..][..width];
            let added = tables.row(sequences.type_of(index, position), position);
            let sums = word.iter().zip(added);
            let mut row: Vec<f64> = sums.map(|(w, p)| f64::from(*w) + f64::from(*p)).collect();
            normalize(&tables.norm, &mut row);
            out.append(&mut row);
        }
    }
    out
}
