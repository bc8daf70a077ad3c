//! How to reach the broker. Input: the `bus` section of a service's configuration. Output: addresses and credentials.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::BusError;

/// Settings of one connection. The URL may hold `user:password@` or `token@`: it is a secret then.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BusConfig {
    /// `nats://host:port`, several separated by commas.
    pub url: String,
    /// How long the first connection is tried, in milliseconds.
    pub connect_timeout_ms: u64,
    /// A silent peer is given up after three of these, in milliseconds.
    pub ping_interval_ms: u64,
    /// Longest wait for an answer where the caller names none, and for room to send, in milliseconds.
    pub request_timeout_ms: u64,
    /// Messages one subscription holds before the client drops; what is dropped is counted.
    pub subscription_capacity: usize,
}

impl Default for BusConfig {
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".to_owned(),
            // A broker started at the same moment is up within a second; ten covers a slow host.
            connect_timeout_ms: 10_000,
            // The library's minute would show a half-open connection only after three minutes.
            ping_interval_ms: 5_000,
            request_timeout_ms: 5_000,
            // Burst of a token subscription; the queue takes memory only when used.
            subscription_capacity: 131_072,
        }
    }
}

impl std::fmt::Debug for BusConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BusConfig")
            .field("url", &self.redacted_url())
            .field("connect_timeout_ms", &self.connect_timeout_ms)
            .field("ping_interval_ms", &self.ping_interval_ms)
            .field("request_timeout_ms", &self.request_timeout_ms)
            .field("subscription_capacity", &self.subscription_capacity)
            .finish()
    }
}

impl BusConfig {
    /// Settings for one address, all else default.
    #[must_use]
    pub fn for_url(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            ..Self::default()
        }
    }

    /// The URL without credentials, for logs and `--print-config`.
    #[must_use]
    pub fn redacted_url(&self) -> String {
        let mut shown = Vec::new();
        for one in self.url.split(',') {
            shown.push(match (one.split_once("://"), one.rsplit_once('@')) {
                (Some((scheme, _)), Some((_, host))) => format!("{scheme}://***@{host}"),
                (None, Some((_, host))) => format!("***@{host}"),
                (_, None) => one.trim().to_owned(),
            });
        }
        shown.join(",")
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }
}

/// What authenticates us.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    None,
    Token(String),
    User { name: String, password: String },
}

/// Where to connect, split from what is secret.
pub(crate) struct Endpoint {
    pub(crate) servers: Vec<async_nats::ServerAddr>,
    /// Host and port of the first server: safe to show.
    pub(crate) address: String,
    pub(crate) credentials: Credentials,
}

/// Splits the URL into servers and credentials (the first credentials found are used for all).
pub(crate) fn endpoint(url: &str) -> Result<Endpoint, BusError> {
    let mut servers = Vec::new();
    let mut credentials = Credentials::None;
    for one in url.split(',').map(str::trim).filter(|one| !one.is_empty()) {
        let (scheme, rest) = one.split_once("://").unwrap_or(("nats", one));
        let (secret, host) = match rest.rsplit_once('@') {
            Some((secret, host)) => (Some(secret), host),
            None => (None, rest),
        };
        if let Some(secret) = secret
            && credentials == Credentials::None
        {
            credentials = match secret.split_once(':') {
                Some((name, password)) => Credentials::User {
                    name: percent_decoded(name),
                    password: percent_decoded(password),
                },
                None => Credentials::Token(percent_decoded(secret)),
            };
        }
        let server = format!("{scheme}://{host}").parse().map_err(|_| BusError::Url {
            reason: format!("{scheme}://{host} is no address of a nats-server"),
        })?;
        servers.push(server);
    }
    let Some(first) = servers.first() else {
        return Err(BusError::Url {
            reason: "it is empty".to_owned(),
        });
    };
    let address = format!(
        "{}:{}",
        async_nats::ServerAddr::host(first),
        async_nats::ServerAddr::port(first)
    );
    Ok(Endpoint {
        servers,
        address,
        credentials,
    })
}

/// `%41` → `A`; anything that is no escape stays as it is.
fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match escape.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_leave_the_url() {
        let found = endpoint("nats://me:p%40ss@localhost:4222").unwrap();
        assert!(
            found.credentials
                == Credentials::User {
                    name: "me".to_owned(),
                    password: "p@ss".to_owned()
                }
        );
        assert_eq!(found.address, "localhost:4222");

        let found = endpoint("nats://s3cret@a:1,nats://b:2").unwrap();
        assert!(found.credentials == Credentials::Token("s3cret".to_owned()));
        assert_eq!(found.servers.len(), 2);

        assert!(endpoint("127.0.0.1:4222").unwrap().credentials == Credentials::None);
        assert!(endpoint("").is_err());
    }

    #[test]
    fn debug_output_hides_secrets() {
        let config = BusConfig::for_url("nats://me:hidden@h:1,nats://token@h:2");
        let shown = format!("{config:?}");
        assert!(!shown.contains("hidden") && !shown.contains("token@"), "{shown}");
        assert!(shown.contains("h:1") && shown.contains("h:2"), "{shown}");
    }
}
