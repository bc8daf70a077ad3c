//! `portalis`: the local mesh and its command line. Input: arguments. Output: exit code.

fn main() -> std::process::ExitCode {
    portalis::run(std::env::args_os())
}
