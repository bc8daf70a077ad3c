//! The front of a cross-encoder; input: a directory, then a query and passages, output: token ids of each pair, then a logit for each.

use std::path::Path;
use std::sync::Arc;

use crate::backend::{Backend, Embeddings, ModelInfo, PackedBatch, Purpose};
use crate::embedding_model::{LoadOptions, Loaded};
use crate::error::{ComputeError, InputError, LoadError};
use crate::pairs::{PairTokenizer, Query};
use crate::tokenizer::{TokenIds, Truncate};
use crate::vocabulary::Vocabulary;

/// A loaded model that ranks; cheap to clone, usable from several threads.
#[derive(Debug, Clone)]
pub struct RankingModel {
    pairs: Arc<PairTokenizer>,
    vocabulary: Vocabulary,
    backend: Arc<dyn Backend>,
}

impl RankingModel {
    /// Loads a directory of a classifier of text pairs with one label (`config.json`, `model.safetensors`, `tokenizer.json`) for the CPU.
    pub fn load(directory: &Path, options: LoadOptions) -> Result<Self, LoadError> {
        let loaded = Loaded::load(directory, options, Purpose::Rank)?;
        let encoder = &loaded.description.encoder;
        let typed = !encoder.family.is_roberta() && encoder.type_vocab_size > 1;
        Ok(Self {
            pairs: Arc::new(PairTokenizer::new(&loaded.tokenizer, typed)?),
            vocabulary: loaded.tokenizer.vocabulary(),
            backend: Arc::new(loaded.backend),
        })
    }

    /// What is known of the model.
    pub fn info(&self) -> &ModelInfo {
        self.backend.info()
    }

    /// The tokens of a query, to be paired with passages.
    pub fn query(&self, text: &str) -> Result<Query, InputError> {
        self.pairs.query(text)
    }

    /// The ids of a query with a passage, special tokens included, cut or refused when they are too long.
    pub fn pair(&self, query: &Query, passage: &str, truncate: Truncate) -> Result<TokenIds, InputError> {
        self.pairs.pair(query, passage, truncate)
    }

    /// One logit per pair, in order, as vectors of one element; blocks until they are computed (call it off the async threads).
    pub fn score(&self, pairs: &[TokenIds]) -> Result<Embeddings, ComputeError> {
        self.backend.embed(&PackedBatch::new(pairs)?)
    }

    /// The model's tokens.
    pub fn vocabulary(&self) -> Vocabulary {
        self.vocabulary.clone()
    }
}
