//! Dead letters. Input: work that failed for good. Output: body of `portalis.v1.dead.<model>`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// Work that was taken out of its queue, whole, with the reason; it can be put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeadLetter {
    /// Subject it was queued on.
    pub subject: String,
    /// Stream it was queued in.
    pub stream: String,
    /// Its sequence there.
    pub stream_sequence: u64,
    /// How often it was delivered.
    pub deliveries: u64,
    /// Why it is dead.
    pub reason: String,
    /// When it was taken out, Unix milliseconds.
    pub died_at_ms: u64,
    /// Its headers without the identity, which is a credential.
    pub headers: Vec<(String, String)>,
    /// Its body as it was.
    #[schemars(with = "Vec<u8>")]
    pub payload: ByteBuf,
}
