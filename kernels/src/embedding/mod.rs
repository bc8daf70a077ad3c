//! First layer of a BERT model; input: token ids of packed sequences, output: `[tokens, width]`: word + position + type row, normalized.

mod cpu;
pub mod reference;

use crate::error::{ShapeError, expect_len, expect_nonzero, expect_offsets};
use crate::exec::CpuExec;
use crate::layernorm::LayerNorm;

/// The tables of the first layer.
#[derive(Debug)]
pub struct EmbeddingTables {
    word: Vec<f32>,
    /// Position rows with the row of token type 0 added: every token of an embedding request has that type.
    position: Vec<f32>,
    norm: LayerNorm,
}

impl EmbeddingTables {
    /// `word` is `[vocabulary, width]`, `position` `[positions, width]`, `token_type` the one row `[width]` of type 0.
    pub fn new(
        word: Vec<f32>,
        mut position: Vec<f32>,
        token_type: &[f32],
        norm: LayerNorm,
    ) -> Result<Self, ShapeError> {
        const OP: &str = "embedding";
        let width = norm.width();
        expect_nonzero(OP, "word rows", word.len())?;
        expect_nonzero(OP, "position rows", position.len())?;
        expect_len(OP, "word", word.len(), word.len() / width * width)?;
        expect_len(OP, "position", position.len(), position.len() / width * width)?;
        expect_len(OP, "token_type", token_type.len(), width)?;
        for row in position.chunks_exact_mut(width) {
            for (position, token_type) in row.iter_mut().zip(token_type) {
                *position += token_type;
            }
        }
        Ok(Self { word, position, norm })
    }

    fn width(&self) -> usize {
        self.norm.width()
    }
}

/// Fills `out` (`[tokens, width]`) for packed sequences; positions count from 0 in each sequence.
pub fn embed(
    exec: &mut CpuExec,
    tables: &EmbeddingTables,
    ids: &[u32],
    cu_seqlens: &[u32],
    out: &mut [f32],
) -> Result<(), ShapeError> {
    const OP: &str = "embedding";
    let width = tables.width();
    expect_offsets(OP, cu_seqlens, ids.len())?;
    expect_len(OP, "out", out.len(), ids.len() * width)?;
    let words = tables.word.len() / width;
    let positions = tables.position.len() / width;
    let too_large = |what, index: usize, rows| ShapeError::Index {
        op: OP,
        what,
        index,
        rows,
    };
    if let Some(&id) = ids.iter().find(|id| **id as usize >= words) {
        return Err(too_large("token", id as usize, words));
    }
    let longest = cu_seqlens.windows(2).map(|pair| pair[1] - pair[0]).max();
    if let Some(longest) = longest.filter(|longest| *longest as usize > positions) {
        return Err(too_large("position", longest as usize - 1, positions));
    }
    cpu::run(exec, tables, ids, cu_seqlens, out);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{all_execs, assert_close, random};

    fn tables(width: usize) -> EmbeddingTables {
        let norm = LayerNorm::new(random(width, 1), random(width, 2), 1e-12).unwrap();
        EmbeddingTables::new(random(50 * width, 3), random(20 * width, 4), &random(width, 5), norm).unwrap()
    }

    #[test]
    fn matches_the_reference() {
        let ids: Vec<u32> = (0..60).map(|i| i * 7 % 50).collect();
        let cu_seqlens = [0, 1, 1, 21, 40, 60];
        for width in [9, 384] {
            let tables = tables(width);
            let exact = reference::embed(&tables, &ids, &cu_seqlens);
            for mut exec in all_execs() {
                let mut out = vec![f32::NAN; 60 * width];
                embed(&mut exec, &tables, &ids, &cu_seqlens, &mut out).unwrap();
                assert_close(&out, &exact, 1e-5);
            }
        }
    }

    #[test]
    fn what_lies_outside_a_table_is_refused() {
        let tables = tables(8);
        let mut exec = CpuExec::new(1).unwrap();
        let mut out = vec![0.0; 21 * 8];
        let ids = [0; 21];
        let too_long = embed(&mut exec, &tables, &ids, &[0, 21], &mut out);
        assert!(matches!(too_long, Err(ShapeError::Index { index: 20, .. })));
        let unknown = embed(&mut exec, &tables, &[50], &[0, 1], &mut out[..8]);
        assert!(matches!(unknown, Err(ShapeError::Index { index: 50, .. })));
        for offsets in [&[][..], &[0], &[1, 2], &[0, 3], &[0, 2, 1, 2]] {
            let wrong = embed(&mut exec, &tables, &[0, 0], offsets, &mut out[..16]);
            assert!(matches!(wrong, Err(ShapeError::Offsets { .. })));
        }
    }
}
