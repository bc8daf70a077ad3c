//! `portalis-autoscaler`: watches queues and workers, decides how many workers each model has. Input: arguments and
//! configuration. Output: exit code.

fn main() -> std::process::ExitCode {
    process::run::<autoscaler::Autoscaler>()
}
