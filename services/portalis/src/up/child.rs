//! Child processes. Input: a command. Output: a process in a group of its own that does not outlive this one, with its
//! error output line by line.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;

use anyhow::Context;
use tokio::process::{Child, ChildStderr, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Signal that a child gets when this process is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnOrphaned {
    /// SIGTERM: it can end by itself at once.
    Terminate,
    /// SIGKILL: it would wait for things that went with us.
    Kill,
}

/// Starts children, all from one thread: the system ties a child's death signal to the thread that started it, and
/// threads of the asynchronous runtime come and go. The thread lives until the last clone is dropped, so that must not
/// happen before the children have ended.
#[derive(Debug, Clone)]
pub struct Spawner {
    jobs: mpsc::SyncSender<Job>,
}

#[derive(Debug)]
struct Job {
    command: Command,
    started: oneshot::Sender<io::Result<Child>>,
}

impl Spawner {
    /// Starts the thread. Call within the runtime that will wait for the children.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start() -> anyhow::Result<Self> {
        // Starts are rare; a full queue makes the caller wait a moment.
        let (jobs, queue) = mpsc::sync_channel::<Job>(16);
        let runtime = Handle::current();
        thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(move || {
                let _entered = runtime.enter();
                while let Ok(mut job) = queue.recv() {
                    // Nobody waits any more: the child is dropped and with it killed.
                    let _ = job.started.send(job.command.spawn());
                }
            })
            .context("cannot start a thread")?;
        Ok(Self { jobs })
    }

    /// Starts a child without input and output; its error output can be read line by line.
    ///
    /// # Errors
    /// What the system said.
    pub async fn spawn(&self, mut command: Command, on_orphaned: OnOrphaned) -> io::Result<Process> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            // Of its own, so that Ctrl-C in the terminal reaches only us and children are stopped in order.
            .process_group(0);
        end_with_parent(&mut command, on_orphaned);
        let (started, answer) = oneshot::channel();
        let gone = |_| io::Error::other("the thread that starts processes has ended");
        self.jobs
            .try_send(Job { command, started })
            .map_err(|_| io::Error::other("too many processes are being started"))?;
        let child = answer.await.map_err(gone)??;
        let pid = child
            .id()
            .ok_or_else(|| io::Error::other("the process has no number"))?;
        Ok(Process { child, pid })
    }
}

#[cfg(target_os = "linux")]
fn end_with_parent(command: &mut Command, on_orphaned: OnOrphaned) {
    let signal = match on_orphaned {
        OnOrphaned::Terminate => libc::SIGTERM,
        OnOrphaned::Kill => libc::SIGKILL,
    };
    let parent = std::process::id();
    let set = move || {
        // SAFETY: plain system calls without pointers, allowed between fork and exec.
        let (set, parent_now) = unsafe { (libc::prctl(libc::PR_SET_PDEATHSIG, signal), libc::getppid()) };
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

/// Elsewhere nothing does this; a killed parent leaves its children to be ended by hand.
#[cfg(not(target_os = "linux"))]
fn end_with_parent(_: &mut Command, _: OnOrphaned) {}

/// A running child; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid: u32,
}

impl Process {
    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its error output; once.
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Waits for its end. Cancel-safe.
    ///
    /// # Errors
    /// What the system said.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        // No number means that it has ended and was waited for: the number may be somebody else's by now.
        let Some(pid) = self.child.id().and_then(|pid| libc::pid_t::try_from(pid).ok()) else {
            return;
        };
        // SAFETY: a plain system call; the child was not waited for yet, so the number is still its own.
        unsafe {
            libc::kill(pid, libc::SIGTERM);
        }
    }

    /// Ends it.
    pub fn kill(&mut self) {
        // It fails only when the child has ended.
        let _ = self.child.start_kill();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use tokio::io::{AsyncBufReadExt, BufReader};

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn a_child_has_a_group_of_its_own_and_can_be_ended() {
        let spawner = Spawner::start().unwrap();
        let script = "trap 'echo asked >&2; exit 7' TERM; echo ready >&2; while :; do sleep 0.01; done";
        let mut child = spawner.spawn(shell(script), OnOrphaned::Kill).await.unwrap();
        let mut lines = BufReader::new(child.take_stderr().unwrap()).lines();
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("ready"));
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.pid())).unwrap();
        let group = stat.rsplit(") ").next().unwrap().split(' ').nth(2).unwrap();
        assert_eq!(group, child.pid().to_string());
        child.terminate();
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("asked"));
        assert_eq!(child.wait().await.unwrap().code(), Some(7));
        child.terminate();
        let mut stubborn = spawner
            .spawn(shell("trap '' TERM; exec sleep 600"), OnOrphaned::Kill)
            .await
            .unwrap();
        stubborn.kill();
        assert_eq!(stubborn.wait().await.unwrap().signal(), Some(libc::SIGKILL));
    }

    #[tokio::test]
    async fn children_end_with_the_thread_that_stands_for_this_process() {
        let spawner = Spawner::start().unwrap();
        let mut child = spawner
            .spawn(shell("exec sleep 600"), OnOrphaned::Terminate)
            .await
            .unwrap();
        drop(spawner);
        assert_eq!(child.wait().await.unwrap().signal(), Some(libc::SIGTERM));
    }

    #[tokio::test]
    async fn a_missing_program_is_told_at_once() {
        let spawner = Spawner::start().unwrap();
        let error = spawner
            .spawn(Command::new("/no/such/program"), OnOrphaned::Kill)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
