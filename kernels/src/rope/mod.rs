//! Rotary position embedding in place; input: heads inside rows `[tokens, stride]` f32 and a position per token, output: the heads rotated.
//!
//! Element `i` of a head forms a pair with element `i + dims / 2` (the convention of Hugging Face, "rotate half"), turned by `position * inv_freq[i]`.
//! Source: Su et al. 2021 (arXiv 2104.09864). Cosines and sines are tabled at load: `8 * max_positions * inv_freq` bytes.
//! FLOPs: 3 per element; bytes: 8 per element of a head, plus the table's row of the position, which all heads of a token share.

mod cpu;
pub mod reference;

use crate::error::{ShapeError, expect_index, expect_len, expect_nonzero};
use crate::exec::CpuExec;
use crate::head_columns::HeadColumns;

/// Cosines and sines of every position.
#[derive(Debug, Clone)]
pub struct RopeTable {
    half: usize,
    /// `[max_positions, 2, half]`: cosines, then sines.
    turns: Vec<f32>,
}

impl RopeTable {
    /// Tables `scale * cos` and `scale * sin` of `position * inv_freq` for positions below `max_positions`.
    ///
    /// `scale` is 1 except for scalings that temper attention (YaRN's attention factor).
    /// The angle is rounded to f32 before the cosine, as the models' own code does: at position 100,000 exact angles would differ from theirs by up to 0.004.
    pub fn new(inv_freq: &[f32], max_positions: usize, scale: f32) -> Result<Self, ShapeError> {
        const OP: &str = "rope";
        expect_nonzero(OP, "inv_freq", inv_freq.len())?;
        expect_nonzero(OP, "positions", max_positions)?;
        let half = inv_freq.len();
        let mut turns = Vec::with_capacity(max_positions * 2 * half);
        for position in 0..max_positions {
            let angles = inv_freq.iter().map(|frequency| position as f32 * frequency);
            turns.extend(angles.clone().map(|angle| angle.cos() * scale));
            turns.extend(angles.map(|angle| angle.sin() * scale));
        }
        Ok(Self { half, turns })
    }

    /// Elements of a head.
    pub fn dims(&self) -> usize {
        2 * self.half
    }

    /// Positions in the table.
    pub fn max_positions(&self) -> usize {
        self.turns.len() / (2 * self.half)
    }

    /// Cosines and sines of one position.
    fn turn(&self, position: u32) -> (&[f32], &[f32]) {
        self.turns[position as usize * 2 * self.half..][..2 * self.half].split_at(self.half)
    }
}

/// Rotates the heads of each row by the row's position.
pub fn rope(
    exec: &mut CpuExec,
    table: &RopeTable,
    positions: &[u32],
    columns: HeadColumns,
    rows: &mut [f32],
) -> Result<(), ShapeError> {
    const OP: &str = "rope";
    let tokens = columns.tokens(OP, table.dims(), rows.len())?;
    expect_len(OP, "positions", positions.len(), tokens)?;
    if let Some(&largest) = positions.iter().max() {
        expect_index(OP, "position", largest as usize, table.max_positions())?;
    }
    cpu::run(exec, table, positions, columns, rows);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{all_execs, assert_close, random};

    fn inv_freq(half: usize) -> Vec<f32> {
        (0..half).map(|i| 10_000_f32.powf(-(i as f32) / half as f32)).collect()
    }

    fn check(columns: HeadColumns, half: usize, positions: &[u32], scale: f32) {
        let inv_freq = inv_freq(half);
        let table = RopeTable::new(&inv_freq, 4_096, scale).unwrap();
        let rows = random(positions.len() * columns.stride, 1);
        let exact = reference::rope((&inv_freq, scale), positions, columns, &rows);
        for mut exec in all_execs() {
            let mut out = rows.clone();
            rope(&mut exec, &table, positions, columns, &mut out).unwrap();
            assert_close(&out, &exact, 1e-6);
        }
    }

    #[test]
    fn matches_the_reference_inside_packed_rows() {
        for half in [1, 5, 8, 16, 33, 64] {
            let columns = HeadColumns {
                stride: 6 * 2 * half + 3,
                first: 3,
                heads: 4,
            };
            check(columns, half, &[0, 1, 7, 4_095, 7, 512], 1.0);
            check(columns, half, &[3], 1.25);
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn matches_the_reference_for_any_shape(
            positions in proptest::collection::vec(0..4_096_u32, 0..90),
            half in 1..40_usize,
            heads in 0..6_usize,
            first in 0..5_usize,
        ) {
            let columns = HeadColumns { stride: first + heads * 2 * half + 1, first, heads };
            check(columns, half, &positions, 1.0);
        }
    }

    #[test]
    fn position_zero_changes_nothing() {
        let table = RopeTable::new(&inv_freq(8), 4, 1.0).unwrap();
        let columns = HeadColumns {
            stride: 16,
            first: 0,
            heads: 1,
        };
        let rows = random(16, 1);
        let mut out = rows.clone();
        rope(&mut CpuExec::new(1).unwrap(), &table, &[0], columns, &mut out).unwrap();
        assert_eq!(out, rows);
    }

    #[test]
    fn wrong_arguments_are_refused() {
        assert!(RopeTable::new(&[], 4, 1.0).is_err());
        assert!(RopeTable::new(&[1.0], 0, 1.0).is_err());
        let table = RopeTable::new(&[1.0, 0.1], 8, 1.0).unwrap();
        assert_eq!((table.dims(), table.max_positions()), (4, 8));
        let mut exec = CpuExec::new(1).unwrap();
        let columns = HeadColumns {
            stride: 8,
            first: 0,
            heads: 2,
        };
        let error = rope(&mut exec, &table, &[8], columns, &mut [0.0; 8]).unwrap_err();
        assert_eq!(error.to_string(), "rope: position 8 is outside a table of 8 rows");
        assert!(rope(&mut exec, &table, &[0, 1], columns, &mut [0.0; 8]).is_err());
        let columns = HeadColumns { first: 1, ..columns };
        assert!(rope(&mut exec, &table, &[0], columns, &mut [0.0; 8]).is_err());
    }
}
