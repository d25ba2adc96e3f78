//! `karat-vmm`: one machine, in a process of its own.
//!
//! It is started by `karatd` with two listening sockets and nothing else, is told over the first what machine to become, and
//! serves the machine's console on the second. Everything it works on is handed to it as an open file; the only path it knows
//! is `/dev/kvm`. It outlives the daemon that started it, and leaves a report when its machine ends.
//!
//! Threads: the control loop (main), the console, the state driver, one per vCPU, one or more per virtio device; those of
//! `migration` while the machine moves.

mod bell;
mod connection;
mod console;
mod control_loop;
mod inherited;
mod links;
mod moves;
mod report;
mod signals;
mod socket;
mod tls;

use std::process::ExitCode;

use anyhow::Context;

/// The command line or the sockets are wrong.
const EXIT_USAGE: u8 = 2;

const USAGE: &str = "\
karat-vmm runs one machine for karatd. It is not meant to be started by hand: start
machines with `karat run`, or talk to karatd.

Usage: karat-vmm [--version | --help]

Without an option it serves a machine. It expects, as karatd passes them,
  descriptor 3   a listening UNIX stream socket for control,
  descriptor 4   a listening UNIX stream socket for the console,
and logs to standard error; KARAT_LOG chooses what (a level, or module=level,…).

Exit status: 0 the machine ended as it should, 1 it did not (see report.json in its
run directory), 2 wrong usage.
";

#[expect(clippy::print_stdout, reason = "what was asked for on the command line")]
#[expect(clippy::print_stderr, reason = "wrong usage, before there are logs")]
fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.as_slice() {
        [] => serve(),
        [option] if option == "--version" || option == "-V" => {
            println!("karat-vmm {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        [option] if option == "--help" || option == "-h" => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        [unknown, ..] => {
            eprintln!("karat-vmm: unexpected argument {unknown:?}\n\n{USAGE}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

#[expect(clippy::print_stderr, reason = "wrong usage, read by whoever started this by hand")]
fn serve() -> ExitCode {
    let sockets = match inherited::sockets() {
        Ok(sockets) => sockets,
        Err(error) => {
            eprintln!("karat-vmm: {error}\n\n{USAGE}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if let Err(error) = telemetry::init("karat-vmm") {
        eprintln!("karat-vmm: {error}");
        return ExitCode::from(EXIT_USAGE);
    }
    match run(sockets) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Until the machine has ended; true if it ended as it should.
fn run(sockets: inherited::Sockets) -> anyhow::Result<bool> {
    // A session of its own, so that signals for the daemon's terminal or session pass by. Fails for a leader of a process
    // group, which has the same.
    let _ = rustix::process::setsid();
    let termination = signals::install().context("signals can not be handled")?;
    report::write_on_panic();
    control_loop::run(sockets, termination)
}
