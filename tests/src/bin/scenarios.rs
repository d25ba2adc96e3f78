//! Runs the scenarios on a host whose `/dev/kvm` boots stock kernels: bare metal, or the lab host.
//!
//! Prints one line per scenario and `N passed, N failed` at the end; exit status 1 if any failed. Re-executes itself in a
//! network namespace of its own, so that taps and addresses of scenarios touch nothing of the host.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use e2e::Environment;
use e2e::scenarios::ALL;

/// Runs scenarios against real guests.
#[derive(Debug, Parser)]
struct Args {
    /// Directory with karatd, karat and karat-vmm.
    #[arg(long, required_unless_present = "list")]
    programs: Option<std::path::PathBuf>,
    /// Directory with vmlinuz, vmlinux and initrd of the stock guest.
    #[arg(long, required_unless_present = "list")]
    guest: Option<std::path::PathBuf>,
    /// Directory to work in.
    #[arg(long, required_unless_present = "list")]
    work: Option<std::path::PathBuf>,
    /// Only print the scenarios' names.
    #[arg(long)]
    list: bool,
    /// Only scenarios whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Stay in the network namespace of the caller.
    #[arg(long)]
    same_network: bool,
}

#[expect(clippy::print_stdout, reason = "the report is what this program is for")]
fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if args.list {
        ALL.iter().for_each(|scenario| println!("{}", scenario.name));
        return Ok(ExitCode::SUCCESS);
    }
    if !args.same_network {
        let program = std::env::current_exe()?;
        let error = Command::new("unshare")
            .args(["--net", "--"])
            .arg(program)
            .args(std::env::args_os().skip(1))
            .arg("--same-network")
            .exec();
        return Err(error).context("unshare can not be run; it is part of util-linux");
    }
    // A fresh namespace has its loopback down.
    Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status()
        .context("ip can not be run; it is part of iproute2")?;
    let environment = Environment {
        programs: args.programs.context("--programs is missing")?,
        guest: args.guest.context("--guest is missing")?,
        work: args.work.context("--work is missing")?,
    };
    environment.check()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut passed, mut failed) = (0, 0);
    for scenario in ALL.iter().filter(|scenario| scenario.name.contains(&args.only)) {
        let begin = Instant::now();
        let result = runtime.block_on(scenario.run(&environment));
        let seconds = begin.elapsed().as_secs_f32();
        match result {
            Ok(()) => {
                passed += 1;
                println!("PASS {} ({seconds:.1} s)", scenario.name);
            }
            Err(error) => {
                failed += 1;
                println!("FAIL {} ({seconds:.1} s): {error:?}", scenario.name);
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    Ok(if failed == 0 && passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
