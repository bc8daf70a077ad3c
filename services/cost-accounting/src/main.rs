//! `portalis-cost-accounting`: books priced facts and answers what was used. Input: arguments and configuration.
//! Output: exit code.

fn main() -> std::process::ExitCode {
    process::run::<cost_accounting::CostAccounting>()
}
