//! Messages of the shared cache tier. Input: keys and answers. Output: bodies of `portalis.v1.cache.*`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// Number of shards of the shared tier; an instance serves some or all of them.
pub const SHARDS: u32 = 16;

/// Which answer: blake3 over tenant, model revision and the canonical request.
/// The tenant is inside the key and beside it: a wrong key can never reach another tenant's answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct CacheKey {
    /// The tenant whose answers these are.
    pub tenant: String,
    /// 32 bytes of blake3.
    #[schemars(with = "Vec<u8>")]
    pub digest: ByteBuf,
}

impl CacheKey {
    /// The shard that holds it.
    #[must_use]
    pub fn shard(&self) -> u32 {
        u32::from(self.digest.first().copied().unwrap_or(0)) % SHARDS
    }

    /// 8 bytes that stand for the key in lists of what the shared tier holds: tenant and digest hashed together.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.tenant.as_bytes());
        hasher.update(&[0]);
        hasher.update(&self.digest);
        let hash = hasher.finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&hash.as_bytes()[..8]);
        u64::from_le_bytes(first)
    }
}

/// Gateway → cache. Body of `portalis.v1.cache.get.<shard>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CacheGet {
    /// Which answer.
    pub key: CacheKey,
}

/// cache → gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CacheFound {
    /// The answer's bytes as they were put, `None` = not here.
    #[schemars(with = "Option<Vec<u8>>")]
    pub body: Option<ByteBuf>,
    /// How much longer it may be used, in milliseconds.
    #[serde(default)]
    pub ttl_ms: u64,
}

/// Gateway → cache. Body of `portalis.v1.cache.put.<shard>`; not answered.
/// A gateway collects answers for a moment, so that many share a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CachePut {
    /// Answers of this shard.
    pub answers: Vec<KeptAnswer>,
}

/// One answer to be kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeptAnswer {
    /// Which answer.
    pub key: CacheKey,
    /// The answer's bytes.
    #[schemars(with = "Vec<u8>")]
    pub body: ByteBuf,
    /// How long it may be used, in milliseconds.
    pub ttl_ms: u64,
}

/// CLI → cache: forget a tenant's answers, or all. Body of `portalis.v1.cache.purge`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CachePurge {
    /// Whose, `None` = everybody's.
    pub tenant: Option<String>,
}

/// cache → gateways: what the shared tier holds now. Body of `portalis.v1.cache.held`.
/// A gateway asks the shared tier only for what it was told of, so a miss costs no round trip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CacheHeld {
    /// [`CacheKey::fingerprint`]s, 8 little-endian bytes each.
    #[schemars(with = "Vec<u8>")]
    pub fingerprints: ByteBuf,
}

/// Gateway → cache: what do you hold? Body of `portalis.v1.cache.index`; each instance answers with [`CacheHeld`] pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CacheIndex {
    /// Most fingerprints of use to the asker.
    pub limit: u32,
}

/// What a gateway keeps of an embeddings answer; the body of [`KeptAnswer`] and [`CacheFound`] for them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CachedEmbeddings {
    /// One vector per input.
    pub vectors: Vec<crate::vector::Vector>,
    /// Tokens in, special tokens included.
    pub input_tokens: u64,
}

/// What a gateway keeps of a ranking; the body of [`KeptAnswer`] and [`CacheFound`] for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CachedRanking {
    /// The raw score of each passage, in their order.
    pub scores: Vec<f32>,
    /// Tokens in, special tokens included.
    pub input_tokens: u64,
}

/// What a gateway keeps of a text that would be the same again; the body of [`KeptAnswer`] and [`CacheFound`] for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CachedText {
    /// One whole part per choice, in their order.
    pub choices: Vec<crate::generate::TextPart>,
    /// Tokens in.
    pub input_tokens: u64,
    /// Tokens out of all choices.
    pub output_tokens: u64,
}
