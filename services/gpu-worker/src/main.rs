//! The worker as its own process. Input: arguments, environment, config file. Output: an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    process::run::<gpu_worker::GpuWorker>()
}
