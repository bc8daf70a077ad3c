//! The text of API keys: `ptl_live_<kid>_<secret><checksum>`. Input: the system's randomness. Output: new keys and
//! the digest by which a key is known.
//!
//! The kid is public: it is the handle in logs, limits and the database. The secret is 256 random bits as 43 base62
//! digits, so no stretching is needed and a plain hash cannot be searched. The checksum is `schemas::policy`'s.

use std::fmt;

use schemas::policy::{BASE62, KID_CHARS, SECRET_CHARS, key_checksum};
use sha2::{Digest, Sha256};

/// Bytes of a secret and of its digest.
pub(crate) const SECRET_BYTES: usize = 32;

/// Largest multiple of 62 in a byte: bytes from here on would make some digits likelier than others.
const FAIR_BYTES: u8 = 248;

/// A key just made; its text is shown once and then forgotten.
pub(crate) struct NewKey {
    /// Its public id.
    pub(crate) kid: String,
    /// The whole key.
    pub(crate) text: String,
}

impl fmt::Debug for NewKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The text is a secret and stays out of logs.
        formatter
            .debug_struct("NewKey")
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

impl NewKey {
    /// A new key from the system's randomness.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub(crate) fn generate() -> Result<Self, getrandom::Error> {
        Self::from_source(getrandom::fill)
    }

    fn from_source<E>(mut fill: impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<Self, E> {
        let mut kid = String::with_capacity(KID_CHARS);
        while kid.len() < KID_CHARS {
            let mut bytes = [0; 2 * KID_CHARS];
            fill(&mut bytes)?;
            let fair = bytes.iter().filter(|byte| **byte < FAIR_BYTES);
            let digits = fair.map(|byte| char::from(BASE62[usize::from(byte % 62)]));
            kid.extend(digits.take(KID_CHARS - kid.len()));
        }
        let mut secret = [0; SECRET_BYTES];
        fill(&mut secret)?;
        let body = format!("ptl_live_{kid}_{}", base62(secret));
        let checksum = key_checksum(&body);
        Ok(Self {
            kid,
            text: body + &checksum,
        })
    }
}

/// What a key is known by everywhere but at its owner: SHA-256 of its whole text.
pub(crate) fn digest(key: &str) -> [u8; SECRET_BYTES] {
    Sha256::digest(key.as_bytes()).into()
}

/// A big-endian number as exactly 43 base62 digits: two numbers never share a text (62^43 > 2^256).
fn base62(mut number: [u8; SECRET_BYTES]) -> String {
    let mut digits = [0_u8; SECRET_CHARS];
    for digit in digits.iter_mut().rev() {
        let mut remainder = 0_u32;
        for byte in &mut number {
            let value = remainder << 8 | u32::from(*byte);
            // The remainder is below 62, so the quotient of each step fits a byte.
            *byte = (value / 62) as u8;
            remainder = value % 62;
        }
        *digit = BASE62[remainder as usize];
    }
    digits.iter().copied().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::convert::Infallible;

    use proptest::prelude::*;
    use schemas::policy::{check_key, key_id};

    use super::*;

    /// A key from bytes of our choice, repeated for as long as they are asked for.
    fn key_from(seed: &[u8]) -> NewKey {
        let mut endless = seed.iter().copied().chain(0..=255).cycle();
        let Ok(key) = NewKey::from_source(|bytes| {
            bytes.fill_with(|| endless.next().unwrap());
            Ok::<(), Infallible>(())
        });
        key
    }

    /// The number that 43 base62 digits stand for, back as bytes.
    fn from_base62(text: &str) -> [u8; SECRET_BYTES] {
        let mut number = [0_u8; SECRET_BYTES];
        for digit in text.bytes() {
            let mut carry = BASE62.iter().position(|one| *one == digit).unwrap() as u32;
            for byte in number.iter_mut().rev() {
                let value = u32::from(*byte) * 62 + carry;
                *byte = value as u8;
                carry = value >> 8;
            }
            assert_eq!(carry, 0, "the number fits 256 bits");
        }
        number
    }

    proptest! {
        #[test]
        fn secrets_keep_all_their_bits(secret in any::<[u8; SECRET_BYTES]>()) {
            let text = base62(secret);
            prop_assert_eq!(text.len(), SECRET_CHARS);
            prop_assert_eq!(from_base62(&text), secret);
        }

        #[test]
        fn every_typo_of_one_character_is_refused(
            seed in proptest::collection::vec(any::<u8>(), 1..80),
            position in any::<proptest::sample::Index>(),
            typo in proptest::char::range('!', '~'),
        ) {
            let key = key_from(&seed);
            prop_assert_eq!(check_key(&key.text), Ok(key.kid.as_str()));
            prop_assert_eq!(key_id(&key.text), Some(key.kid.as_str()));
            let position = position.index(key.text.len());
            let mut wrong: Vec<char> = key.text.chars().collect();
            prop_assume!(wrong[position] != typo);
            wrong[position] = typo;
            let wrong: String = wrong.into_iter().collect();
            prop_assert!(check_key(&wrong).is_err(), "{}", wrong);
        }

        #[test]
        fn swapped_neighbours_are_refused(seed in proptest::collection::vec(any::<u8>(), 1..80), at in 0_usize..69) {
            let key = key_from(&seed);
            let mut wrong = key.text.clone().into_bytes();
            prop_assume!(wrong[at] != wrong[at + 1]);
            wrong.swap(at, at + 1);
            let wrong = String::from_utf8(wrong).unwrap();
            prop_assert!(check_key(&wrong).is_err(), "{}", wrong);
        }
    }

    #[test]
    fn generated_keys_are_whole_and_distinct() {
        let mut seen = HashSet::new();
        for _ in 0..1_000 {
            let key = NewKey::generate().unwrap();
            assert_eq!(check_key(&key.text), Ok(key.kid.as_str()));
            assert!(!format!("{key:?}").contains(&key.text), "the text is a secret");
            assert!(seen.insert(key.kid) && seen.insert(key.text));
        }
    }

    #[test]
    fn unfair_bytes_make_no_digit() {
        let mut calls = 0;
        let Ok(key) = NewKey::from_source(|bytes| {
            // The first draw has nothing usable at all.
            bytes.fill(if calls == 0 { 255 } else { 61 });
            calls += 1;
            Ok::<(), Infallible>(())
        });
        assert_eq!(key.kid, "z".repeat(KID_CHARS));
    }
}
