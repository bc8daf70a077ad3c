//! What workers write. Input: their error output. Output: the same in a file or on the terminal, and after their end the
//! reason they gave. Pure but for the writing.

use std::io::{self, Write};
use std::path::PathBuf;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::log_file::LogFile;

/// Bytes of a worker's output that are kept to find the reason of its end: some lines.
const KEPT_BYTES: usize = 16 * 1024;

/// Where workers' output goes.
#[derive(Debug, Clone)]
pub enum WorkerLogs {
    /// To this process's own error output.
    Terminal,
    /// To one file per worker.
    Folder(PathBuf),
}

/// Copies a worker's output until its end; gives the last part of it. Output that cannot be written is dropped: a full
/// disk must not stop a worker.
pub async fn copy(mut output: impl AsyncRead + Unpin, logs: &WorkerLogs, name: &str) -> Vec<u8> {
    let mut target: Box<dyn Write + Send> = match logs {
        WorkerLogs::Terminal => Box::new(io::stderr()),
        WorkerLogs::Folder(folder) => match LogFile::begin(&folder.join(format!("{name}.log"))) {
            Ok(file) => Box::new(file),
            Err(error) => {
                tracing::warn!(worker = name, %error, "no log file for a worker");
                Box::new(io::sink())
            }
        },
    };
    let mut kept = Vec::new();
    let mut chunk = vec![0; 8 * 1024];
    loop {
        match output.read(&mut chunk).await {
            Ok(0) | Err(_) => return kept,
            Ok(length) => {
                let _ = target.write_all(&chunk[..length]);
                kept.extend_from_slice(&chunk[..length]);
                let excess = kept.len().saturating_sub(KEPT_BYTES);
                kept.drain(..excess);
            }
        }
    }
}

/// Why a worker ended, by its own words: its first error of what was kept, else its last line.
#[must_use]
pub fn reason(kept: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(kept);
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    // What fails before there is a log begins with the program's name.
    let before_log = lines().find_map(|line| line.strip_prefix("portalis-gpu-worker: "));
    let logged = lines().find_map(|line| line.split_once(" ERROR ").map(|(_, rest)| complaint(rest)));
    before_log
        .map(str::to_owned)
        .or(logged)
        .or_else(|| lines().next_back().map(str::to_owned))
}

/// The error in `target: message key=value error="…"`, else the whole line.
fn complaint(line: &str) -> String {
    let field = |name: &str| {
        let (_, rest) = line.split_once(name)?;
        // Quoted as Rust quotes, which is JSON for all but exotic characters.
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
        values.next()?.ok()
    };
    field(" error=")
        .or_else(|| field(" reason="))
        .unwrap_or_else(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_workers_own() {
        let cases = [
            ("", None),
            ("x\nlast\n\n", Some("last")),
            (
                "portalis-gpu-worker: configuration key `a` is unknown\n",
                Some("configuration key `a` is unknown"),
            ),
            (
                "2026-01-01T00:00:00Z  INFO run: starting\n\
                 2026-01-01T00:00:01Z ERROR process::run: service failed service=\"gpu-worker\" error=\"cannot load \\\"m\\\": truncated\"\n",
                Some("cannot load \"m\": truncated"),
            ),
            (
                "T ERROR t: task failed, stopping the service task=model error=\"broken weights\"\n\
                 T ERROR t: service failed error=\"a task failed\"\n",
                Some("broken weights"),
            ),
            (
                "T ERROR p: panicked reason=\"index out of bounds\" location=\"a.rs:1:1\"\n",
                Some("index out of bounds"),
            ),
            ("T ERROR t: something else x=1\n", Some("t: something else x=1")),
        ];
        for (text, expected) in cases {
            assert_eq!(reason(text.as_bytes()).as_deref(), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn output_is_copied_and_its_end_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut output = vec![b'a'; KEPT_BYTES];
        output.extend_from_slice(b"\nthe end\n");
        let logs = WorkerLogs::Folder(folder.path().to_owned());
        let kept = copy(&output[..], &logs, "w").await;
        assert_eq!(kept.len(), KEPT_BYTES);
        assert!(kept.ends_with(b"the end\n"));
        assert_eq!(std::fs::read(folder.path().join("w.log")).unwrap(), output);
    }
}
