//! `portalis-cache`: the cache service as a process. Input: arguments and configuration. Output: an exit code.

fn main() -> std::process::ExitCode {
    process::run::<cache::Cache>()
}
