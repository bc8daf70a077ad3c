//! Observations with their age. Input: a value and when it was seen. Output: fresh, stale or missing, never a made-up number.

/// One observation. Only [`SignalState::Fresh`] may move the fleet: data that is old or absent is never a number.
#[derive(Debug, Clone, PartialEq)]
pub enum SignalState<T> {
    /// Seen recently enough to act on.
    Fresh(T),
    /// Seen too long ago.
    Stale {
        /// How long ago, in milliseconds.
        age_ms: u64,
    },
    /// Never seen.
    Missing,
}

impl<T> SignalState<T> {
    /// Judges a value by its age.
    #[must_use]
    pub fn of(value: T, age_ms: u64, stale_after_ms: u64) -> Self {
        if age_ms <= stale_after_ms {
            Self::Fresh(value)
        } else {
            Self::Stale { age_ms }
        }
    }

    /// The value, if it may be acted on.
    #[must_use]
    pub fn fresh(&self) -> Option<&T> {
        match self {
            Self::Fresh(value) => Some(value),
            Self::Stale { .. } | Self::Missing => None,
        }
    }

    /// The state's name, for logs and metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Fresh(_) => "fresh",
            Self::Stale { .. } => "stale",
            Self::Missing => "missing",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_decides() {
        assert_eq!(SignalState::of(7, 3_000, 3_000).fresh(), Some(&7));
        let stale = SignalState::of(7, 3_001, 3_000);
        assert_eq!(stale, SignalState::Stale { age_ms: 3_001 });
        assert_eq!((stale.fresh(), stale.as_str()), (None, "stale"));
    }
}
