//! Versions of nats-server. Input: the text it reports. Output: a comparable version and the check at start.

use crate::BusError;

/// Oldest server that honours every setting we use: prioritized pulls, message TTL, the fixes up to 2.12.8.
/// Older ones accept the settings, answer "ok" and ignore them.
pub const MINIMUM_SERVER_VERSION: ServerVersion = ServerVersion {
    major: 2,
    minor: 12,
    patch: 8,
};

/// Major, minor and patch; a pre-release counts as its release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerVersion {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
    /// Patch.
    pub patch: u32,
}

impl std::fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl ServerVersion {
    /// Reads `2.12.8`, `v2.12.8` and `2.12.8-RC.1`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().trim_start_matches('v');
        let release = text.split(['-', '+']).next()?;
        let mut numbers = release.split('.').map(str::parse::<u32>);
        let version = Self {
            major: numbers.next()?.ok()?,
            minor: numbers.next()?.ok()?,
            patch: numbers.next()?.ok()?,
        };
        numbers.next().is_none().then_some(version)
    }
}

/// Refuses a server that is too old or does not say what it is.
pub(crate) fn check(reported: &str, address: &str) -> Result<(), BusError> {
    match ServerVersion::parse(reported) {
        Some(version) if version >= MINIMUM_SERVER_VERSION => Ok(()),
        _ => Err(BusError::ServerTooOld {
            found: if reported.is_empty() {
                "of unknown version".to_owned()
            } else {
                reported.to_owned()
            },
            address: address.to_owned(),
            needed: MINIMUM_SERVER_VERSION.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_servers_are_refused_in_plain_words() {
        for good in ["2.12.8", "v2.12.9", "2.12.8-RC.1", "2.13.0", "3.0.0", "2.15.1+build"] {
            assert_eq!(check(good, "h:1"), Ok(()), "{good}");
        }
        for bad in ["2.12.7", "2.9.10", "1.99.99", "", "dev", "2.12", "2.12.8.1"] {
            assert!(check(bad, "h:1").is_err(), "{bad}");
        }
        let text = check("2.9.10", "127.0.0.1:4222").map_err(|error| error.to_string());
        assert_eq!(
            text,
            Err("nats-server 2.9.10 at 127.0.0.1:4222 is too old: 2.12.8 or newer is needed".to_owned())
        );
    }
}
