//! Who is behind a message. Input: the signed identity in its header, the public keys of the `JWKS` bucket. Output: claims,
//! or why they do not count. A token is verified once and remembered: verifying costs more than serving a small request.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bus::{Bucket, WatchEvent};
use foldhash::fast::RandomState;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use moka::sync::Cache;
use process::CancellationToken;
use schemas::identity::{AUDIENCE, Claims, ISSUER, Jwk, MAX_LIFETIME_S};

/// Tokens remembered; each is a few hundred bytes.
const MAX_TOKENS: u64 = 50_000;
/// Unknown key ids remembered, so that forged ones do not become a flood of questions.
const MAX_UNKNOWN_KEYS: u64 = 1_000;
/// How long an unknown key id is remembered.
const UNKNOWN_FOR: Duration = Duration::from_secs(1);
/// Clocks of auth and broker may differ by this much, in seconds.
const LEEWAY_S: u64 = 5;

/// Why an identity does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// There is none.
    #[error("no identity header")]
    Missing,
    /// Not a token, or signed wrongly, or for somebody else.
    #[error("identity is not valid: {0}")]
    Invalid(String),
    /// Signed by a key that auth has not published.
    #[error("identity is signed by unknown key {0:?}")]
    UnknownKey(String),
    /// The work was published after the identity ended.
    #[error("identity had ended when the work was published")]
    Expired,
}

/// Verifies identities.
pub struct Verifier {
    keys: RwLock<HashMap<String, DecodingKey>>,
    /// By the token itself: comparing it whole is as safe as a strong hash of it, and cheaper.
    tokens: Cache<Box<str>, Arc<Claims>, RandomState>,
    unknown: Cache<String, ()>,
    bucket: Bucket,
}

impl Verifier {
    /// A verifier that knows no key yet.
    #[must_use]
    pub fn new(bucket: Bucket) -> Self {
        let lifetime = Duration::from_secs(MAX_LIFETIME_S + LEEWAY_S);
        Self {
            keys: RwLock::default(),
            tokens: Cache::builder()
                .max_capacity(MAX_TOKENS)
                .time_to_live(lifetime)
                .build_with_hasher(RandomState::default()),
            unknown: Cache::builder()
                .max_capacity(MAX_UNKNOWN_KEYS)
                .time_to_live(UNKNOWN_FOR)
                .build(),
            bucket,
        }
    }

    /// Who published, given when the broker stored the message (Unix seconds).
    ///
    /// # Errors
    /// [`IdentityError`]; an unknown key is looked up once before it is refused.
    pub async fn verify(&self, token: Option<&str>, published_s: u64) -> Result<Arc<Claims>, IdentityError> {
        let token = token.ok_or(IdentityError::Missing)?;
        let claims = match self.tokens.get(token) {
            Some(claims) => claims,
            None => {
                let claims = Arc::new(self.decode(token).await?);
                self.tokens.insert(token.into(), Arc::clone(&claims));
                claims
            }
        };
        // Measured against the time of publication: what waited in the queue was asked for in time.
        if claims.exp + LEEWAY_S < published_s {
            return Err(IdentityError::Expired);
        }
        Ok(claims)
    }

    async fn decode(&self, token: &str) -> Result<Claims, IdentityError> {
        let invalid = |error: jsonwebtoken::errors::Error| IdentityError::Invalid(error.to_string());
        let header = jsonwebtoken::decode_header(token).map_err(invalid)?;
        let kid = header
            .kid
            .ok_or_else(|| IdentityError::Invalid("no key id".to_owned()))?;
        let key = match self.key(&kid) {
            Some(key) => key,
            None => self.fetch(&kid).await?,
        };
        // The algorithm is ours to choose, never the token's.
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_exp = false; // Done by the caller, against the time of publication.
        let claims = jsonwebtoken::decode::<Claims>(token, &key, &validation)
            .map_err(invalid)?
            .claims;
        if claims.exp.saturating_sub(claims.iat) > MAX_LIFETIME_S {
            return Err(IdentityError::Invalid(format!("lives longer than {MAX_LIFETIME_S} s")));
        }
        Ok(claims)
    }

    fn key(&self, kid: &str) -> Option<DecodingKey> {
        self.keys
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(kid)
            .cloned()
    }

    async fn fetch(&self, kid: &str) -> Result<DecodingKey, IdentityError> {
        let unknown = || IdentityError::UnknownKey(kid.chars().take(64).collect());
        if self.unknown.contains_key(kid) {
            return Err(unknown());
        }
        if let Ok(Some(entry)) = self.bucket.get(kid).await {
            self.learn(kid, &entry.value);
        }
        self.key(kid).ok_or_else(|| {
            self.unknown.insert(kid.to_owned(), ());
            unknown()
        })
    }

    fn learn(&self, kid: &str, value: &[u8]) {
        match decoding_key(value) {
            Ok(key) => {
                self.keys
                    .write()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(kid.to_owned(), key);
            }
            Err(error) => tracing::warn!(kid, error, "published signing key cannot be used"),
        }
    }

    fn forget(&self, kid: &str) {
        self.keys.write().unwrap_or_else(PoisonError::into_inner).remove(kid);
    }

    fn forget_all(&self) {
        self.keys.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn decoding_key(value: &[u8]) -> Result<DecodingKey, String> {
    let jwk: Jwk = schemas::wire::decode(value).map_err(|error| error.to_string())?;
    if (jwk.kty.as_str(), jwk.crv.as_str()) != ("OKP", "Ed25519") {
        return Err(format!("kind {}/{} is not OKP/Ed25519", jwk.kty, jwk.crv));
    }
    DecodingKey::from_ed_components(&jwk.x).map_err(|error| error.to_string())
}

/// Follows the published keys until the worker stops.
///
/// # Errors
/// When the bucket is gone for good.
pub async fn follow(verifier: Arc<Verifier>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut watch = verifier.bucket.watch();
    loop {
        let event = tokio::select! {
            event = watch.next() => event,
            () = stop.cancelled() => return Ok(()),
        };
        match event {
            Ok(WatchEvent::Put(entry)) => verifier.learn(&entry.key, &entry.value),
            Ok(WatchEvent::Delete { key, .. }) => verifier.forget(&key),
            Ok(WatchEvent::Reset) => verifier.forget_all(),
            Ok(WatchEvent::InitialDone) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
