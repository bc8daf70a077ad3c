//! Headers of a message. Input: names from `schemas::headers`. Output: a small type that hides the client's.

use std::fmt::Display;

/// Headers of one message. Empty ones allocate nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Option<async_nats::HeaderMap>);

impl Headers {
    /// No headers.
    #[must_use]
    pub const fn new() -> Self {
        Self(None)
    }

    /// Sets a header. `name` is a constant without colon or control characters; a line break in `value` becomes a space.
    pub fn insert(&mut self, name: &'static str, value: impl Into<String>) {
        let mut value: String = value.into();
        if value.contains(['\r', '\n']) {
            value = value.replace(['\r', '\n'], " ");
        }
        // A name made this way borrows the constant; the client copies one that is given as text.
        let name = async_nats::HeaderName::from_static(name);
        self.0.get_or_insert_default().insert(name, value);
    }

    /// Sets a header and returns the whole, for building in one expression.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Display) -> Self {
        self.insert(name, value.to_string());
        self
    }

    /// First value of a header, matched exactly.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        // A scan over a handful of names costs less than the map's own look-up, which allocates for our names.
        let (_, values) = self
            .0
            .as_ref()?
            .iter()
            .find(|(found, _)| AsRef::<str>::as_ref(found) == name)?;
        values.first().map(|value| value.as_str())
    }

    /// Value of a header as a number, if it is one.
    #[must_use]
    pub fn get_u64(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }

    /// All headers, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().flat_map(|map| map.iter()).flat_map(|(name, values)| {
            values
                .iter()
                .map(move |value| (AsRef::<str>::as_ref(name), value.as_str()))
        })
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(async_nats::HeaderMap::is_empty)
    }

    pub(crate) fn from_client(map: Option<async_nats::HeaderMap>) -> Self {
        Self(map)
    }

    pub(crate) fn into_client(self) -> Option<async_nats::HeaderMap> {
        self.0
    }

    /// Reads the block that JetStream returns for a stored message: `NATS/1.0\r\nName: value\r\n\r\n`.
    pub(crate) fn from_block(block: &[u8]) -> Self {
        let text = String::from_utf8_lossy(block);
        let mut map = async_nats::HeaderMap::new();
        for line in text.split("\r\n").skip(1) {
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            // The client panics on a name it does not like: leave such a header out.
            if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic()) && !value.contains(['\r', '\n']) {
                map.append(name, value.trim());
            }
        }
        Self((!map.is_empty()).then_some(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_keep_values_and_never_break_the_protocol() {
        let headers = Headers::new()
            .with("Portalis-Deadline", 12)
            .with("Nats-Msg-Id", "a\r\nEvil: 1");
        assert_eq!(headers.get_u64("Portalis-Deadline"), Some(12));
        assert_eq!(headers.get("Nats-Msg-Id"), Some("a  Evil: 1"));
        assert_eq!(headers.get("Evil"), None);
        assert_eq!(headers.iter().count(), 2);
        assert!(Headers::new().is_empty() && !headers.is_empty());
    }

    #[test]
    fn stored_blocks_are_read() {
        let headers = Headers::from_block(b"NATS/1.0\r\nA: 1\r\nB-C:two words \r\nb\x7fd: x\r\n\r\n");
        assert_eq!(headers.get("A"), Some("1"));
        assert_eq!(headers.get("B-C"), Some("two words"));
        assert_eq!(headers.iter().count(), 2);
        assert!(Headers::from_block(b"").is_empty());
    }
}
