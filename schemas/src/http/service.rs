//! Bodies about the service: errors, models, health, version, metadata, usage. Input: state of the mesh. Output: JSON types.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Every error body: OpenAI's envelope, all four fields present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorObject,
}

/// The error inside the envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorObject {
    /// What was wrong and what to do.
    pub message: String,
    /// OpenAI's error type.
    #[serde(rename = "type")]
    pub kind: String,
    /// The field at fault.
    pub param: Option<String>,
    /// A code from the closed set of `schemas/generated/errors.md`.
    pub code: Option<String>,
}

/// The `data:` event of a streamed answer that cannot go on; nothing follows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StreamErrorBody {
    /// The error.
    pub error: StreamErrorObject,
}

/// The error inside the event: the envelope's four fields and a fifth, because some clients look for an error only there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StreamErrorObject {
    /// `error`.
    pub object: String,
    /// What was wrong and what to do.
    pub message: String,
    /// OpenAI's error type.
    #[serde(rename = "type")]
    pub kind: String,
    /// The field at fault.
    pub param: Option<String>,
    /// A code from the closed set of `schemas/generated/errors.md`.
    pub code: Option<String>,
}

/// Body of `GET /v1/models`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelList {
    /// `list`.
    pub object: String,
    /// The models this key may use.
    pub data: Vec<ModelObject>,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelObject {
    /// Its name.
    pub id: String,
    /// `model`.
    pub object: String,
    /// When it was first served, Unix seconds.
    pub created: u64,
    /// `portalis`.
    pub owned_by: String,
    /// Base model; the name itself (NIM clients read it).
    pub root: String,
    /// Most tokens of one input, or of prompt and answer together.
    pub max_model_len: u32,
    /// Length of its vectors; 0 for models that make none.
    pub dimensions: u32,
}

/// Body of `GET /v1/health/live` and `GET /v1/health/ready`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HealthBody {
    /// `health.response`.
    pub object: String,
    /// What is the case.
    pub message: String,
    /// Only of `ready`: whether it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
}

/// Body of `GET /v1/version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VersionBody {
    /// Version of Portalis.
    pub release: String,
    /// Version of the HTTP API.
    pub api: String,
}

/// Body of `GET /v1/metadata` (NIM).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MetadataBody {
    /// What is served, as text.
    pub asset_info: Vec<String>,
    /// Licence of the program.
    pub license_info: LicenseInfo,
    /// The models.
    pub model_info: Vec<ModelInfo>,
    /// Version of Portalis.
    pub version: String,
    /// Id of the profile in use: the number formats.
    pub selected_model_profile_id: String,
    /// Where weights come from when not from the model directory; always empty.
    #[serde(rename = "repository_override")]
    pub repository_override: String,
}

/// Licence of the program, as NIM writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LicenseInfo {
    /// SPDX name.
    pub name: String,
    /// File in the source tree.
    pub path: String,
    /// Hash of the text (blake3).
    pub sha: String,
    /// Length of the text in bytes.
    pub size: u64,
}

/// One model in the metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelInfo {
    /// Its name.
    pub short_name: String,
    /// Its revision, as a URN.
    pub model_url: String,
}

/// Body of `GET /v1/usage`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UsageBody {
    /// Requests answered.
    pub requests: u64,
    /// Requests computed.
    pub computed: u64,
    /// Requests answered from the cache or by an identical request in flight.
    pub cached: u64,
    /// Tokens in.
    pub input_tokens: u64,
    /// Tokens out.
    pub output_tokens: u64,
    /// Device time of this key's requests, in seconds.
    pub compute_seconds: f64,
    /// What it cost, in dollars.
    pub cost_usd: f64,
    /// What the cached answers would have cost, in dollars.
    pub saved_usd: f64,
    /// The ledger holds everything before this moment (RFC 3339, UTC).
    pub as_of: String,
}
