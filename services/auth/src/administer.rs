//! Key administration. Input: [`CreateKey`], [`ListKeys`] and [`NameKey`]. Output: [`KeysReply`], and a [`Revoked`]
//! for everyone after a change.

use schemas::error::{ErrorCode, Failure};
use schemas::ids::is_token;
use schemas::policy::{CreateKey, KeyInfo, KeyState, KeysReply, ListKeys, NameKey, Revoked, Scope};

use crate::authorize::{Authority, RETRY_AFTER_MS, is_kid};
use crate::keys::{self, NewKey};
use crate::permits::MAX_LIMIT;
use crate::store::{Change, KeyRow, StoreError};

/// Longest name of a key in characters: one line of a table.
const MAX_NAME_CHARS: usize = 128;
/// Most globs of a key, and most bytes of all together: they travel in the header of every message.
const MAX_MODELS: usize = 32;
const MAX_MODELS_BYTES: usize = 2_048;

/// What a change leaves to be told.
#[derive(Debug)]
pub(crate) struct Administered {
    /// The answer.
    pub(crate) reply: KeysReply,
    /// To be published before the answer goes out.
    pub(crate) revoked: Option<Revoked>,
}

impl From<KeysReply> for Administered {
    fn from(reply: KeysReply) -> Self {
        Self { reply, revoked: None }
    }
}

impl Authority {
    /// Makes a key. The answer holds its text, which nobody can ever ask for again.
    pub(crate) async fn create(&self, asked: CreateKey) -> KeysReply {
        let now_ms = self.clock.now_unix_ms();
        if let Err(failure) = check(&asked, now_ms) {
            return KeysReply::Failed(failure);
        }
        let key = match NewKey::generate() {
            Ok(key) => key,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "key not generated");
                return KeysReply::Failed(not_changed());
            }
        };
        let pepper_version = self.peppers.newest();
        let Some(mac) = self.peppers.mac(pepper_version, &keys::digest(&key.text)) else {
            return KeysReply::Failed(not_changed());
        };
        let row = KeyRow {
            info: info(asked, &key, now_ms),
            mac,
            pepper_version,
        };
        match self.directory.store().insert(&row).await {
            Ok(()) => {
                tracing::info!(kid = key.kid, tenant = row.info.tenant, "key created");
                KeysReply::Created {
                    key: key.text,
                    info: row.info,
                }
            }
            Err(error) => self.store_failed(&error),
        }
    }

    /// One page of keys.
    pub(crate) async fn list(&self, asked: &ListKeys, page: usize) -> KeysReply {
        let (tenant, after) = (asked.tenant.as_deref(), asked.after.as_deref());
        match self.directory.store().list(tenant, after, page).await {
            Ok((keys, more)) => KeysReply::Listed { keys, more },
            Err(error) => self.store_failed(&error),
        }
    }

    /// Enables, disables or deletes a key.
    pub(crate) async fn set_state(&self, asked: &NameKey, state: KeyState) -> Administered {
        if !is_kid(&asked.kid) {
            return no_such_key().into();
        }
        let now_ms = self.clock.now_unix_ms();
        let row = match self.directory.set_state(&asked.kid, state, now_ms).await {
            Ok(Change::Done(row)) => {
                let (kid, tenant) = (&row.info.kid, &row.info.tenant);
                tracing::info!(kid, tenant, ?state, "key changed");
                row
            }
            // Told again: who repeats a change may do so because the first word of it was lost.
            Ok(Change::Already(row)) => row,
            Ok(Change::Deleted) => return refused("kid", "The key is deleted.").into(),
            Ok(Change::NoSuchKey) => return no_such_key().into(),
            Err(error) => return self.store_failed(&error).into(),
        };
        Administered {
            revoked: Some(Revoked {
                kid: row.info.kid.clone(),
                policy_version: row.info.policy_version,
            }),
            reply: KeysReply::Changed(row.info),
        }
    }

    fn store_failed(&self, error: &StoreError) -> KeysReply {
        self.failed(error);
        KeysReply::Failed(not_changed())
    }
}

/// A refusal that names the field at fault.
pub(crate) fn refused(param: &str, message: impl Into<String>) -> KeysReply {
    KeysReply::Failed(Failure::new(ErrorCode::InvalidField, message).param(param))
}

fn no_such_key() -> KeysReply {
    refused("kid", "There is no key with this id.")
}

fn not_changed() -> Failure {
    Failure::new(ErrorCode::Unavailable, "Keys cannot be changed now.").retry_after_ms(RETRY_AFTER_MS)
}

fn info(asked: CreateKey, key: &NewKey, now_ms: u64) -> KeyInfo {
    let mut models = asked.models;
    if models.is_empty() {
        models.push("*".to_owned());
    }
    let mut scopes: Vec<Scope> = Vec::new();
    for scope in asked.scopes {
        if !scopes.contains(&scope) {
            scopes.push(scope);
        }
    }
    if scopes.is_empty() {
        scopes = vec![Scope::Inference, Scope::UsageRead];
    }
    KeyInfo {
        kid: key.kid.clone(),
        tenant: asked.tenant,
        name: asked.name,
        state: KeyState::Active,
        models,
        scopes,
        request_limit: asked.request_limit,
        priority_ceiling: asked.priority_ceiling,
        created_at_ms: now_ms,
        expires_at_ms: asked.expires_at_ms,
        policy_version: 1,
    }
}

fn check(asked: &CreateKey, now_ms: u64) -> Result<(), Failure> {
    let refuse = |param: &str, message: String| Err(Failure::new(ErrorCode::InvalidField, message).param(param));
    if !is_token(&asked.tenant) {
        let message = "A tenant is 1 to 64 characters of a-z, 0-9, _ and -.";
        return refuse("tenant", message.to_owned());
    }
    let name_chars = asked.name.chars().count();
    if name_chars == 0 || name_chars > MAX_NAME_CHARS || asked.name.chars().any(char::is_control) {
        return refuse("name", format!("A name is 1 to {MAX_NAME_CHARS} printable characters."));
    }
    let bytes: usize = asked.models.iter().map(String::len).sum();
    if asked.models.len() > MAX_MODELS || bytes > MAX_MODELS_BYTES || asked.models.iter().any(String::is_empty) {
        let message =
            format!("A key has at most {MAX_MODELS} model globs, none empty, of {MAX_MODELS_BYTES} bytes together.");
        return refuse("models", message);
    }
    if asked.scopes.contains(&Scope::Unknown) {
        return refuse("scopes", "A scope is not known.".to_owned());
    }
    if let Some(limit) = asked.request_limit {
        for (param, value) in [
            ("request_limit.per_minute", limit.per_minute),
            ("request_limit.burst", limit.burst),
        ] {
            if !(1..=MAX_LIMIT).contains(&value) {
                return refuse(param, format!("A limit is 1 to {MAX_LIMIT}."));
            }
        }
    }
    match asked.expires_at_ms {
        Some(at_ms) if at_ms <= now_ms => refuse("expires_at_ms", "The end of a key lies in the future.".to_owned()),
        // The database's integers have 63 bits.
        Some(at_ms) if i64::try_from(at_ms).is_err() => {
            refuse("expires_at_ms", "The end of a key is too far away.".to_owned())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use schemas::policy::RequestLimit;
    use schemas::work::Lane;

    use super::*;

    fn good() -> CreateKey {
        CreateKey {
            tenant: "acme".to_owned(),
            name: "naïve 名".to_owned(),
            models: Vec::new(),
            scopes: Vec::new(),
            request_limit: None,
            priority_ceiling: Lane::Interactive,
            expires_at_ms: None,
        }
    }

    #[test]
    fn what_a_key_may_not_be() {
        assert_eq!(check(&good(), 10), Ok(()));
        let limit = |per_minute, burst| Some(RequestLimit { per_minute, burst });
        type Spoil = fn(&mut CreateKey);
        let cases: [(&str, Spoil); 9] = [
            ("tenant", |key| key.tenant = "A b".to_owned()),
            ("tenant", |key| key.tenant = "a.b".to_owned()),
            ("name", |key| key.name = String::new()),
            ("name", |key| key.name = "a\nb".to_owned()),
            ("models", |key| key.models = vec!["*".to_owned(); 33]),
            ("models", |key| key.models = vec!["x".repeat(2_049)]),
            ("models", |key| key.models = vec![String::new()]),
            ("scopes", |key| key.scopes = vec![Scope::Unknown]),
            ("expires_at_ms", |key| key.expires_at_ms = Some(10)),
        ];
        for (param, spoil) in cases {
            let mut key = good();
            spoil(&mut key);
            assert_eq!(check(&key, 10).unwrap_err().param.as_deref(), Some(param));
        }
        for (limit, param) in [
            (limit(0, 1), "request_limit.per_minute"),
            (limit(1, 0), "request_limit.burst"),
            (limit(1, MAX_LIMIT + 1), "request_limit.burst"),
        ] {
            let key = CreateKey {
                request_limit: limit,
                ..good()
            };
            assert_eq!(check(&key, 10).unwrap_err().param.as_deref(), Some(param));
        }
    }

    #[test]
    fn nothing_said_means_all_models_and_ordinary_use() {
        let key = NewKey::generate().unwrap();
        let made = info(good(), &key, 5);
        assert_eq!(made.models, ["*"]);
        assert_eq!(made.scopes, [Scope::Inference, Scope::UsageRead]);
        let admin = CreateKey {
            scopes: vec![Scope::Admin, Scope::Admin],
            ..good()
        };
        assert_eq!(info(admin, &key, 5).scopes, [Scope::Admin]);
    }
}
