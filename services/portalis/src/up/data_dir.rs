//! Where everything is kept. Input: the folder named on the command line. Output: the folder of this run, locked against
//! a second run, and small private files that are never seen half-written.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tempfile::TempDir;

/// Mode of folders and files that hold credentials: only their owner.
const PRIVATE_FOLDER: u32 = 0o700;
const PRIVATE_FILE: u32 = 0o600;

/// The folder of one run.
#[derive(Debug)]
pub struct DataDir {
    /// Models and programs, put there by `make up`.
    home: PathBuf,
    /// What this run writes; the same folder unless the run is ephemeral.
    state: PathBuf,
    /// Held until the end; the system gives it back however this process ends.
    _lock: Option<Lock>,
    /// Removed at the end.
    temporary: Option<TempDir>,
}

impl DataDir {
    /// Opens the folder and makes sure that no other run uses it. An ephemeral run gets a folder of its own.
    ///
    /// # Errors
    /// When it cannot be made or is in use.
    pub fn open(home: &Path, ephemeral: bool) -> anyhow::Result<Self> {
        // Children have other working folders in mind, and messages should say where things are.
        let home = std::path::absolute(home).with_context(|| format!("cannot use data folder {}", home.display()))?;
        if ephemeral {
            let temporary = tempfile::Builder::new()
                .prefix("portalis-")
                .tempdir()
                .context("cannot make a temporary folder for --ephemeral")?;
            let state = temporary.path().to_owned();
            return Ok(Self {
                home,
                state,
                _lock: None,
                temporary: Some(temporary),
            });
        }
        fs::create_dir_all(&home).with_context(|| {
            format!(
                "cannot make data folder {}: name a writable one with --data-dir",
                home.display()
            )
        })?;
        let lock = lock(&home)?;
        Ok(Self {
            state: home.clone(),
            home,
            _lock: Some(lock),
            temporary: None,
        })
    }

    /// A file or folder of what was installed.
    #[must_use]
    pub fn installed(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    /// The folder of this run.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.state
    }

    /// A file or folder of this run.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.state.join(name)
    }

    /// Makes a folder that only its owner can enter.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn private_folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir_all(&path)
            .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(PRIVATE_FOLDER)))
            .with_context(|| format!("cannot make folder {}", path.display()))?;
        Ok(path)
    }

    /// Removes what an ephemeral run wrote.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn close(mut self) -> io::Result<()> {
        self.temporary.take().map_or(Ok(()), TempDir::close)
    }
}

/// The hold on a data folder, given up when it is dropped.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing alone is not enough: a child being started at this moment has a copy of the open file until it runs
        // its program, and would keep the folder held.
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "cannot give the data folder free");
        }
    }
}

fn lock(home: &Path) -> anyhow::Result<Lock> {
    let path = home.join("lock");
    let failed = || format!("cannot lock {}", path.display());
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only to be helpful: an unreadable number is no reason for another message.
            let _ = file.read_to_string(&mut holder);
            bail!(
                "{} is in use by another `portalis up` (process {}): stop it, or name another folder with --data-dir",
                home.display(),
                holder.trim()
            );
        }
        Err(TryLockError::Error(source)) => return Err(source).with_context(failed),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .with_context(failed)?;
    Ok(Lock(file))
}

/// Writes a file that only its owner can read; others see the old content or the new, never half of it.
///
/// # Errors
/// When it cannot be written.
pub fn write_private(path: &Path, content: &str) -> anyhow::Result<()> {
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    let write = || -> io::Result<()> {
        // What a crash left may have another mode.
        match fs::remove_file(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(PRIVATE_FILE)
            .open(&partial)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// 32 hexadecimal digits that nobody can guess.
///
/// # Errors
/// When the system gives no randomness.
pub fn random_secret() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(schemas::policy::hex(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_serves_one_run_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("a/b");
        let first = DataDir::open(&home, false).unwrap();
        let text = DataDir::open(&home, false).unwrap_err().to_string();
        assert!(
            text.contains("--data-dir") && text.contains(&std::process::id().to_string()),
            "{text}"
        );
        assert!(!text.contains('\n'));
        // An ephemeral run beside it is welcome, uses what is installed and leaves nothing.
        let other = DataDir::open(&home, true).unwrap();
        assert_eq!(other.installed("bin"), home.join("bin"));
        let state = other.folder().to_owned();
        assert!(state.is_dir() && !state.starts_with(&home));
        other.close().unwrap();
        assert!(!state.exists());
        drop(first);
        DataDir::open(&home, false).unwrap();
    }

    #[test]
    fn a_copy_of_the_lock_in_a_child_does_not_hold_the_folder() {
        let root = tempfile::tempdir().unwrap();
        let held = lock(root.path()).unwrap();
        // What a fork has until its program runs.
        let copy = held.0.try_clone().unwrap();
        assert!(lock(root.path()).is_err());
        drop(held);
        lock(root.path()).unwrap();
        drop(copy);
    }

    #[test]
    fn private_files_are_private_and_whole() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("demo-key");
        fs::write(&path, "old, longer than the new one").unwrap();
        write_private(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            fs::read_dir(root.path()).unwrap().count(),
            1,
            "nothing is left beside it"
        );
        assert!(write_private(&root.path().join("no/such/folder"), "x").is_err());
    }

    #[test]
    fn secrets_differ() {
        let (one, two) = (random_secret().unwrap(), random_secret().unwrap());
        assert_eq!((one.len(), one == two), (32, false));
    }
}
