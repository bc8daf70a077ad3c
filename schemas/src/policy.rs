//! Keys and what they may do. Input: API keys as clients send them. Output: the messages between gateway, CLI and auth.

use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::work::Lane;

/// Number of partitions of keys; fixed for ever, because subjects and later ownership depend on it.
pub const PARTITIONS: u32 = 64;

/// The partition of a key id (or of any other stable text): CRC-32 (IEEE, `zlib.crc32`) of its UTF-8 bytes, modulo
/// [`PARTITIONS`]. Clients in other languages compute it too, and every standard library has this one.
#[must_use]
pub fn partition(text: &str) -> u32 {
    crc32fast::hash(text.as_bytes()) % PARTITIONS
}

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Use models.
    Inference,
    /// Read its own usage.
    UsageRead,
    /// Manage keys.
    Admin,
    /// A scope newer than this program; grants nothing.
    #[serde(other)]
    Unknown,
}

/// A limit on requests: `per_minute` on average, `burst` at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RequestLimit {
    /// Requests per minute, 1 or more.
    pub per_minute: u32,
    /// Requests at once, 1 or more.
    pub burst: u32,
}

/// Gateway or internal publisher → auth: who is this key? Body of `portalis.v1.auth.resolve.<partition>`.
/// The key itself never crosses the bus: `key_sha256` is the SHA-256 of the whole key text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Resolve {
    /// The key's public id, the third part of `ptl_live_<kid>_…`.
    pub kid: String,
    /// SHA-256 of the whole key, 64 hexadecimal digits.
    pub key_sha256: String,
}

/// auth → asker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resolved {
    /// The key is good.
    Granted(Grant),
    /// It is not; the failure is what the client is told.
    Denied(Failure),
}

/// What a good key may do, and the identity to send with its work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Grant {
    /// The key's id.
    pub kid: String,
    /// The tenant who pays.
    pub tenant: String,
    /// Models it may use, as globs (`*` stands for any text).
    pub models: Vec<String>,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// The most urgent lane it may use.
    pub priority_ceiling: Lane,
    /// Its request limit, `None` = no limit.
    #[serde(default)]
    pub request_limit: Option<RequestLimit>,
    /// Counts up with each change of the key.
    pub policy_version: u64,
    /// Signed identity (EdDSA JWT with [`crate::identity::Claims`]).
    pub identity: String,
    /// When the identity ends, Unix milliseconds.
    pub identity_expires_at_ms: u64,
}

impl Grant {
    /// Whether the key may use a model.
    #[must_use]
    pub fn allows_model(&self, model: &str) -> bool {
        any_glob_matches(&self.models, model)
    }
}

/// Gateway → auth: permits for requests of a limited key. Body of `portalis.v1.auth.hold.<partition>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hold {
    /// The key.
    pub kid: String,
    /// Fewest permits of use, 1 or more.
    pub least: u32,
    /// Most permits of use.
    pub most: u32,
}

/// auth → gateway: permits to admit requests, the sum over all gateways never above the limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Held {
    /// Permits granted, 0 when the limit is reached.
    pub granted: u32,
    /// How long the permits may be used, in milliseconds; unused ones are lost.
    pub valid_ms: u64,
    /// Permits left at auth after this.
    pub remaining: u32,
    /// When the limit is whole again, in milliseconds.
    pub reset_ms: u64,
    /// When `least` permits will be there, in milliseconds; 0 when granted.
    pub retry_after_ms: u64,
}

/// auth → everyone: a key was changed, disabled or deleted. Body of `portalis.v1.auth.revoked`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Revoked {
    /// The key.
    pub kid: String,
    /// Its new policy version; older grants are void.
    pub policy_version: u64,
}

/// CLI → auth: make a key. Body of `portalis.v1.auth.keys.create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CreateKey {
    /// The tenant who pays, `[a-z0-9_-]`, 1 to 64 characters.
    pub tenant: String,
    /// What people call it.
    pub name: String,
    /// Models it may use, as globs; empty = all.
    #[serde(default)]
    pub models: Vec<String>,
    /// What it may do; empty = inference and usage.
    #[serde(default)]
    pub scopes: Vec<Scope>,
    /// Its request limit, `None` = no limit.
    #[serde(default)]
    pub request_limit: Option<RequestLimit>,
    /// The most urgent lane it may use.
    #[serde(default)]
    pub priority_ceiling: Lane,
    /// When it ends, Unix milliseconds, `None` = never.
    #[serde(default)]
    pub expires_at_ms: Option<u64>,
}

/// CLI → auth: act on one key. Body of `portalis.v1.auth.keys.{disable,enable,delete}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NameKey {
    /// The key.
    pub kid: String,
}

/// CLI → auth: list keys. Body of `portalis.v1.auth.keys.list`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ListKeys {
    /// Only this tenant's.
    #[serde(default)]
    pub tenant: Option<String>,
    /// Only keys after this id, for the next page.
    #[serde(default)]
    pub after: Option<String>,
}

/// auth → CLI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeysReply {
    /// A new key; `key` is shown here once and never again.
    Created {
        /// The whole key.
        key: String,
        /// What is stored of it.
        info: KeyInfo,
    },
    /// One page of keys, by id.
    Listed {
        /// The keys.
        keys: Vec<KeyInfo>,
        /// Whether more follow.
        more: bool,
    },
    /// The key after the change.
    Changed(KeyInfo),
    /// Refused.
    Failed(Failure),
}

/// Whether a key works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    /// It works.
    Active,
    /// It does not, until enabled.
    Disabled,
    /// It never will again.
    Deleted,
    /// A state newer than this program; does not work.
    #[serde(other)]
    Unknown,
}

/// What people may know of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyInfo {
    /// Its public id.
    pub kid: String,
    /// The tenant who pays.
    pub tenant: String,
    /// What people call it.
    pub name: String,
    /// Whether it works.
    pub state: KeyState,
    /// Models it may use, as globs.
    pub models: Vec<String>,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Its request limit.
    #[serde(default)]
    pub request_limit: Option<RequestLimit>,
    /// The most urgent lane it may use.
    pub priority_ceiling: Lane,
    /// When it was made, Unix milliseconds.
    pub created_at_ms: u64,
    /// When it ends, Unix milliseconds.
    #[serde(default)]
    pub expires_at_ms: Option<u64>,
    /// Counts up with each change.
    pub policy_version: u64,
}

/// The public id inside a key text of the right shape, `None` for anything else. No secret is checked here.
#[must_use]
pub fn key_id(key: &str) -> Option<&str> {
    let mut parts = key.split('_');
    let (brand, class) = (parts.next()?, parts.next()?);
    let (kid, secret) = (parts.next()?, parts.next()?);
    let alphanumeric = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric());
    let shaped = brand == "ptl" && class == "live" && parts.next().is_none();
    let sized = kid.len() == KID_CHARS && secret.len() == SECRET_CHARS + CHECKSUM_CHARS;
    (shaped && sized && alphanumeric(kid) && alphanumeric(secret)).then_some(kid)
}

/// Why a text cannot be a key of ours; found without asking anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyTextError {
    /// Brand, class, lengths or characters are not those of a key.
    #[error("text does not have the shape of a key")]
    Shape,
    /// The last characters are not the checksum of those before: a typing error, or not a key.
    #[error("checksum of the key is wrong")]
    Checksum,
}

/// The public id inside a key text whose shape and checksum are right. No secret is checked here: this only keeps
/// garbage and typing errors away from every look-up.
///
/// # Errors
/// [`KeyTextError`] for anything that auth cannot have made.
pub fn check_key(key: &str) -> Result<&str, KeyTextError> {
    let kid = key_id(key).ok_or(KeyTextError::Shape)?;
    // `key_id` took only ASCII of this length, so the split is inside the text and between characters.
    let (body, checksum) = key.split_at(key.len() - CHECKSUM_CHARS);
    if key_checksum(body).as_bytes() == checksum.as_bytes() {
        Ok(kid)
    } else {
        Err(KeyTextError::Checksum)
    }
}

/// The checksum that ends a key: CRC-32 of all text before it as 6 base62 digits. It finds every change of up to
/// four neighbouring characters.
#[must_use]
pub fn key_checksum(body: &str) -> String {
    let mut rest = crc32fast::hash(body.as_bytes());
    let mut digits = [b'0'; CHECKSUM_CHARS];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[(rest % 62) as usize];
        rest /= 62;
    }
    digits.iter().copied().map(char::from).collect()
}

/// Digits of the texts inside a key, by value.
pub const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Characters of a key's public id.
pub const KID_CHARS: usize = 12;
/// Characters of a key's secret: 43 base62 digits hold 256 bits.
pub const SECRET_CHARS: usize = 43;
/// Characters of a key's checksum: 6 base62 digits hold a CRC-32.
pub const CHECKSUM_CHARS: usize = 6;

/// Lower-case hexadecimal text of bytes.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Whether any glob matches; `*` stands for any text, all else for itself.
#[must_use]
pub fn any_glob_matches(globs: &[String], text: &str) -> bool {
    globs.iter().any(|glob| glob_matches(glob, text))
}

fn glob_matches(glob: &str, text: &str) -> bool {
    let Some((head, rest)) = glob.split_once('*') else {
        return glob == text;
    };
    let Some(mut text) = text.strip_prefix(head) else {
        return false;
    };
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let tail = pieces.pop().unwrap_or_default();
    for piece in pieces {
        // The leftmost match of each piece leaves the most text for those after it.
        let Some(position) = text.find(piece) else {
            return false;
        };
        text = &text[position + piece.len()..];
    }
    text.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        let cases = [
            ("*", "anything", true),
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("*b*", "abc", true),
            ("a*c*e", "abcde", true),
            ("a*c*e", "ace", true),
            ("a*ce", "ace", true),
            ("ab*ba", "aba", false),
            ("", "", true),
            ("", "x", false),
        ];
        for (glob, text, expected) in cases {
            assert_eq!(glob_matches(glob, text), expected, "{glob} {text}");
        }
        assert!(!any_glob_matches(&[], "a"));
    }

    #[test]
    fn key_ids() {
        let key = format!("ptl_live_{}_{}", "k".repeat(12), "s".repeat(49));
        assert_eq!(key_id(&key), Some("kkkkkkkkkkkk"));
        for bad in [
            "",
            "ptl_live_x_y",
            &key[1..],
            &format!("{key}_"),
            &key.replace("live", "test"),
        ] {
            assert_eq!(key_id(bad), None, "{bad}");
        }
    }

    #[test]
    fn checksums() {
        let body = format!("ptl_live_{}_{}", "k".repeat(12), "s".repeat(43));
        let key = format!("{body}{}", key_checksum(&body));
        assert_eq!(check_key(&key), Ok("kkkkkkkkkkkk"));
        assert_eq!(check_key(&key.replace('k', "l")), Err(KeyTextError::Checksum));
        assert_eq!(check_key(&format!("{key}0")), Err(KeyTextError::Shape));
        // Keys outlive programs: the checksum of a text never changes.
        assert_eq!(key_checksum("123456789"), "3jZRME");
    }

    #[test]
    fn partitions_are_stable() {
        // The check value of CRC-32/IEEE is cbf43926; its last 6 bits are 38.
        assert_eq!(partition("123456789"), 38);
        assert_eq!(partition(""), 0);
        assert!(partition("demo") < PARTITIONS);
    }
}
