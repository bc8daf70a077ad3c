//! The pepper: a secret beside the database, without which the stored hashes are worth nothing. Input: a file of lines
//! `<version> <64 hexadecimal digits>`, made at the first start with mode 0600. Output: macs of key digests.
//!
//! To rotate, append a line with the next version: new keys use the newest, old keys keep theirs.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use schemas::policy::hex;
use sha2::Sha256;

use crate::keys::SECRET_BYTES;

/// Why there is no pepper.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PepperError {
    /// The file cannot be read.
    #[error("cannot read pepper file {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The file cannot be made.
    #[error("cannot write pepper file {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A line is not a version and 64 digits. Its text is a secret and not shown.
    #[error("line {line} of pepper file {} is not `<version> <64 hexadecimal digits>` with a new version", path.display())]
    Line { path: PathBuf, line: usize },
    /// The file holds no line.
    #[error("pepper file {} is empty; restore it from a backup", path.display())]
    Empty { path: PathBuf },
    /// Keys were hashed with a pepper that is not there.
    #[error("the store has keys of pepper version {version}, which {place} does not hold; restore it from a backup")]
    Missing { version: u32, place: String },
    /// The system has no randomness to give.
    #[error("cannot draw a pepper from the system's randomness")]
    Randomness(#[source] getrandom::Error),
}

/// All versions of the pepper.
pub(crate) struct Peppers {
    versions: BTreeMap<u32, [u8; SECRET_BYTES]>,
    newest: u32,
    place: String,
}

impl fmt::Debug for Peppers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Peppers")
            .field("newest", &self.newest)
            .finish_non_exhaustive()
    }
}

impl Peppers {
    /// A pepper that ends with this process, for a store that does too.
    pub(crate) fn ephemeral() -> Result<Self, PepperError> {
        Ok(Self {
            versions: BTreeMap::from([(1, random()?)]),
            newest: 1,
            place: "memory".to_owned(),
        })
    }

    /// The pepper of a file, which is made when it is not there and `used` (the versions that stored keys need) is empty.
    pub(crate) fn open(path: &Path, used: &[u32]) -> Result<Self, PepperError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            // A new pepper for old keys would only lock everybody out without a word.
            Err(error) if error.kind() == io::ErrorKind::NotFound && used.is_empty() => create(path)?,
            Err(source) => {
                let path = path.to_owned();
                return Err(PepperError::Read { path, source });
            }
        };
        let peppers = Self::parse(path, &text)?;
        match used.iter().find(|version| !peppers.versions.contains_key(version)) {
            Some(&version) => Err(PepperError::Missing {
                version,
                place: peppers.place,
            }),
            None => Ok(peppers),
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Self, PepperError> {
        let mut versions = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let bad = || PepperError::Line {
                path: path.to_owned(),
                line: index + 1,
            };
            let (version, digits) = line.split_once(' ').ok_or_else(bad)?;
            let version: u32 = version.parse().map_err(|_| bad())?;
            let pepper = unhex(digits).ok_or_else(bad)?;
            if versions.insert(version, pepper).is_some() {
                return Err(bad());
            }
        }
        let Some((&newest, _)) = versions.last_key_value() else {
            return Err(PepperError::Empty { path: path.to_owned() });
        };
        let place = format!("pepper file {}", path.display());
        Ok(Self {
            versions,
            newest,
            place,
        })
    }

    /// The version for new keys.
    pub(crate) fn newest(&self) -> u32 {
        self.newest
    }

    /// HMAC-SHA-256 of a key's digest under one version, `None` if there is no such version.
    pub(crate) fn mac(&self, version: u32, digest: &[u8; SECRET_BYTES]) -> Option<Vec<u8>> {
        let pepper = self.versions.get(&version)?;
        // HMAC takes keys of any length.
        let mut mac = Hmac::<Sha256>::new_from_slice(pepper).ok()?;
        mac.update(digest);
        Some(mac.finalize().into_bytes().to_vec())
    }
}

fn random() -> Result<[u8; SECRET_BYTES], PepperError> {
    let mut pepper = [0; SECRET_BYTES];
    getrandom::fill(&mut pepper).map_err(PepperError::Randomness)?;
    Ok(pepper)
}

/// Makes the file and gives its text; it is on the disk before the first key is hashed with it.
fn create(path: &Path) -> Result<String, PepperError> {
    let text = format!("1 {}\n", hex(&random()?));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        // The name is durable only with its folder.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|source| PepperError::Write {
        path: path.to_owned(),
        source,
    })?;
    Ok(text)
}

/// Bytes of 64 lower-case hexadecimal digits, `None` for anything else.
pub(crate) fn unhex(digits: &str) -> Option<[u8; SECRET_BYTES]> {
    if digits.len() != 2 * SECRET_BYTES {
        return None;
    }
    let mut bytes = [0; SECRET_BYTES];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        let digit = |symbol: u8| match symbol {
            b'0'..=b'9' => Some(symbol - b'0'),
            b'a'..=b'f' => Some(symbol - b'a' + 10),
            _ => None,
        };
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn made_once_kept_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("auth.pepper");
        let first = Peppers::open(&path, &[]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Peppers::open(&path, &[1]).unwrap();
        let digest = [7; SECRET_BYTES];
        assert_eq!(first.mac(1, &digest), again.mac(1, &digest));
        assert_ne!(first.mac(1, &digest), first.mac(1, &[8; SECRET_BYTES]));
        assert_eq!(first.mac(2, &digest), None);
        assert!(!format!("{first:?}").contains(&hex(&first.versions[&1])));
    }

    #[test]
    fn a_rotated_file_keeps_old_versions() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("auth.pepper");
        let first = Peppers::open(&path, &[]).unwrap();
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        writeln!(file, "2 {}", hex(&[2; SECRET_BYTES])).unwrap();
        let rotated = Peppers::open(&path, &[1]).unwrap();
        assert_eq!(rotated.newest(), 2);
        let digest = [7; SECRET_BYTES];
        assert_eq!(first.mac(1, &digest), rotated.mac(1, &digest));
        assert_ne!(rotated.mac(1, &digest), rotated.mac(2, &digest));
    }

    #[test]
    fn a_lost_or_broken_pepper_is_said_at_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("auth.pepper");
        assert!(matches!(Peppers::open(&path, &[1]), Err(PepperError::Read { .. })));
        assert!(!path.exists(), "no new pepper for old keys");
        let line = format!("1 {}", hex(&[1; SECRET_BYTES]));
        for (text, good) in [
            (line.clone(), true),
            (format!("{line}\n{line}"), false),
            (line.to_uppercase().replace('0', "A"), false),
            (line[..20].to_owned(), false),
            (String::new(), false),
        ] {
            fs::write(&path, &text).unwrap();
            assert_eq!(Peppers::open(&path, &[1]).is_ok(), good, "{text}");
        }
        fs::write(&path, &line).unwrap();
        assert!(matches!(
            Peppers::open(&path, &[1, 3]),
            Err(PepperError::Missing { version: 3, .. })
        ));
    }

    #[test]
    fn hex_is_read_exactly() {
        let bytes: [u8; SECRET_BYTES] = std::array::from_fn(|index| index as u8 * 8);
        assert_eq!(unhex(&hex(&bytes)), Some(bytes));
        for bad in ["", "0", &"g".repeat(64), &"A".repeat(64), &"0".repeat(66)] {
            assert_eq!(unhex(bad), None, "{bad}");
        }
    }
}
