//! The local mesh, beside a worker program that cargo has built for the tests. Input: arguments. Output: exit code.

fn main() -> std::process::ExitCode {
    portalis::run(std::env::args_os())
}
