//! The one error a kernel returns: an argument does not fit the others; input: what was compared, output: one line that says so.

/// An argument of a kernel does not fit the others; nothing was computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// A slice has the wrong number of elements.
    #[error("{op}: {what} has {actual} elements, expected {expected}")]
    Length {
        /// The operation that refused.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// Elements it has.
        actual: usize,
        /// Elements it must have.
        expected: usize,
    },
    /// A size that must not be zero is zero.
    #[error("{op}: {what} must not be zero")]
    Zero {
        /// The operation that refused.
        op: &'static str,
        /// The size.
        what: &'static str,
    },
    /// Sequence offsets must start at zero, never fall and end at the number of tokens.
    #[error("{op}: sequence offsets must rise from 0 to {tokens}")]
    Offsets {
        /// The operation that refused.
        op: &'static str,
        /// Tokens in the batch.
        tokens: usize,
    },
    /// An index lies outside its table.
    #[error("{op}: {what} {index} is outside a table of {rows} rows")]
    Index {
        /// The operation that refused.
        op: &'static str,
        /// The index.
        what: &'static str,
        /// Its value.
        index: usize,
        /// Rows of the table.
        rows: usize,
    },
    /// A size is larger than the space for it.
    #[error("{op}: {what} takes {actual}, more than {limit}")]
    Bound {
        /// The operation that refused.
        op: &'static str,
        /// The size.
        what: &'static str,
        /// Its value.
        actual: usize,
        /// The largest value.
        limit: usize,
    },
    /// A size is not a multiple of what it is cut into.
    #[error("{op}: {what} {value} is not a multiple of {factor}")]
    Multiple {
        /// The operation that refused.
        op: &'static str,
        /// The size.
        what: &'static str,
        /// Its value.
        value: usize,
        /// What it must be a multiple of.
        factor: usize,
    },
}

/// Checks that a slice has the length the other arguments imply.
pub(crate) fn expect_len(
    op: &'static str,
    what: &'static str,
    actual: usize,
    expected: usize,
) -> Result<(), ShapeError> {
    if actual == expected {
        return Ok(());
    }
    Err(ShapeError::Length {
        op,
        what,
        actual,
        expected,
    })
}

/// Checks that a size is not zero.
pub(crate) fn expect_nonzero(op: &'static str, what: &'static str, value: usize) -> Result<(), ShapeError> {
    if value == 0 {
        return Err(ShapeError::Zero { op, what });
    }
    Ok(())
}

/// Checks that a size fits the space for it.
pub(crate) fn expect_at_most(
    op: &'static str,
    what: &'static str,
    actual: usize,
    limit: usize,
) -> Result<(), ShapeError> {
    if actual <= limit {
        return Ok(());
    }
    Err(ShapeError::Bound {
        op,
        what,
        actual,
        limit,
    })
}

/// Checks that an index lies inside its table.
pub(crate) fn expect_index(op: &'static str, what: &'static str, index: usize, rows: usize) -> Result<(), ShapeError> {
    if index < rows {
        return Ok(());
    }
    Err(ShapeError::Index { op, what, index, rows })
}

/// Checks that a size is a multiple of `factor`, which is not zero.
pub(crate) fn expect_multiple(
    op: &'static str,
    what: &'static str,
    value: usize,
    factor: usize,
) -> Result<(), ShapeError> {
    if value.is_multiple_of(factor) {
        return Ok(());
    }
    Err(ShapeError::Multiple {
        op,
        what,
        value,
        factor,
    })
}

/// Checks `cu_seqlens`: starts at 0, never falls, ends at `tokens`.
pub(crate) fn expect_offsets(op: &'static str, offsets: &[u32], tokens: usize) -> Result<(), ShapeError> {
    let rises = offsets.windows(2).all(|pair| pair[0] <= pair[1]);
    let starts = offsets.first() == Some(&0);
    let ends = offsets.last().is_some_and(|&end| end as usize == tokens);
    if starts && rises && ends {
        return Ok(());
    }
    Err(ShapeError::Offsets { op, tokens })
}
