//! Where the heads of a token stand in a packed row; input: a row's width, first column and head count, output: checked ranges of columns.

use crate::error::{ShapeError, expect_at_most, expect_len, expect_nonzero};

/// Heads side by side inside rows `[tokens, stride]`; the size of a head comes from what is done to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadColumns {
    /// Elements of a row, all parts included.
    pub stride: usize,
    /// Column of the first head.
    pub first: usize,
    /// Heads from there on.
    pub heads: usize,
}

impl HeadColumns {
    /// Checks that heads of `dims` elements fit a row and that `len` is a whole number of rows, which it returns.
    pub(crate) fn tokens(&self, op: &'static str, dims: usize, len: usize) -> Result<usize, ShapeError> {
        expect_nonzero(op, "stride", self.stride)?;
        let end = self.first.saturating_add(self.heads.saturating_mul(dims));
        expect_at_most(op, "heads", end, self.stride)?;
        let tokens = len / self.stride;
        expect_len(op, "rows", len, tokens * self.stride)?;
        Ok(tokens)
    }

    /// The heads of one row, each `dims` long; the row and `dims` must have passed [`HeadColumns::tokens`].
    #[inline(always)]
    pub(crate) fn split<'a>(&self, row: &'a mut [f32], dims: usize) -> std::slice::ChunksExactMut<'a, f32> {
        row[self.first..][..self.heads * dims].chunks_exact_mut(dims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_must_fit_a_whole_number_of_rows() {
        let columns = HeadColumns {
            stride: 12,
            first: 4,
            heads: 2,
        };
        assert_eq!(columns.tokens("test", 4, 36), Ok(3));
        assert_eq!(
            columns.tokens("test", 5, 36).unwrap_err().to_string(),
            "test: heads takes 14, more than 12"
        );
        assert!(columns.tokens("test", usize::MAX, 36).is_err());
        assert!(columns.tokens("test", 4, 35).is_err());
        assert!(HeadColumns { stride: 0, ..columns }.tokens("test", 4, 0).is_err());
    }
}
