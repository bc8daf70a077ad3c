//! A log file of bounded size. Input: bytes. Output: the file, and one older generation of it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Size at which a new file is begun: the last hours of a busy mesh, and never more than twice this on the disk.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// A log file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    written_bytes: u64,
    max_bytes: u64,
}

impl LogFile {
    /// Begins a new file; the one of the run before becomes `<name>.1`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn begin(path: &Path) -> io::Result<Self> {
        Self::with_limit(path, MAX_BYTES)
    }

    fn with_limit(path: &Path, max_bytes: u64) -> io::Result<Self> {
        Ok(Self {
            file: replace(path)?,
            path: path.to_owned(),
            written_bytes: 0,
            max_bytes,
        })
    }
}

/// Moves the old file aside and makes a new one.
fn replace(path: &Path) -> io::Result<File> {
    let mut older = path.as_os_str().to_owned();
    older.push(".1");
    match fs::rename(path, &older) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::create(path)
}

impl Write for LogFile {
    /// Takes the whole of `bytes`, which are one line or more: a line is never split over two files.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written_bytes >= self.max_bytes {
            self.file = replace(&self.path)?;
            self.written_bytes = 0;
        }
        self.file.write_all(bytes)?;
        self.written_bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_generations_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        let mut log = LogFile::with_limit(&path, 10).unwrap();
        for line in ["one\n", "two two\n", "three\n", "four four\n", "five\n"] {
            log.write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "five\n");
        assert_eq!(
            fs::read_to_string(folder.path().join("x.log.1")).unwrap(),
            "three\nfour four\n"
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        LogFile::begin(&path).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("x.log.1")).unwrap(), "five\n");
    }
}
