//! A model that answers at once, for measuring everything around a model; input: token ids, output: a vector that depends on nothing but them.
//!
//! It exists for mesh benchmarks and is never chosen by default. Its tokens are words between white space.
//! Vectors are deterministic, of unit length, and cost one multiplication per 32 elements.

use kernels::pool::Pooling;

use crate::backend::{Backend, Embeddings, ModelInfo, PackedBatch, Precision, Purpose};
use crate::error::{ComputeError, InputError};
use crate::tokenizer::{Input, TokenIds, Truncate};

/// Ids the echo model has; words are hashed into them.
const VOCAB: usize = 1 << 20;

/// Sizes of the echo model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EchoOptions {
    /// Elements of a vector; 0 is taken as 1.
    pub dims: usize,
    /// Most tokens of one input; 0 is taken as 1.
    pub max_tokens: usize,
}

impl Default for EchoOptions {
    /// The sizes of MiniLM's vectors and of the longest common context.
    fn default() -> Self {
        Self {
            dims: 384,
            max_tokens: 8_192,
        }
    }
}

/// The model that answers at once.
#[derive(Debug)]
pub struct EchoBackend {
    info: ModelInfo,
}

impl EchoBackend {
    /// A model of the given sizes.
    pub fn new(options: EchoOptions) -> Self {
        let max_tokens = options.max_tokens.max(1);
        Self {
            info: ModelInfo {
                family: "echo",
                purpose: Purpose::Embed,
                dims: options.dims.max(1),
                max_tokens,
                max_positions: max_tokens,
                vocab_size: VOCAB,
                precision: Precision::F32,
                parameters: 0,
                revision: "echo-1".to_owned(),
                pooling: Pooling::Mean,
                normalized: true,
            },
        }
    }
}

impl Backend for EchoBackend {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn embed(&self, batch: &PackedBatch) -> Result<Embeddings, ComputeError> {
        batch.check(&self.info)?;
        let dims = self.info.dims;
        let mut values = Vec::with_capacity(batch.sequences() * dims);
        for bounds in batch.cu_seqlens().windows(2) {
            let ids = &batch.ids()[bounds[0] as usize..bounds[1] as usize];
            fill(&mut values, dims, ids);
        }
        Ok(Embeddings::new(dims, values))
    }
}

/// Appends one vector: signs from a generator seeded with the ids, equal magnitudes, so that its length is 1 without a second pass.
fn fill(values: &mut Vec<f32>, dims: usize, ids: &[u32]) {
    let mut state = ids.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, id| {
        (hash ^ u64::from(*id)).wrapping_mul(0x0100_0000_01b3)
    });
    let magnitude = 1.0 / (dims as f32).sqrt();
    let mut left = dims;
    while left > 0 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let bits = state >> 32;
        let count = left.min(32);
        values.extend((0..count).map(|bit| if bits >> bit & 1 == 0 { magnitude } else { -magnitude }));
        left -= count;
    }
}

/// One token per word, or the given ids; an input of white space alone is one token.
pub(crate) fn tokenize(info: &ModelInfo, input: Input<'_>, truncate: Truncate) -> Result<TokenIds, InputError> {
    let mut ids: Vec<u32> = match input {
        Input::Text("") | Input::Tokens([]) => return Err(InputError::Empty),
        Input::Text(text) => text.split_whitespace().map(word_id).collect(),
        Input::Tokens(ids) => ids.to_vec(),
    };
    if ids.is_empty() {
        ids.push(0);
    }
    if let Some(&id) = ids.iter().find(|id| **id as usize >= info.vocab_size) {
        return Err(InputError::TokenOutOfRange {
            id,
            vocab: info.vocab_size,
        });
    }
    let max = info.max_tokens;
    if ids.len() > max {
        match truncate {
            Truncate::None => {
                return Err(InputError::TooLong { tokens: ids.len(), max });
            }
            Truncate::Start => drop(ids.drain(..ids.len() - max)),
            Truncate::End => ids.truncate(max),
        }
    }
    Ok(TokenIds::new(ids))
}

fn word_id(word: &str) -> u32 {
    let hash = word.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    hash % VOCAB as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embed(backend: &EchoBackend, sequences: &[&[u32]]) -> Embeddings {
        let sequences: Vec<TokenIds> = sequences.iter().map(|ids| TokenIds::new(ids.to_vec())).collect();
        backend.embed(&PackedBatch::new(&sequences).unwrap()).unwrap()
    }

    #[test]
    fn vectors_depend_on_the_ids_alone_and_have_unit_length() {
        for dims in [1, 31, 32, 384, 1_000] {
            let backend = EchoBackend::new(EchoOptions {
                dims,
                ..EchoOptions::default()
            });
            let both = embed(&backend, &[&[1, 2, 3], &[4]]);
            assert_eq!(both.len(), 2);
            assert_eq!(both.row(1), embed(&backend, &[&[4]]).row(0));
            for row in both.rows() {
                assert_eq!(row.len(), dims);
                let length: f32 = row.iter().map(|x| x * x).sum();
                assert!((length - 1.0).abs() < 1e-4);
            }
            if dims > 300 {
                assert_ne!(both.row(0), both.row(1));
            }
        }
    }

    #[test]
    fn words_are_tokens() {
        let backend = EchoBackend::new(EchoOptions { dims: 4, max_tokens: 3 });
        let info = backend.info();
        let count = |text, truncate| tokenize(info, Input::Text(text), truncate).map(|ids| ids.len());
        assert_eq!(count("one two\nthree", Truncate::None), Ok(3));
        assert_eq!(count("  ", Truncate::None), Ok(1));
        assert_eq!(count("", Truncate::None), Err(InputError::Empty));
        assert_eq!(
            count("a b c d", Truncate::None),
            Err(InputError::TooLong { tokens: 4, max: 3 })
        );
        let cut = |truncate| tokenize(info, Input::Tokens(&[1, 2, 3, 4]), truncate).unwrap();
        assert_eq!(cut(Truncate::Start).as_slice(), [2, 3, 4]);
        assert_eq!(cut(Truncate::End).as_slice(), [1, 2, 3]);
        assert!(matches!(
            tokenize(info, Input::Tokens(&[u32::MAX]), Truncate::None),
            Err(InputError::TokenOutOfRange { id: u32::MAX, .. })
        ));
    }
}
