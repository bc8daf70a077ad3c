//! The first layer of a decoder: rows of the word table; input: token ids, output: `[tokens, hidden]`.
//!
//! A model whose output layer is the same matrix keeps it once: its rows are read out of the packed weights.

use kernels::ShapeError;
use kernels::gemm::bf16_from_f32;
use kernels::gemm_i8::{WEIGHT_LIMIT, quantize_row};

use crate::backend::Precision;
use crate::models::linear::Linear;

/// Where the rows are.
#[derive(Debug)]
pub(super) enum WordTable {
    /// 4 bytes an element.
    F32(Vec<f32>),
    /// 2 bytes an element.
    Bf16(Vec<u16>),
    /// 1 byte an element, and a scale per row: -127..=127 of the row's largest magnitude.
    Int8 { values: Vec<i8>, scales: Vec<f32> },
    /// In the output layer.
    Tied,
}

impl WordTable {
    /// Keeps `[vocab, hidden]` in the smallest form that loses nothing, or loses no more than the chosen precision does anyway.
    /// Rows are only read, never summed over, so 8 bits serve 4-bit models too: 4 bits would lose more there than in a product.
    pub(super) fn new(values: &[f32], width: usize, is_bf16: bool, precision: Precision) -> Self {
        match precision {
            Precision::Int8 | Precision::Int4 => Self::int8(values, width),
            Precision::F32 if !is_bf16 => Self::F32(values.to_vec()),
            Precision::F32 | Precision::Bf16 => Self::Bf16(values.iter().map(|value| bf16_from_f32(*value)).collect()),
        }
    }

    fn int8(words: &[f32], width: usize) -> Self {
        let mut values = Vec::with_capacity(words.len());
        let mut scales = Vec::with_capacity(words.len() / width);
        for row in words.chunks_exact(width) {
            let (row, scale) = quantize_row(row, WEIGHT_LIMIT);
            // Within the limit of an i8 by the choice of the scale.
            values.extend(row.into_iter().map(|value| value as i8));
            scales.push(scale);
        }
        Self::Int8 { values, scales }
    }

    /// Memory of a table of its own; nothing where the rows are those of the output layer.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => size_of_val(&values[..]),
            Self::Bf16(values) => size_of_val(&values[..]),
            Self::Int8 { values, scales } => values.len() + size_of_val(&scales[..]),
            Self::Tied => 0,
        }
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
                Self::Int8 { values, scales } => {
                    for (out, value) in out.iter_mut().zip(&values[id * width..][..width]) {
                        *out = f32::from(*value) * scales[id];
                    }
                }
                Self::Tied => head.unpack_row(id, out)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::CpuExec;

    #[test]
    fn rows_come_back_in_every_form() {
        let (vocab, width) = (5, 24);
        let value = |index: usize| (index * 37 % 101) as f32 / 50.0 - 1.0;
        let words: Vec<f32> = (0..vocab * width).map(value).collect();
        let mut exec = CpuExec::new(1).unwrap();
        let head = Linear::pack(&mut exec, (&words, &[0.0; 5]), width, Precision::F32).unwrap();
        let table = |is_bf16, precision| WordTable::new(&words, width, is_bf16, precision);
        // Bytes, and the largest error: none, half of the last of 8 bits, half a step of 127 (all magnitudes are at most 1).
        for (table, bytes, error) in [
            (table(false, Precision::F32), 4 * vocab * width, 0.0),
            (table(true, Precision::F32), 2 * vocab * width, 1.0 / 256.0),
            (table(false, Precision::Bf16), 2 * vocab * width, 1.0 / 256.0),
            (table(true, Precision::Int8), vocab * (width + 4), 0.501 / 127.0),
            (table(true, Precision::Int4), vocab * (width + 4), 0.501 / 127.0),
            (WordTable::Tied, 0, 0.0),
        ] {
            assert_eq!(table.bytes(), bytes, "{table:?}");
            let mut out = vec![f32::NAN; 3 * width];
            table.gather(&[4, 0, 4], &mut out, &head).unwrap();
            for (out, id) in out.chunks_exact(width).zip([4, 0, 4]) {
                let exact = &words[id * width..][..width];
                assert!(out.iter().zip(exact).all(|(a, b)| (a - b).abs() <= error), "{table:?}");
            }
        }
    }
}
