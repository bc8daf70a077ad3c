//! First layer of a BERT model; input: token ids of packed sequences, output: `[tokens, width]`: word + position + type row, normalized.

mod cpu;
pub mod reference;

use crate::error::{ShapeError, expect_index, expect_len, expect_nonzero, expect_offsets};
use crate::exec::CpuExec;
use crate::layernorm::LayerNorm;

/// The tables of the first layer.
#[derive(Debug)]
pub struct EmbeddingTables {
    word: Vec<f32>,
    /// `[types, positions, width]`: the rows of each token type, added to those of the positions once and for all.
    /// A model that learned no positions has one row per type.
    rows: Vec<f32>,
    /// Positions, if they were learned.
    positions: Option<usize>,
    norm: LayerNorm,
}

/// Packed sequences and which of their tokens belong to a second text.
#[derive(Debug, Clone, Copy)]
pub struct Sequences<'a> {
    /// All token ids.
    pub ids: &'a [u32],
    /// Where each sequence starts, and at last the number of tokens.
    pub cu_seqlens: &'a [u32],
    /// Where in each sequence the tokens of type 1 begin, counted from its start; empty when all tokens have type 0.
    pub second_from: &'a [u32],
}

impl Sequences<'_> {
    /// First row of a token's type, given its sequence and its position in it.
    fn type_of(&self, sequence: usize, position: usize) -> usize {
        let second = self.second_from.get(sequence);
        usize::from(second.is_some_and(|from| position >= *from as usize))
    }
}

impl EmbeddingTables {
    /// `word` is `[vocabulary, width]`, `position` `[positions, width]` unless the model learned none, `token_types`
    /// `[types, width]` with one row or more.
    pub fn new(
        word: Vec<f32>,
        position: Option<&[f32]>,
        token_types: &[f32],
        norm: LayerNorm,
    ) -> Result<Self, ShapeError> {
        const OP: &str = "embedding";
        let width = norm.width();
        expect_nonzero(OP, "word rows", word.len())?;
        expect_nonzero(OP, "token_type rows", token_types.len())?;
        expect_len(OP, "word", word.len(), word.len() / width * width)?;
        expect_len(OP, "token_type", token_types.len(), token_types.len() / width * width)?;
        if let Some(position) = position {
            expect_nonzero(OP, "position rows", position.len())?;
            expect_len(OP, "position", position.len(), position.len() / width * width)?;
        }
        let mut rows = Vec::with_capacity(position.unwrap_or(&[]).len().max(width) * token_types.len() / width);
        for token_type in token_types.chunks_exact(width) {
            match position {
                None => rows.extend_from_slice(token_type),
                Some(position) => {
                    let sums = position.chunks_exact(width).flat_map(|row| row.iter().zip(token_type));
                    rows.extend(sums.map(|(position, token_type)| position + token_type));
                }
            }
        }
        Ok(Self {
            word,
            rows,
            positions: position.map(|position| position.len() / width),
            norm,
        })
    }

    fn width(&self) -> usize {
        self.norm.width()
    }

    fn types(&self) -> usize {
        self.rows.len() / self.width() / self.positions.unwrap_or(1)
    }

    /// Type and position row of a token.
    fn row(&self, token_type: usize, position: usize) -> &[f32] {
        let index = self
            .positions
            .map_or(token_type, |positions| token_type * positions + position);
        &self.rows[index * self.width()..][..self.width()]
    }
}

/// Fills `out` (`[tokens, width]`) for packed sequences; positions count from 0 in each sequence.
pub fn embed(
    exec: &mut CpuExec,
    tables: &EmbeddingTables,
    sequences: Sequences<'_>,
    out: &mut [f32],
) -> Result<(), ShapeError> {
    const OP: &str = "embedding";
    let Sequences {
        ids,
        cu_seqlens,
        second_from,
    } = sequences;
    let width = tables.width();
    expect_offsets(OP, cu_seqlens, ids.len())?;
    expect_len(OP, "out", out.len(), ids.len() * width)?;
    let words = tables.word.len() / width;
    if let Some(&id) = ids.iter().find(|id| **id as usize >= words) {
        expect_index(OP, "token", id as usize, words)?;
    }
    let longest = cu_seqlens.windows(2).map(|pair| pair[1] - pair[0]).max();
    if let (Some(longest), Some(positions)) = (longest, tables.positions) {
        expect_index(OP, "position", (longest as usize).saturating_sub(1), positions)?;
    }
    if !second_from.is_empty() {
        expect_len(OP, "second_from", second_from.len(), cu_seqlens.len() - 1)?;
        let lengths = cu_seqlens.windows(2).map(|pair| pair[1] - pair[0]);
        let has_second = lengths.zip(second_from).any(|(length, from)| *from < length);
        expect_index(OP, "token type", usize::from(has_second), tables.types())?;
    }
    cpu::run(exec, tables, sequences, out);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{all_execs, assert_close, random};

    fn tables(width: usize, types: usize, learned_positions: bool) -> EmbeddingTables {
        let norm = LayerNorm::new(random(width, 1), random(width, 2), 1e-12).unwrap();
        let position = random(20 * width, 4);
        let position = learned_positions.then_some(&position[..]);
        EmbeddingTables::new(random(50 * width, 3), position, &random(types * width, 5), norm).unwrap()
    }

    fn plain<'a>(ids: &'a [u32], cu_seqlens: &'a [u32]) -> Sequences<'a> {
        Sequences {
            ids,
            cu_seqlens,
            second_from: &[],
        }
    }

    #[test]
    fn matches_the_reference() {
        let ids: Vec<u32> = (0..60).map(|i| i * 7 % 50).collect();
        let cu_seqlens = [0, 1, 1, 21, 40, 60];
        for width in [9, 384] {
            for (types, learned, second_from) in [
                (1, true, &[][..]),
                (1, false, &[]),
                (2, true, &[1, 0, 7, 19, 0]),
                (2, false, &[0, 0, 20, 3, 11]),
                (1, true, &[1, 0, 20, 19, 20]),
            ] {
                let tables = tables(width, types, learned);
                let sequences = Sequences {
                    second_from,
                    ..plain(&ids, &cu_seqlens)
                };
                let exact = reference::embed(&tables, sequences);
                for mut exec in all_execs() {
                    let mut out = vec![f32::NAN; 60 * width];
                    embed(&mut exec, &tables, sequences, &mut out).unwrap();
                    assert_close(&out, &exact, 1e-5);
                }
            }
        }
    }

    #[test]
    fn what_lies_outside_a_table_is_refused() {
        let tables = tables(8, 1, true);
        let mut exec = CpuExec::new(1).unwrap();
        let mut out = vec![0.0; 21 * 8];
        let ids = [0; 21];
        let too_long = embed(&mut exec, &tables, plain(&ids, &[0, 21]), &mut out);
        assert!(matches!(too_long, Err(ShapeError::Index { index: 20, .. })));
        let unknown = embed(&mut exec, &tables, plain(&[50], &[0, 1]), &mut out[..8]);
        assert!(matches!(unknown, Err(ShapeError::Index { index: 50, .. })));
        for offsets in [&[][..], &[0], &[1, 2], &[0, 3], &[0, 2, 1, 2]] {
            let wrong = embed(&mut exec, &tables, plain(&[0, 0], offsets), &mut out[..16]);
            assert!(matches!(wrong, Err(ShapeError::Offsets { .. })));
        }
        let pair = |second_from| Sequences {
            second_from,
            ..plain(&[0, 0], &[0, 2])
        };
        let typed = embed(&mut exec, &tables, pair(&[1]), &mut out[..16]);
        assert!(matches!(typed, Err(ShapeError::Index { index: 1, rows: 1, .. })));
        let wrong = embed(&mut exec, &tables, pair(&[1, 1]), &mut out[..16]);
        assert!(matches!(wrong, Err(ShapeError::Length { .. })));
    }
}
