//! Child processes. Input: a program. Output: a process that does not outlive this one, whatever happens: the system kills
//! it when this process dies, and dropping it kills it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Longest wait for an orderly end before SIGKILL: services drain within a second when nothing is in hand.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the first line of a child that tells its address.
const LINE_TIMEOUT: Duration = Duration::from_secs(10);

/// A running child.
#[derive(Debug)]
pub struct Process {
    /// Its name, for messages and tables.
    pub name: String,
    /// Its number.
    pub pid: u32,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program whose error output goes to a log file in `folder`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, mut command: Command, folder: &Path) -> anyhow::Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .kill_on_drop(true);
        // Of its own, so that Ctrl-C reaches only us and children end in order.
        command.process_group(0);
        end_with_parent(&mut command);
        let program = command.as_std().get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        let pid = child.id().context("the process has no number")?;
        Ok(Self {
            name: name.to_owned(),
            pid,
            child,
            log,
        })
    }

    /// The first line that it prints.
    ///
    /// # Errors
    /// When it ends or is silent.
    pub async fn first_line(&mut self) -> anyhow::Result<String> {
        let output = self.child.stdout.take().context("the output was read already")?;
        let mut line = String::new();
        let mut reader = BufReader::new(output);
        let read = tokio::time::timeout(LINE_TIMEOUT, reader.read_line(&mut line)).await;
        match read {
            Ok(Ok(bytes)) if bytes > 0 => Ok(line.trim().to_owned()),
            _ => bail!("{} did not start: {}", self.name, self.last_words()),
        }
    }

    /// Fails when it has ended.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait().context("cannot look at a child")? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status}): {}", self.name, self.last_words()),
        }
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(5).collect();
        last.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: libc::c_int) {
        // No number means that it has ended and was waited for: the number may be somebody else's by now.
        let Some(pid) = self.child.id().and_then(|pid| libc::pid_t::try_from(pid).ok()) else {
            return;
        };
        // SAFETY: a plain system call; the child was not waited for yet, so the number is still its own.
        unsafe {
            libc::kill(pid, signal);
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not come in time.
    pub async fn wait(&mut self, limit: Duration) -> anyhow::Result<std::process::ExitStatus> {
        let ended = tokio::time::timeout(limit, self.child.wait()).await;
        ended
            .with_context(|| format!("{} does not end within {} s", self.name, limit.as_secs()))?
            .context("cannot wait")
    }

    /// Ends it in order, else by force.
    pub async fn stop(mut self) {
        self.signal(libc::SIGTERM);
        if self.wait(STOP_TIMEOUT).await.is_err() {
            eprintln!("warning: {} does not end, killing it", self.name);
            // It fails only when the child has ended.
            let _ = self.child.kill().await;
        }
    }
}

fn end_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let set = move || {
        // SAFETY: plain system calls without pointers, allowed between fork and exec.
        let (set, parent_now) = unsafe { (libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL), libc::getppid()) };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
        // The parent may have ended before the line above.
        if u32::try_from(parent_now) != Ok(parent) {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe));
        }
        Ok(())
    };
    // SAFETY: `set` only makes the two system calls above and allocates nothing.
    unsafe {
        command.pre_exec(set);
    }
}

/// A port of this machine that was free a moment ago.
///
/// # Errors
/// When there is none.
pub fn free_port() -> anyhow::Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("no free port")?;
    Ok(listener.local_addr()?.port())
}
