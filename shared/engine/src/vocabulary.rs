//! Texts to tokens and back, as the model's own files say; input: a text or token ids, output: the other of the two.

use std::sync::Arc;

use crate::error::InputError;

/// A model's tokens; cheap to clone, knows no limits of length.
#[derive(Clone)]
pub struct Vocabulary {
    tokenizer: Arc<tokenizers::Tokenizer>,
    size: usize,
}

impl Vocabulary {
    /// The tokens of a tokenizer, for a model of so many words.
    pub(crate) fn new(tokenizer: Arc<tokenizers::Tokenizer>, size: usize) -> Self {
        Self { tokenizer, size }
    }

    /// Ids of a text, with the model's special tokens around it if asked; special tokens that are spelled out in it are recognized.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, InputError> {
        let encoding = self.tokenizer.encode_fast(text, add_special);
        let encoding = encoding.map_err(|error| failed(&*error))?;
        self.known(encoding.get_ids())?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids, special tokens included.
    pub fn decode(&self, ids: &[u32]) -> Result<String, InputError> {
        self.known(ids)?;
        self.tokenizer.decode(ids, false).map_err(|error| failed(&*error))
    }

    /// A token as the vocabulary spells it; empty for an id that the tokenizer does not have.
    pub fn spelling(&self, id: u32) -> String {
        self.tokenizer.id_to_token(id).unwrap_or_default()
    }

    fn known(&self, ids: &[u32]) -> Result<(), InputError> {
        match ids.iter().find(|id| **id as usize >= self.size) {
            Some(&id) => Err(InputError::TokenOutOfRange { id, vocab: self.size }),
            None => Ok(()),
        }
    }
}

fn failed(error: &(dyn std::error::Error + Send + Sync)) -> InputError {
    InputError::Tokenizer {
        reason: error.to_string(),
    }
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Vocabulary")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}
