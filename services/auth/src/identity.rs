//! Signed identities. Input: what is stored of a key, and the time. Output: EdDSA JWTs (RFC 7519, RFC 8037) that live a
//! minute at most, and the public keys that prove them.
//!
//! The private key is made at start, never leaves this process's memory and is replaced every day. A token is used
//! again while more than half of its life is left, so that a resolve seldom costs a signature.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jsonwebtoken::jwk::{AlgorithmParameters, Jwk as JwtJwk};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use moka::sync::Cache;
use schemas::identity::{AUDIENCE, Claims, ISSUER, Jwk};
use schemas::policy::{KeyInfo, hex};

use crate::keys::SECRET_BYTES;

/// What stands before the 32 bytes of an Ed25519 private key in PKCS #8 (RFC 8410, section 7).
const PKCS8_ED25519: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// How much longer than planned a signing key may be used, in seconds: an hour without the broker delays a rotation
/// and stops nothing.
const ROTATION_GRACE_S: u64 = 3_600;

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    /// The system has no randomness to give.
    #[error("cannot draw a signing key from the system's randomness")]
    Randomness(#[source] getrandom::Error),
    /// The library refused the key.
    #[error("cannot use the signing key")]
    Key(#[source] jsonwebtoken::errors::Error),
    /// The library refused the claims.
    #[error("cannot sign an identity")]
    Sign(#[source] jsonwebtoken::errors::Error),
    /// No public key is published that outlives a new token.
    #[error("no signing key is in force")]
    NoKey,
}

/// One private key and what verifiers are told of it.
pub(crate) struct SigningKey {
    private: EncodingKey,
    /// Published before the first token is signed.
    pub(crate) public: Jwk,
    /// When the next key should take over, Unix seconds.
    pub(crate) rotate_at_s: u64,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SigningKey")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

impl SigningKey {
    /// A new key, to be used for `rotation_s` seconds with tokens of `lifetime_s`.
    pub(crate) fn generate(now_s: u64, rotation_s: u64, lifetime_s: u64) -> Result<Self, IdentityError> {
        let mut der = [0; PKCS8_ED25519.len() + SECRET_BYTES];
        let (head, seed) = der.split_at_mut(PKCS8_ED25519.len());
        head.copy_from_slice(&PKCS8_ED25519);
        getrandom::fill(seed).map_err(IdentityError::Randomness)?;
        let mut kid = [0; 8];
        getrandom::fill(&mut kid).map_err(IdentityError::Randomness)?;
        let private = EncodingKey::from_ed_der(&der);
        let public = JwtJwk::from_encoding_key(&private, Algorithm::EdDSA).map_err(IdentityError::Key)?;
        let AlgorithmParameters::OctetKeyPair(pair) = public.algorithm else {
            let kind = jsonwebtoken::errors::ErrorKind::InvalidEddsaKey;
            return Err(IdentityError::Key(kind.into()));
        };
        let rotate_at_s = now_s + rotation_s;
        let public = Jwk {
            kty: "OKP".to_owned(),
            crv: "Ed25519".to_owned(),
            alg: "EdDSA".to_owned(),
            kid: hex(&kid),
            x: pair.x,
            expires_at_s: rotate_at_s + ROTATION_GRACE_S + lifetime_s,
        };
        Ok(Self {
            private,
            public,
            rotate_at_s,
        })
    }

    fn sign(&self, claims: &Claims) -> Result<String, IdentityError> {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.public.kid.clone());
        jsonwebtoken::encode(&header, claims, &self.private).map_err(IdentityError::Sign)
    }
}

/// One identity, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The JWT.
    pub(crate) token: String,
    /// When it ends, Unix milliseconds.
    pub(crate) expires_at_ms: u64,
    policy_version: u64,
    issued_at_ms: u64,
}

impl Identity {
    /// Whether it says what a key may do now and lives long enough to be given out again.
    fn is_fresh(&self, info: &KeyInfo, now_ms: u64) -> bool {
        let life_ms = self.expires_at_ms.saturating_sub(self.issued_at_ms);
        self.policy_version == info.policy_version
            // A clock that was set back must not make a token look younger than it is.
            && self.issued_at_ms <= now_ms
            && self.expires_at_ms.saturating_sub(now_ms) * 2 > life_ms
    }
}

/// Signs, and remembers what was signed.
#[derive(Debug)]
pub(crate) struct Identities {
    key: RwLock<Option<Arc<SigningKey>>>,
    recent: Cache<String, Arc<Identity>>,
    lifetime_s: u64,
}

impl Identities {
    /// Identities of `lifetime_s` seconds, of which this many are remembered.
    pub(crate) fn new(lifetime_s: u64, cached: u64) -> Self {
        let recent = Cache::builder()
            .max_capacity(cached)
            .time_to_live(Duration::from_secs(lifetime_s))
            .build();
        Self {
            key: RwLock::default(),
            recent,
            lifetime_s,
        }
    }

    /// Signs with this key from now on. Its public half must be published already.
    pub(crate) fn install(&self, key: Arc<SigningKey>) {
        *self.key.write().unwrap_or_else(PoisonError::into_inner) = Some(key);
    }

    /// The key in force.
    pub(crate) fn key(&self) -> Option<Arc<SigningKey>> {
        self.key.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The identity of a key that was found good, and whether it had to be signed.
    pub(crate) fn of(&self, info: &KeyInfo, now_ms: u64) -> Result<(Arc<Identity>, bool), IdentityError> {
        if let Some(recent) = self.recent.get(&info.kid)
            && recent.is_fresh(info, now_ms)
        {
            return Ok((recent, false));
        }
        let key = self.key().ok_or(IdentityError::NoKey)?;
        let claims = self.claims(info, now_ms / 1_000);
        if claims.exp > key.public.expires_at_s {
            return Err(IdentityError::NoKey);
        }
        let identity = Arc::new(Identity {
            token: key.sign(&claims)?,
            expires_at_ms: claims.exp * 1_000,
            policy_version: info.policy_version,
            issued_at_ms: now_ms,
        });
        self.recent.insert(info.kid.clone(), Arc::clone(&identity));
        Ok((identity, true))
    }

    fn claims(&self, info: &KeyInfo, now_s: u64) -> Claims {
        // An identity does not outlive its key, but for the rest of the key's last second.
        let key_ends_s = info.expires_at_ms.map_or(u64::MAX, |at_ms| at_ms.div_ceil(1_000));
        Claims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: info.kid.clone(),
            tnt: info.tenant.clone(),
            mdl: info.models.clone(),
            scp: info.scopes.clone(),
            pri: info.priority_ceiling,
            ver: info.policy_version,
            iat: now_s,
            exp: (now_s + self.lifetime_s).min(key_ends_s),
        }
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation};
    use schemas::policy::{KeyState, Scope};
    use schemas::work::Lane;

    use super::*;

    const NOW_MS: u64 = 1_800_000_000_500;

    fn info(version: u64) -> KeyInfo {
        KeyInfo {
            kid: "k".to_owned(),
            tenant: "t".to_owned(),
            name: "n".to_owned(),
            state: KeyState::Active,
            models: vec!["*".to_owned()],
            scopes: vec![Scope::Inference],
            request_limit: None,
            priority_ceiling: Lane::Batch,
            created_at_ms: 0,
            expires_at_ms: None,
            policy_version: version,
        }
    }

    fn identities() -> Identities {
        let identities = Identities::new(60, 10);
        let key = SigningKey::generate(NOW_MS / 1_000, 86_400, 60).unwrap();
        identities.install(Arc::new(key));
        identities
    }

    #[test]
    fn a_token_says_what_the_key_may_do() {
        let identities = identities();
        let (identity, signed) = identities.of(&info(7), NOW_MS).unwrap();
        assert!(signed);
        let public = identities.key().unwrap().public.clone();
        let header = jsonwebtoken::decode_header(&identity.token).unwrap();
        assert_eq!((header.kid, header.alg), (Some(public.kid), Algorithm::EdDSA));
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[AUDIENCE]);
        validation.validate_exp = false;
        let proof = DecodingKey::from_ed_components(&public.x).unwrap();
        let claims = jsonwebtoken::decode::<Claims>(&identity.token, &proof, &validation)
            .unwrap()
            .claims;
        assert_eq!((claims.sub.as_str(), claims.tnt.as_str()), ("k", "t"));
        assert_eq!((claims.ver, claims.pri), (7, Lane::Batch));
        assert_eq!((claims.iat, claims.exp), (NOW_MS / 1_000, NOW_MS / 1_000 + 60));
        assert_eq!(identity.expires_at_ms, claims.exp * 1_000);
    }

    #[test]
    fn used_again_for_half_a_life_and_one_policy() {
        let identities = identities();
        let of = |version, at_ms| identities.of(&info(version), at_ms).unwrap();
        let (first, _) = of(1, NOW_MS);
        assert_eq!(of(1, NOW_MS + 29_000), (Arc::clone(&first), false));
        let (second, signed) = of(1, NOW_MS + 31_000);
        assert!(signed && second.expires_at_ms > first.expires_at_ms);
        assert!(of(2, NOW_MS + 31_000).1, "the policy changed");
        assert!(of(2, NOW_MS - 5_000).1, "the clock was set back");
    }

    #[test]
    fn no_identity_outlives_its_key_or_its_proof() {
        let identities = identities();
        let mut short = info(1);
        short.expires_at_ms = Some(NOW_MS + 5_000);
        let (identity, _) = identities.of(&short, NOW_MS).unwrap();
        assert_eq!(identity.expires_at_ms, 1_800_000_006_000);
        let too_late_ms = identities.key().unwrap().public.expires_at_s * 1_000;
        assert!(matches!(
            identities.of(&info(2), too_late_ms),
            Err(IdentityError::NoKey)
        ));
        assert!(matches!(
            Identities::new(60, 1).of(&info(1), NOW_MS),
            Err(IdentityError::NoKey)
        ));
    }
}
