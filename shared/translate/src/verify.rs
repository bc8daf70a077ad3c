//! Proof by rustc. Input: Rust that a model wrote, and perhaps cases. Output: whether it compiles, and whether it gives what
//! Python gave.
//!
//! The code runs as a process without environment, with limits on memory, files and time. That is no sandbox: callers first
//! refuse what reaches beyond computing ([`crate::answer::Candidate::reach`]).

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tokio::process::Command;
use tokio::sync::Semaphore;

use crate::cases::FunctionCases;
use crate::child::{self, Bounds};

/// Most address space of rustc, which maps much more than it uses.
const COMPILER_MEMORY_BYTES: u64 = 4 * 1024 * 1024 * 1024;
/// Largest file that rustc may write: a runner with its symbols has a few MiB.
const COMPILER_FILE_BYTES: u64 = 64 * 1024 * 1024;
/// Crate of the code under proof.
const CANDIDATE: &str = "candidate.rs";
/// The runner's main file.
const MAIN: &str = "main.rs";

/// Shows values so that types differ and floats lose nothing; a line break inside a text must not end its line. It speaks on
/// standard error, because standard output is the code's own.
const SHOW: &str = r#"#![allow(warnings)]
pub trait Show { fn show(&self) -> String; }
impl Show for i64 { fn show(&self) -> String { format!("i{}", self) } }
impl Show for f64 { fn show(&self) -> String { format!("f{:?}", self) } }
impl Show for bool { fn show(&self) -> String { format!("b{}", self) } }
impl Show for String { fn show(&self) -> String { format!("s{}", self) } }
impl Show for &str { fn show(&self) -> String { format!("s{}", self) } }
impl Show for Vec<i64> { fn show(&self) -> String { format!("l{:?}", self) } }
mod candidate;
fn main() {
    std::panic::set_hook(Box::new(|_| {}));
    let count: usize = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(0);
    for case in 0..count {
        let shown = std::panic::catch_unwind(|| candidate::portalis_cases::run(case));
        eprintln!("{}", shown.unwrap_or_else(|_| "a panic".to_string()).replace("\\", "\\\\").replace("\n", "\\n"));
    }
}
"#;

/// The proof could not be tried.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A program did not start.
    #[error("cannot run {program}, which verification needs")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The temporary folder cannot be used.
    #[error("cannot write to a temporary folder")]
    Folder(#[source] io::Error),
    /// The proof is shutting down.
    #[error("verification has ended")]
    Ended,
}

/// What one proof may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest run of rustc.
    pub compile: Duration,
    /// Longest run of all cases of a function.
    pub run: Duration,
    /// Most address space of the code under proof, in bytes.
    pub memory_bytes: u64,
    /// Proofs at once.
    pub parallel: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // A second is usual; a loaded machine takes several.
            compile: Duration::from_secs(60),
            run: Duration::from_secs(10),
            memory_bytes: 512 * 1024 * 1024,
            parallel: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// Whether code compiles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compiled {
    /// It does.
    Yes,
    /// It does not; rustc's words.
    No(String),
}

/// Whether code does what Python did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behaviour {
    /// In all cases.
    Same,
    /// In one case it did not, or it cannot be called with these arguments.
    Differs(String),
}

/// Compiles and runs.
#[derive(Debug)]
pub struct Verifier {
    rustc: PathBuf,
    limits: Limits,
    permits: Semaphore,
}

impl Verifier {
    /// A verifier with this compiler, a name on PATH or a file.
    #[must_use]
    pub fn new(rustc: impl Into<PathBuf>, limits: Limits) -> Self {
        Self {
            rustc: rustc.into(),
            limits,
            permits: Semaphore::new(limits.parallel.max(1)),
        }
    }

    /// Makes sure that the compiler runs at all.
    ///
    /// # Errors
    /// When it does not.
    pub async fn check(&self) -> Result<(), VerifyError> {
        let folder = folder(&[])?;
        match self.rustc(folder.path(), &["--version"]).await? {
            Compiled::Yes => Ok(()),
            Compiled::No(words) => Err(VerifyError::Start {
                program: self.rustc.clone(),
                source: io::Error::other(words),
            }),
        }
    }

    /// Whether the code compiles as a library, edition 2021.
    ///
    /// # Errors
    /// When rustc cannot be run.
    pub async fn compile(&self, rust: &str) -> Result<Compiled, VerifyError> {
        let _permit = self.permits.acquire().await.map_err(|_| VerifyError::Ended)?;
        let folder = folder(&[(CANDIDATE, rust)])?;
        let arguments = [
            "--crate-type",
            "lib",
            "--emit=metadata",
            "-o",
            "candidate.rmeta",
            CANDIDATE,
        ];
        self.rustc(folder.path(), &arguments).await
    }

    /// Whether the function gives what Python gave. It must compile by itself.
    ///
    /// # Errors
    /// When rustc or what it made cannot be run.
    pub async fn behave(&self, rust: &str, ident: &str, cases: &FunctionCases) -> Result<Behaviour, VerifyError> {
        let _permit = self.permits.acquire().await.map_err(|_| VerifyError::Ended)?;
        let candidate = with_cases(rust, ident, cases);
        let folder = folder(&[(CANDIDATE, &candidate), (MAIN, SHOW)])?;
        // Overflow panics, as in Python it would not wrap either.
        let arguments = ["-C", "overflow-checks=on", "-o", "runner", MAIN];
        if let Compiled::No(words) = self.rustc(folder.path(), &arguments).await? {
            return Ok(Behaviour::Differs(format!(
                "it cannot be called as in the cases: {words}"
            )));
        }
        let program = folder.path().join("runner");
        let mut command = Command::new(&program);
        command.arg(cases.calls.len().to_string()).env_clear();
        let bounds = Bounds {
            wall: self.limits.run,
            memory_bytes: self.limits.memory_bytes,
            file_bytes: 0,
        };
        let ran = child::run(command, folder.path(), bounds).await;
        let ran = ran.map_err(|source| VerifyError::Start { program, source })?;
        let Some(ran) = ran else {
            return Ok(Behaviour::Differs(format!("it ran longer than {:?}", self.limits.run)));
        };
        Ok(first_difference(&ran.words, cases).map_or(Behaviour::Same, Behaviour::Differs))
    }

    async fn rustc(&self, folder: &Path, arguments: &[&str]) -> Result<Compiled, VerifyError> {
        let mut command = Command::new(&self.rustc);
        command.args(["--edition", "2021", "--color", "never", "-A", "warnings"]);
        command.args(arguments);
        let bounds = Bounds {
            wall: self.limits.compile,
            memory_bytes: COMPILER_MEMORY_BYTES,
            file_bytes: COMPILER_FILE_BYTES,
        };
        let ran = child::run(command, folder, bounds).await;
        let ran = ran.map_err(|source| VerifyError::Start {
            program: self.rustc.clone(),
            source,
        })?;
        Ok(match ran {
            Some(ran) if ran.success => Compiled::Yes,
            Some(ran) => Compiled::No(ran.words.trim().to_owned()),
            None => Compiled::No(format!("rustc took longer than {:?}", self.limits.compile)),
        })
    }
}

/// The code with a function that makes call `case`; a module inside sees what is private.
fn with_cases(rust: &str, ident: &str, cases: &FunctionCases) -> String {
    let mut text = format!("{rust}\npub mod portalis_cases {{\n    use crate::Show;\n");
    text.push_str("    pub fn run(case: usize) -> String {\n        match case {\n");
    for (place, call) in cases.calls.iter().enumerate() {
        // Writing to a text cannot fail.
        let _ = writeln!(text, "            {place} => super::{ident}({}).show(),", call.rust);
    }
    text.push_str("            _ => String::new(),\n        }\n    }\n}\n");
    text
}

fn first_difference(words: &str, cases: &FunctionCases) -> Option<String> {
    let mut lines = words.split_terminator('\n');
    cases.calls.iter().find_map(|call| {
        let shown = lines.next().map(unescaped);
        if shown.as_deref().is_some_and(|shown| call.expected.is_met_by(shown)) {
            return None;
        }
        let found = match shown.as_deref() {
            Some("a panic") => "a panic",
            // What the system says of a stack that overflows stands where the value should.
            Some(shown) if shown.starts_with(['i', 'f', 'b', 's', 'l']) => &shown[1..],
            _ => "nothing: the program ended",
        };
        Some(format!(
            "for {} Python gives {}, this {found}",
            call.shown, call.expected
        ))
    })
}

/// A line of the runner as the text that it stands for.
fn unescaped(line: &str) -> String {
    let parts = line.split("\\\\").map(|part| part.replace("\\n", "\n"));
    parts.collect::<Vec<_>>().join("\\")
}

fn folder(files: &[(&str, &str)]) -> Result<TempDir, VerifyError> {
    let folder = tempfile::Builder::new().prefix("translate-").tempdir();
    let folder = folder.map_err(VerifyError::Folder)?;
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).map_err(VerifyError::Folder)?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::Cases;

    fn cases(params: &str, returns: &str, cases: &str) -> FunctionCases {
        let row = format!(r#"{{"name": "f", "params": {params}, "returns": "{returns}", "cases": {cases}}}"#);
        Cases::parse(&row).unwrap().of("f", "").unwrap().clone()
    }

    fn verifier(run: Duration) -> Verifier {
        Verifier::new(
            "rustc",
            Limits {
                run,
                ..Limits::default()
            },
        )
    }

    #[tokio::test]
    async fn rustc_decides_and_explains() {
        let verifier = verifier(Duration::from_secs(60));
        let good = verifier.compile("pub fn f(a: i64) -> i64 { a }").await.unwrap();
        assert_eq!(good, Compiled::Yes);
        match verifier.compile("pub fn f(a: i64) -> bool { a }").await.unwrap() {
            Compiled::No(words) => assert!(words.contains("mismatched types"), "{words}"),
            Compiled::Yes => panic!("it is wrong"),
        }
        let nowhere = Verifier::new("/nowhere/rustc", Limits::default());
        assert!(matches!(nowhere.compile("").await, Err(VerifyError::Start { .. })));
        assert!(nowhere.check().await.is_err() && verifier.check().await.is_ok());
    }

    #[tokio::test]
    async fn functions_are_run_as_in_the_cases() {
        let verifier = verifier(Duration::from_secs(60));
        let text = cases(
            r#"[["a", "str"], ["b", "list[int]"]]"#,
            "str",
            r#"[{"args": ["x\n", [1, -2]], "out": "x\n-1"}, {"args": ["é\\n\r", []], "out": "é\\n\r0"}]"#,
        );
        let good = "fn f(a: &str, b: &[i64]) -> String { println!(\"what it prints is its own\"); format!(\"{}{}\", a, b.iter().sum::<i64>()) }";
        assert_eq!(verifier.behave(good, "f", &text).await.unwrap(), Behaviour::Same);

        let number = cases(
            r#"[["a", "int"]]"#,
            "int",
            r#"[{"args": [1], "out": 1}, {"args": [9], "out": 3}]"#,
        );
        let differs = [
            ("fn f(a: i64) -> i64 { a }", "for [9] Python gives 3, this 9"),
            (
                "fn f(a: i64) -> i64 { i64::MAX + a - i64::MAX }",
                "for [1] Python gives 1, this a panic",
            ),
            ("fn f(a: i64) -> i64 { std::process::exit(0) }", "nothing"),
            ("fn f(a: bool) -> i64 { 1 }", "mismatched types"),
            ("fn f(a: i64) -> i64 { vec![1_u8; 1 << 30].len() as i64 }", "nothing"),
            ("fn f(a: i64) -> i64 { f(a) + 1 }", "nothing: the program ended"),
        ];
        for (rust, hint) in differs {
            match verifier.behave(rust, "f", &number).await.unwrap() {
                Behaviour::Differs(reason) => assert!(reason.contains(hint), "{rust}: {reason}"),
                Behaviour::Same => panic!("{rust}"),
            }
        }
    }

    #[tokio::test]
    async fn endless_code_is_ended() {
        let number = cases(r#"[["a", "int"]]"#, "int", r#"[{"args": [1], "out": 1}]"#);
        let limit = Duration::from_millis(200);
        let endless = "fn f(a: i64) -> i64 { let mut n = a; loop { n = n.wrapping_add(1); eprintln!(\"{}\", n); } }";
        let outcome = verifier(limit).behave(endless, "f", &number).await.unwrap();
        assert!(matches!(outcome, Behaviour::Differs(_)), "{outcome:?}");
        let silent = "fn f(a: i64) -> i64 { let mut n = a; loop { n = n.wrapping_add(1); } }";
        let outcome = verifier(limit).behave(silent, "f", &number).await.unwrap();
        assert_eq!(outcome, Behaviour::Differs("it ran longer than 200ms".to_owned()));
    }
}
