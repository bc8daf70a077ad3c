//! A language model for tests whose logits are a hash of the whole context; input: steps, output: logits that change with any wrong block or token.
//!
//! It keeps what it is given in block-addressed storage and reads each context back through the blocks of the span: a block that was reused too
//! early, a wrong position or a lost token gives other logits, or fails at once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use crate::backend::Precision;
use crate::error::ComputeError;
use crate::generate::backend::{GenerateBackend, GenerateInfo, LogitRows, StepBatch, StepLogits, StepSpan};
use crate::generate::constraint::Grammars;
use crate::generate::detokenize::{Detokenizer, SpecialTokens, Spelling, TokenBytes};

/// The token that ends an answer.
pub(crate) const EOS: u32 = 0;
/// Tokens of a block.
pub(crate) const BLOCK_TOKENS: usize = 4;
/// Pieces that overlap, so that stop strings cross their borders, and bytes of characters of two and three bytes.
const PIECES: [&str; 20] = [
    "</s>", "a", "b", "ab", "aE", "E", "N", "D", "END", " ", "\n", "Nb", "<0xE2>", "<0x82>", "<0xAC>", "<0xC3>",
    "<0xA4>", "bE", "ND", "€",
];

pub(crate) const VOCAB: usize = PIECES.len();

/// The id of a piece.
pub(crate) fn id(piece: &str) -> u32 {
    PIECES
        .iter()
        .position(|known| *known == piece)
        .expect("a piece of the toy model") as u32
}

fn token_bytes() -> TokenBytes {
    let vocabulary: HashMap<String, u32> = (0_u32..)
        .zip(PIECES)
        .map(|(id, piece)| (piece.to_owned(), id))
        .collect();
    TokenBytes::new(&vocabulary, &[EOS], Spelling::Pieces)
}

pub(crate) fn detokenizer() -> Detokenizer {
    Detokenizer::new(Arc::new(token_bytes()), SpecialTokens::Skip)
}

/// Compiles grammars for the pieces.
pub(crate) fn grammars() -> Grammars {
    Grammars::new(&token_bytes(), VOCAB, &[EOS]).unwrap()
}

/// The end of an answer in the vocabulary of single bytes.
pub(crate) const BYTE_EOS: u32 = 256;

/// Compiles grammars for a vocabulary whose tokens are the bytes in their order.
pub(crate) fn byte_grammars() -> Grammars {
    let mut vocabulary: HashMap<String, u32> = (0..256).map(|byte| (format!("<0x{byte:02X}>"), byte)).collect();
    vocabulary.insert("</s>".to_owned(), BYTE_EOS);
    let tokens = TokenBytes::new(&vocabulary, &[BYTE_EOS], Spelling::Pieces);
    Grammars::new(&tokens, BYTE_EOS as usize + 1, &[BYTE_EOS]).unwrap()
}

/// The logits that follow a context.
pub(crate) fn logits(context: &[u32]) -> Vec<f32> {
    let state = context.iter().fold(context.len() as u64, |state, token| {
        mix(state ^ (u64::from(*token) << 32))
    });
    let logit = |id: u64| (mix(state ^ id) >> 40) as f32 / (1_u64 << 24) as f32 * 8.0 - 4.0;
    let mut logits: Vec<f32> = (0..VOCAB as u64).map(logit).collect();
    // Ends come seldom, so that answers have some length.
    logits[EOS as usize] -= 3.0;
    logits
}

fn mix(state: u64) -> u64 {
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// What a test sees of, and does to, a backend that a generator owns.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    /// Spans of each step: tokens, and whether logits were asked for.
    pub(crate) steps: Vec<Vec<(usize, bool)>>,
    /// What the next steps do instead of computing.
    pub(crate) mishaps: VecDeque<Mishap>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Mishap {
    None,
    /// An error, after the slots of the step were overwritten with rubbish.
    Fail,
    /// One row of logits too few.
    LosesARow,
    /// All logits are NaN.
    Nan,
}

#[derive(Debug)]
pub(crate) struct Toy {
    info: GenerateInfo,
    /// Token and position per slot.
    slots: Vec<Option<(u32, u32)>>,
    wire: Arc<Mutex<Wire>>,
}

impl Toy {
    pub(crate) fn new(blocks: usize, max_tokens: usize) -> (Self, Arc<Mutex<Wire>>) {
        let info = GenerateInfo {
            family: "toy",
            hidden_size: 1,
            layers: 1,
            vocab_size: VOCAB,
            max_tokens,
            block_tokens: BLOCK_TOKENS,
            blocks,
            precision: Precision::F32,
            parameters: 0,
            revision: "toy".to_owned(),
            eos: vec![EOS],
            kv_bytes: 0,
        };
        let wire = Arc::new(Mutex::new(Wire::default()));
        let toy = Self {
            info,
            slots: vec![None; blocks * BLOCK_TOKENS],
            wire: Arc::clone(&wire),
        };
        (toy, wire)
    }

    fn slot(span: &StepSpan, position: usize) -> usize {
        span.blocks[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS
    }

    fn write(&mut self, span: &StepSpan, is_rubbish: bool) {
        for (position, &token) in (span.first_position as usize..).zip(&span.tokens) {
            let content = if is_rubbish {
                None
            } else {
                Some((token, position as u32))
            };
            self.slots[Self::slot(span, position)] = content;
        }
    }

    /// All tokens up to the span's end, none when the step fails or nothing is wanted of it.
    fn read_before_failure(&self, span: &StepSpan, mishap: Mishap) -> Vec<u32> {
        if matches!(mishap, Mishap::Fail) || span.rows() == 0 {
            return Vec::new();
        }
        self.read(span)
    }

    /// All tokens up to the span's end, as the blocks hold them.
    fn read(&self, span: &StepSpan) -> Vec<u32> {
        let token_at = |position: usize| {
            let (token, stored) = self.slots[Self::slot(span, position)].expect("the block was filled");
            assert_eq!(stored as usize, position, "the block holds other positions");
            token
        };
        (0..span.context()).map(token_at).collect()
    }
}

impl GenerateBackend for Toy {
    fn info(&self) -> &GenerateInfo {
        &self.info
    }

    fn step(&mut self, batch: &StepBatch) -> Result<StepLogits, ComputeError> {
        batch.check(&self.info)?;
        let mishap = {
            let mut wire = self.wire.lock().unwrap();
            let seen = batch
                .spans
                .iter()
                .map(|span| (span.tokens.len(), span.logits == LogitRows::Last));
            wire.steps.push(seen.collect());
            wire.mishaps.pop_front().unwrap_or(Mishap::None)
        };
        for span in &batch.spans {
            self.write(span, matches!(mishap, Mishap::Fail));
        }
        let mut values = Vec::new();
        for span in &batch.spans {
            let context = self.read_before_failure(span, mishap);
            // The last rows of the context, as many as are wanted.
            for end in context.len().saturating_sub(span.rows()) + 1..=context.len() {
                match mishap {
                    Mishap::Nan => values.extend([f32::NAN; VOCAB]),
                    _ => values.extend(logits(&context[..end])),
                }
            }
        }
        match mishap {
            Mishap::Fail => return Err(ComputeError::BatchTooLarge { tokens: 0, max: 0 }),
            Mishap::LosesARow => values.truncate(values.len().saturating_sub(VOCAB)),
            Mishap::None | Mishap::Nan => {}
        }
        Ok(StepLogits::new(VOCAB, values))
    }
}
