//! One vector per sequence; input: `[tokens, width]` of packed sequences, output: `[sequences, width]`, of unit length when asked.

mod cpu;
pub mod reference;

use crate::error::{ShapeError, expect_len, expect_nonzero, expect_offsets};
use crate::exec::CpuExec;

/// How the vectors of a sequence become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all tokens, special ones included.
    Mean,
    /// The vector of the first token.
    Cls,
}

/// Pooling and what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolOptions {
    /// How vectors are combined.
    pub pooling: Pooling,
    /// Whether the result is scaled to unit length (a zero vector stays zero).
    pub normalize: bool,
}

/// Fills `out`, `[sequences, width]`; an empty sequence gives zeros.
pub fn pool(
    exec: &mut CpuExec,
    options: PoolOptions,
    x: &[f32],
    cu_seqlens: &[u32],
    out: &mut [f32],
) -> Result<(), ShapeError> {
    const OP: &str = "pool";
    let sequences = cu_seqlens.len().saturating_sub(1);
    if sequences == 0 {
        expect_offsets(OP, cu_seqlens, 0)?;
        expect_len(OP, "x", x.len(), 0)?;
        return expect_len(OP, "out", out.len(), 0);
    }
    let width = out.len() / sequences;
    expect_nonzero(OP, "width", width)?;
    expect_len(OP, "out", out.len(), sequences * width)?;
    let tokens = x.len() / width;
    expect_len(OP, "x", x.len(), tokens * width)?;
    expect_offsets(OP, cu_seqlens, tokens)?;
    cpu::run(exec, options, x, cu_seqlens, out);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{all_execs, assert_close, random};

    #[test]
    fn matches_the_reference() {
        let cu_seqlens = [0, 1, 1, 30, 47];
        for width in [5, 16, 384] {
            let x = random(47 * width, 1);
            for pooling in [Pooling::Mean, Pooling::Cls] {
                for normalize in [true, false] {
                    let options = PoolOptions { pooling, normalize };
                    let exact = reference::pool(options, &x, &cu_seqlens, width);
                    for mut exec in all_execs() {
                        let mut out = vec![f32::NAN; 4 * width];
                        pool(&mut exec, options, &x, &cu_seqlens, &mut out).unwrap();
                        assert_close(&out, &exact, 1e-6);
                    }
                }
            }
        }
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let options = PoolOptions {
            pooling: Pooling::Mean,
            normalize: true,
        };
        let mut exec = CpuExec::new(1).unwrap();
        assert!(pool(&mut exec, options, &[], &[0], &mut []).is_ok());
        assert!(pool(&mut exec, options, &[0.0; 8], &[0, 1], &mut [0.0; 4]).is_err());
        assert!(pool(&mut exec, options, &[0.0; 8], &[0, 2], &mut []).is_err());
        assert!(pool(&mut exec, options, &[0.0; 8], &[0, 1, 2], &mut [0.0; 7]).is_err());
    }
}
