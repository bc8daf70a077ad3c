//! Softmax attention over a packed batch; input: `[tokens, 3 * width]` (query, key, value side by side), output: `[tokens, width]`.
//!
//! Every token attends to all tokens of its own sequence; no padding is stored or computed.
//! FLOPs: `4 * length² * width` per sequence. Scores of a tile of query rows stay in the first-level cache.

mod cpu;
pub mod reference;

use crate::error::{ShapeError, expect_len, expect_nonzero, expect_offsets};
use crate::exec::CpuExec;

/// Number and size of the attention heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Heads.
    pub count: usize,
    /// Elements of one head.
    pub dims: usize,
}

impl Heads {
    /// Elements of a token over all heads.
    pub fn width(&self) -> usize {
        self.count * self.dims
    }
}

/// Fills `out` (`[tokens, width]`) with `softmax(q k^T / sqrt(dims)) v` per sequence and head.
pub fn attention(
    exec: &mut CpuExec,
    heads: Heads,
    qkv: &[f32],
    cu_seqlens: &[u32],
    out: &mut [f32],
) -> Result<(), ShapeError> {
    const OP: &str = "attention";
    let width = heads.width();
    expect_nonzero(OP, "width", width)?;
    let tokens = out.len() / width;
    expect_len(OP, "out", out.len(), tokens * width)?;
    expect_len(OP, "qkv", qkv.len(), tokens * 3 * width)?;
    expect_offsets(OP, cu_seqlens, tokens)?;
    cpu::run(exec, heads, qkv, cu_seqlens, out);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{all_execs, assert_close, random};

    #[test]
    fn matches_the_reference_for_awkward_shapes() {
        for (count, dims) in [(12, 32), (2, 64), (3, 20), (1, 5)] {
            let heads = Heads { count, dims };
            let width = heads.width();
            let cu_seqlens = [0, 1, 1, 3, 19, 36, 100];
            // Larger than unit scale, so that the softmax is far from uniform.
            let qkv: Vec<f32> = random(100 * 3 * width, 1).iter().map(|x| x * 3.0).collect();
            let exact = reference::attention(heads, &qkv, &cu_seqlens);
            for mut exec in all_execs() {
                let mut out = vec![f32::NAN; 100 * width];
                attention(&mut exec, heads, &qkv, &cu_seqlens, &mut out).unwrap();
                assert_close(&out, &exact, 1e-5);
            }
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn matches_the_reference_for_any_lengths(
            lengths in proptest::collection::vec(0..40_u32, 0..8),
            count in 1..4_usize,
            dims in 1..40_usize,
        ) {
            let mut cu_seqlens = vec![0];
            for length in lengths {
                cu_seqlens.push(cu_seqlens.last().unwrap() + length);
            }
            let heads = Heads { count, dims };
            let tokens = *cu_seqlens.last().unwrap() as usize;
            let qkv = random(tokens * 3 * heads.width(), 2);
            let exact = reference::attention(heads, &qkv, &cu_seqlens);
            for mut exec in all_execs() {
                let mut out = vec![f32::NAN; tokens * heads.width()];
                attention(&mut exec, heads, &qkv, &cu_seqlens, &mut out).unwrap();
                assert_close(&out, &exact, 1e-5);
            }
        }
    }

    #[test]
    fn sequences_do_not_see_each_other() {
        let heads = Heads { count: 2, dims: 16 };
        let mut exec = CpuExec::new(1).unwrap();
        let mut qkv = random(20 * 96, 1);
        let mut first = vec![0.0; 20 * 32];
        attention(&mut exec, heads, &qkv, &[0, 9, 20], &mut first).unwrap();
        qkv[9 * 96..].fill(1e3);
        let mut second = vec![0.0; 20 * 32];
        attention(&mut exec, heads, &qkv, &[0, 9, 20], &mut second).unwrap();
        assert_eq!(first[..9 * 32], second[..9 * 32]);
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let heads = Heads { count: 2, dims: 4 };
        let mut exec = CpuExec::new(1).unwrap();
        let qkv = [0.0; 48];
        assert!(attention(&mut exec, heads, &qkv, &[0, 2], &mut [0.0; 8]).is_err());
        assert!(attention(&mut exec, heads, &qkv, &[0, 1], &mut [0.0; 16]).is_err());
        assert!(attention(&mut exec, heads, &qkv, &[0, 2], &mut [0.0; 15]).is_err());
    }
}
