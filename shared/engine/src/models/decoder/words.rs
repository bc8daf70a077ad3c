//! The first layer of a decoder: rows of the word table; input: token ids, output: `[tokens, hidden]`.
//!
//! A model whose output layer is the same matrix keeps it once: its rows are read out of the packed weights.

use kernels::ShapeError;
use kernels::gemm::bf16_from_f32;

use crate::backend::Precision;
use crate::models::linear::Linear;

/// Where the rows are.
#[derive(Debug)]
pub(super) enum WordTable {
    /// 4 bytes an element.
    F32(Vec<f32>),
    /// 2 bytes an element.
    Bf16(Vec<u16>),
    /// In the output layer.
    Tied,
}

impl WordTable {
    /// Keeps `[vocab, hidden]` in the smallest form that loses nothing, or loses no more than the chosen precision does anyway.
    pub(super) fn new(values: &[f32], is_bf16: bool, precision: Precision) -> Self {
        if is_bf16 || precision != Precision::F32 {
            return Self::Bf16(values.iter().map(|value| bf16_from_f32(*value)).collect());
        }
        Self::F32(values.to_vec())
    }

    /// Copies the row of each id; the ids were checked against the vocabulary.
    pub(super) fn gather(&self, ids: &[u32], out: &mut [f32], head: &Linear) -> Result<(), ShapeError> {
        let width = out.len().checked_div(ids.len()).unwrap_or(0);
        for (id, out) in ids.iter().zip(out.chunks_exact_mut(width.max(1))) {
            let id = *id as usize;
            match self {
                Self::F32(values) => out.copy_from_slice(&values[id * width..][..width]),
                Self::Bf16(values) => {
                    for (out, bits) in out.iter_mut().zip(&values[id * width..][..width]) {
                        *out = f32::from_bits(u32::from(*bits) << 16);
                    }
                }
                Self::Tied => head.unpack_row(id, out)?,
            }
        }
        Ok(())
    }
}
