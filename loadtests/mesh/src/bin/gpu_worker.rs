//! A worker that tests may kill. Input: flags and environment, as `portalis-gpu-worker` takes them. Output: exit code.

fn main() -> std::process::ExitCode {
    process::run::<gpu_worker::GpuWorker>()
}
