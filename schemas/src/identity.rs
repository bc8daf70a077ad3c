//! The signed identity that travels with work. Input: a key's policy. Output: claims of an EdDSA JWT (RFC 7519, RFC 8037).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::{Scope, any_glob_matches};
use crate::work::Lane;

/// Issuer of every identity.
pub const ISSUER: &str = "portalis-auth";
/// Audience of every identity.
pub const AUDIENCE: &str = "portalis";
/// Longest life of an identity in seconds: the bound on how long a lost key works when a verifier is cut off.
pub const MAX_LIFETIME_S: u64 = 60;

/// Who asks. Field names are short because the token travels with every message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Claims {
    /// Issuer, [`ISSUER`].
    pub iss: String,
    /// Audience, [`AUDIENCE`].
    pub aud: String,
    /// The API key's id.
    pub sub: String,
    /// The tenant who pays.
    pub tnt: String,
    /// Models the key may use, as globs.
    pub mdl: Vec<String>,
    /// What the key may do.
    pub scp: Vec<Scope>,
    /// The most urgent lane the key may use.
    pub pri: Lane,
    /// Version of the key's policy.
    pub ver: u64,
    /// Issued at, Unix seconds.
    pub iat: u64,
    /// Expires at, Unix seconds.
    pub exp: u64,
}

impl Claims {
    /// Whether the key may use a model.
    #[must_use]
    pub fn allows_model(&self, model: &str) -> bool {
        any_glob_matches(&self.mdl, model)
    }
}

/// A public signing key as it lies in the `JWKS` bucket under its `kid`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Jwk {
    /// Key type, `OKP`.
    pub kty: String,
    /// Curve, `Ed25519`.
    pub crv: String,
    /// Algorithm, `EdDSA`.
    pub alg: String,
    /// Key id.
    pub kid: String,
    /// The public key, base64url without padding.
    pub x: String,
    /// Unix seconds after which no token signed by it is alive, so it may go.
    pub expires_at_s: u64,
}
