//! `karat-vmm`: one machine, in a process of its own.
//!
//! It is started by `karatd` with two listening sockets and nothing else, is told over the first what machine to become, and
//! serves the machine's console on the second. Everything it works on is handed to it as an open file; the only path it knows
//! is `/dev/kvm`. It outlives the daemon that started it, and leaves a report when its machine ends.
//!
//! Threads: the control loop (main), the steward that starts the others, the console, the state driver, one per vCPU, one or more per
//! virtio device; for a while, those of disk jobs and migrations. Each has a seccomp filter: see `sandbox`.

mod bell;
mod connection;
mod console;
mod control_loop;
mod inherited;
mod links;
mod moves;
mod panic;
mod report;
mod signals;
mod socket;
mod tls;

use std::process::ExitCode;

use anyhow::Context;
use sandbox::SeccompMode;

/// The command line or the sockets are wrong.
const EXIT_USAGE: u8 = 2;

const USAGE: &str = "\
karat-vmm runs one machine for karatd. It is not meant to be started by hand: start
machines with `karat run`, or talk to karatd.

Usage: karat-vmm [--seccomp=enforce|log|off]
       karat-vmm --version | --help

--seccomp says what becomes of system calls that a thread has no use for: they end
the process (enforce, the default), are made and logged by the kernel (log), or are
made (off).

It serves a machine, and expects, as karatd passes them,
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
        [] => serve(SeccompMode::default()),
        [option] if let Some(mode) = seccomp(option) => match mode.parse() {
            Ok(mode) => serve(mode),
            Err(error) => {
                eprintln!("karat-vmm: --seccomp: {error}\n\n{USAGE}");
                ExitCode::from(EXIT_USAGE)
            }
        },
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

/// What the option gives as a mode, if it is that option.
fn seccomp(option: &std::ffi::OsStr) -> Option<&str> {
    option.to_str()?.strip_prefix("--seccomp=")
}

#[expect(clippy::print_stderr, reason = "wrong usage, read by whoever started this by hand")]
fn serve(mode: SeccompMode) -> ExitCode {
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
    match run(sockets, mode) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Until the machine has ended; true if it ended as it should.
fn run(sockets: inherited::Sockets, mode: SeccompMode) -> anyhow::Result<bool> {
    // A session of its own, so that signals for the daemon's terminal or session pass by. Fails for a leader of a process
    // group, which has the same.
    let _ = rustix::process::setsid();
    let termination = signals::install().context("signals can not be handled")?;
    panic::tell();
    sandbox::confine_threads(mode, report::leave_forbidden)
        .context("threads can not be confined; seccomp = \"off\" in karat.toml runs machines without")?;
    control_loop::run(sockets, termination)
}
