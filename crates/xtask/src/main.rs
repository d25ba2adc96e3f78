//! The project's own commands.


use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use xtask::{lab, tools};

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
struct Line {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// A Debian host under emulation whose /dev/kvm boots stock guests.
    Lab {
        /// `shell` for a root shell in it; a script file to run there; nothing to only build it.
        what: Option<PathBuf>,
        /// How long it may take, in seconds.
        #[arg(long, default_value_t = 600)]
        deadline_s: u64,
    },
}

fn main() -> ExitCode {
    let done = match Line::parse().command {
        Task::Lab { what, deadline_s } => lab_command(what, Duration::from_secs(deadline_s)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tools::say(format!("failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn lab_command(what: Option<PathBuf>, limit: Duration) -> Result<()> {
    let Some(what) = what else { return lab::images::host(false).map(drop) };
    let mut payload = lab::Payload::new(&tools::target().join("lab/payload"))?;
    if what.as_os_str() == "shell" {
        return lab::shell(&payload);
    }
    payload.script(&std::fs::read_to_string(&what)?)?;
    let lab = lab::Lab::boot("script", false, &[(lab::HostConfig::default(), &payload)])?;
    let outcomes = lab.finish(limit)?;
    for outcome in outcomes {
        tools::say(format!("exit status {}, results in {}", outcome.status, outcome.results.display()));
        if outcome.status != 0 {
            bail!("the script failed in the lab");
        }
    }
    Ok(())
}
