//! The project's own commands.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use xtask::registry::Registry;
use xtask::{cache, demo, figures, golden, guests, lab, openapi, probe, suite, tidy, tools};

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
struct Line {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// From Debian packages to a login prompt: builds a golden image, pulls, boots and stops it, and prints all of it.
    Demo {
        /// Directory with karatd, karat and karat-vmm; they are not built then.
        #[arg(long)]
        programs: Option<PathBuf>,
    },
    /// The whole test suite.
    Test {
        /// Only the steps whose name contains this.
        only: Option<String>,
    },
    /// The same as `test`.
    Ci,
    /// Writes api/openapi.json from the code.
    Openapi {
        /// Only check that it is fresh.
        #[arg(long)]
        check: bool,
    },
    /// Measures and prints figures, one line each.
    Figures {
        /// One area only.
        area: Option<String>,
    },
    /// Checks the project's rules: layers, importers, sizes, names, module cycles, licences.
    Tidy,
    /// Says where stock guests run on this machine, by booting one.
    Probe,
    /// Builds the golden images and serves them from a registry on loopback until interrupted.
    Registry,
    /// A Debian host under emulation whose /dev/kvm boots stock guests.
    Lab(LabArgs),
}

#[derive(clap::Args)]
struct LabArgs {
    /// `shell` for a root shell in it; a bash script file to run there; nothing to only build it.
    what: Option<PathBuf>,
    /// How long it may take, in seconds.
    #[arg(long, default_value_t = 600)]
    deadline_s: u64,
    /// A file to put into the lab host, under /payload.
    #[arg(long, value_name = "FILE:PATH", value_parser = parse_file)]
    add: Vec<(PathBuf, String)>,
    /// With the tiny stock guest in it: /payload/guest/{vmlinuz,vmlinux,initrd,blank.qcow2}.
    #[arg(long)]
    guest: bool,
    /// How many hosts, 1 or 2; two run the same script and are joined by a network, 10.99.0.1 and 10.99.0.2 on eth1.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    hosts: u8,
    /// With QEMU in it, the peer of the figures.
    #[arg(long)]
    with_peer: bool,
}

fn parse_file(text: &str) -> Result<(PathBuf, String), String> {
    let (from, to) = text
        .split_once(':')
        .ok_or("take FILE:PATH, the path relative to /payload")?;
    Ok((from.into(), to.into()))
}

fn main() -> ExitCode {
    let done = match Line::parse().command {
        Task::Demo { programs } => demo::show(programs.as_deref()),
        Task::Test { only } => suite::run_all(only.as_deref()),
        Task::Ci => suite::run_all(None),
        Task::Openapi { check } => openapi::run(check),
        Task::Figures { area } => figures::run_all(area.as_deref()),
        Task::Tidy => tidy::run(),
        Task::Probe => probe::boots_stock_kernels().map(drop),
        Task::Registry => serve(),
        Task::Lab(args) => lab_command(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tools::say(format!("failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn lab_command(args: &LabArgs) -> Result<()> {
    let Some(what) = &args.what else {
        return lab::images::host(args.with_peer).map(drop);
    };
    let mut payload = lab::Payload::new(&cache::own_dir("payload", "script")?)?;
    for (from, to) in &args.add {
        payload.add(from, to)?;
    }
    if args.guest {
        guests::add_guest(&mut payload)?;
    }
    if what.as_os_str() == "shell" {
        return lab::shell(&payload);
    }
    payload.script(&std::fs::read_to_string(what)?)?;
    let hosts: Vec<_> = (0..args.hosts)
        .map(|_| (lab::HostConfig::default(), &payload))
        .collect();
    let lab = lab::Lab::boot("script", args.with_peer, &hosts)?;
    let outcomes = lab.finish(Duration::from_secs(args.deadline_s))?;
    for outcome in outcomes {
        tools::say(format!(
            "exit status {}, results in {}",
            outcome.status,
            outcome.results.display()
        ));
        if outcome.status != 0 {
            bail!("the script failed in the lab");
        }
    }
    Ok(())
}

fn serve() -> Result<()> {
    let registry = Registry::start()?;
    for (layout, name) in [
        (golden::debian_container()?, "karat/debian:12"),
        (golden::tiny_container()?, "karat/tiny:1"),
    ] {
        let digest = registry.push(&layout, name)?;
        tools::say(format!("127.0.0.1:{}/{name} is {digest}", registry.port()));
    }
    tools::say("serves until Ctrl-C");
    loop {
        std::thread::park();
    }
}
