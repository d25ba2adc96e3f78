//! Figures that need stock guests: `cargo xtask figures`, which runs them where this machine can, directly or in the lab.

use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    // `cargo bench -- FILTER` and `cargo test --benches` are about the other benches.
    if std::env::args().skip(1).any(|argument| argument != "--bench") {
        return ExitCode::SUCCESS;
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    match Command::new(cargo).args(["xtask", "figures"]).status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
