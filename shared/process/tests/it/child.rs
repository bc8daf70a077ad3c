//! A child process of the sample service: starts it, follows its output line by line, signals it, and asks its ops server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// Bounds every wait here; a healthy step takes milliseconds.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Child {
    process: std::process::Child,
    output: Lines,
    log: Lines,
}

/// How a child ended.
pub(crate) struct End {
    pub(crate) code: Option<i32>,
    pub(crate) output: String,
    pub(crate) log: String,
}

impl Child {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, &[])
    }

    pub(crate) fn start_with(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_process-sample"))
            .args(arguments)
            .env_clear()
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = Lines::of(process.stdout.take().unwrap());
        let log = Lines::of(process.stderr.take().unwrap());
        Self { process, output, log }
    }

    pub(crate) fn wait_for_step(&mut self, step: &str) {
        self.output.find(|line| line == step);
    }

    /// The address that the ops server logged.
    pub(crate) fn ops_address(&mut self) -> String {
        let line = self.log.find(|line| line.contains("serving health and metrics"));
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        line["address"].as_str().unwrap().to_owned()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let id = self.process.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", signal, &id])
                .status()
                .unwrap()
                .success()
        );
    }

    pub(crate) fn let_go(&mut self) {
        self.process.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }

    pub(crate) fn wait(mut self) -> End {
        // Both pipes close when the process ends.
        let (output, log) = (self.output.all(), self.log.all());
        End {
            code: self.process.wait().unwrap().code(),
            output,
            log,
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Fails only where the process has ended, which is what is wanted.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The lines of a pipe, as they come and as a whole.
struct Lines {
    coming: Receiver<String>,
    seen: String,
}

impl Lines {
    fn of(pipe: impl Read + Send + 'static) -> Self {
        let (sender, coming) = channel();
        // Ends with the pipe, or when nobody reads any more.
        thread::spawn(move || {
            BufReader::new(pipe)
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        Self {
            coming,
            seen: String::new(),
        }
    }

    fn find(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        loop {
            match self.coming.recv_timeout(LIMIT) {
                Ok(line) => {
                    self.seen.push_str(&line);
                    self.seen.push('\n');
                    if wanted(&line) {
                        return line;
                    }
                }
                Err(error) => panic!("{error}; so far:\n{}", self.seen),
            }
        }
    }

    fn all(&mut self) -> String {
        loop {
            match self.coming.recv_timeout(LIMIT) {
                Ok(line) => {
                    self.seen.push_str(&line);
                    self.seen.push('\n');
                }
                Err(RecvTimeoutError::Disconnected) => return std::mem::take(&mut self.seen),
                Err(RecvTimeoutError::Timeout) => panic!("still running; so far:\n{}", self.seen),
            }
        }
    }
}

/// Status and JSON body of a GET; a body that is not JSON is given as a string.
pub(crate) fn get(address: &str, path: &str) -> (u16, serde_json::Value) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_else(|_| body.into()))
}
