//! Programs that must end. Input: a command and its limits. Output: what it said, or that it took too long; in any case,
//! also when nobody waits any more, nothing of it is left running.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

/// What a program may say: a compiler's words or the shown values of cases, not the endless output of a wrong loop.
const MAX_OUTPUT_BYTES: u64 = 1024 * 1024;

/// What a program may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Longest run; as much processor time is the system's own limit, should this process die meanwhile.
    pub wall: Duration,
    /// Most address space in bytes.
    pub memory_bytes: u64,
    /// Largest file that it may write, in bytes.
    pub file_bytes: u64,
}

/// What a program has done.
pub(crate) struct Ran {
    pub success: bool,
    /// What it said on standard error; its standard output is not kept.
    pub words: String,
}

/// Runs a program to its end; `None` when it was killed for taking too long. Dropping the future kills it.
pub(crate) async fn run(mut command: Command, folder: &Path, bounds: Bounds) -> io::Result<Option<Ran>> {
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null());
    // A group of its own, so that what it starts (a linker) can be ended with it.
    command.stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    confine(&mut command, bounds);
    let mut child = Group(command.spawn()?);
    let stderr = child.0.stderr.take();
    let work = async {
        let words = read(stderr).await?;
        let status = child.0.wait().await?;
        io::Result::Ok(Ran {
            success: status.success(),
            words,
        })
    };
    if let Ok(ran) = tokio::time::timeout(bounds.wall, work).await {
        return ran.map(Some);
    }
    child.kill();
    child.0.wait().await?;
    Ok(None)
}

/// A child that leads a group of processes; dropping it kills the group.
struct Group(Child);

impl Group {
    fn kill(&self) {
        // Without an id it has ended and was waited for: the number may be somebody else's by now.
        let id = self.0.id().and_then(|id| libc::pid_t::try_from(id).ok());
        if let Some(id) = id {
            // SAFETY: a plain system call; the group's leader has not been waited for, so its number is still its own.
            unsafe { libc::killpg(id, libc::SIGKILL) };
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Limits the process that this command will start, and ties its life to ours.
fn confine(command: &mut Command, bounds: Bounds) {
    let limits = [
        (libc::RLIMIT_AS, bounds.memory_bytes),
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_FSIZE, bounds.file_bytes),
        // Whole seconds, and one core's: what computes on more of them ends earlier.
        (libc::RLIMIT_CPU, bounds.wall.as_secs() + 1),
    ];
    let set = move || {
        for (resource, value) in limits {
            let limit = libc::rlimit {
                rlim_cur: value,
                rlim_max: value,
            };
            // SAFETY: the pointer is to a value that outlives the call.
            if unsafe { libc::setrlimit(resource, &raw const limit) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: a plain system call without pointers.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: between fork and exec only setrlimit and prctl are called, which allocate nothing and take no lock.
    unsafe { command.pre_exec(set) };
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(MAX_OUTPUT_BYTES).read_to_end(&mut bytes).await?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use testkit::eventually;

    use super::*;

    const MINUTE: Bounds = Bounds {
        wall: Duration::from_secs(60),
        memory_bytes: 1 << 30,
        file_bytes: 1 << 20,
    };

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    /// Whether a process of this group still runs; one that only waits to be waited for does not.
    fn group_lives(leader: u32) -> bool {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let mut told = processes.filter_map(|process| std::fs::read_to_string(process.path().join("stat")).ok());
        told.any(|stat| {
            let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            let words: Vec<&str> = rest.split(' ').collect();
            matches!(words.as_slice(), [state, _, group, ..] if *state != "Z" && group.parse() == Ok(leader))
        })
    }

    async fn leader(folder: &Path) -> u32 {
        let told = || {
            let text = std::fs::read_to_string(folder.join("pid")).unwrap_or_default();
            text.trim().parse().ok()
        };
        eventually("the program has told its number", MINUTE.wall, || {
            std::future::ready(told().is_some())
        })
        .await;
        told().unwrap()
    }

    async fn gone(leader: u32) {
        eventually("nothing is left of the group", MINUTE.wall, || {
            std::future::ready(!group_lives(leader))
        })
        .await;
    }

    #[tokio::test]
    async fn words_and_success_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let ran = run(shell("echo no; echo yes >&2; exit 3"), folder.path(), MINUTE).await;
        let ran = ran.unwrap().unwrap();
        assert_eq!((ran.success, ran.words.as_str()), (false, "yes\n"));
    }

    #[tokio::test]
    async fn who_takes_too_long_is_ended_with_all_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let bounds = Bounds {
            wall: Duration::from_millis(300),
            ..MINUTE
        };
        let script = "echo $$ >pid; (while :; do :; done) & while :; do :; done";
        assert!(run(shell(script), folder.path(), bounds).await.unwrap().is_none());
        gone(leader(folder.path()).await).await;
    }

    #[tokio::test]
    async fn who_is_not_waited_for_is_ended_with_all_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let script = "echo $$ >pid; (while :; do :; done) & while :; do :; done";
        let id = {
            let running = run(shell(script), folder.path(), MINUTE);
            tokio::select! {
                _ = running => panic!("it does not end"),
                id = leader(folder.path()) => id,
            }
        };
        gone(id).await;
    }
}
