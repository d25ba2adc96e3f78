//! `karat`: pulls golden images and runs machines through the API of `karatd`.
//!
//! Exit status: 0 done, 1 failed, 2 wrong usage. What was asked for goes to stdout; everything else goes to stderr.

mod args;
mod boot_sources;
mod connection;
mod console;
mod image_args;
mod image_stores;
mod images;
mod metadef_args;
mod metadefs;
mod migration_args;
mod migrations;
mod network_arg;
mod output;
mod progress;
mod run;
mod show;
mod snapshot_args;
mod snapshots;
mod source_args;
mod upload;
mod vms;
mod volume_args;
mod volumes;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser};

use crate::args::{Args, Command};

fn main() -> ExitCode {
    let args = Args::parse();
    match start(args) {
        Ok(code) => code,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

fn start(args: Args) -> anyhow::Result<ExitCode> {
    if let Command::Completion { shell } = args.command {
        clap_complete::generate(shell, &mut Args::command(), "karat", &mut std::io::stdout());
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime for network calls")?;
    let code = runtime.block_on(dispatch(args));
    // A read of the terminal may still be waiting; it must not hold up the exit.
    runtime.shutdown_background();
    code
}

async fn dispatch(args: Args) -> anyhow::Result<ExitCode> {
    let client = args.connection.client()?;
    let format = args.output;
    match args.command {
        Command::Run(wish) => return run::run(&client, wish, format).await,
        Command::Create(wish) => run::create(&client, &wish, format).await?,
        Command::Volume(command) => return volumes::run(&client, command, format).await,
        Command::Ls => vms::list(&client, format).await?,
        Command::Show { vm } => vms::show(&client, &vm, format).await?,
        Command::Console { vm } => return console::attach(&client, &vm).await,
        Command::Logs { vm } => vms::logs(&client, &vm).await?,
        Command::Start { vms } => vms::start(&client, &vms).await?,
        Command::Stop { vms, force, timeout } => vms::stop(&client, &vms, force, timeout).await?,
        Command::Restart { vms, timeout } => vms::restart(&client, &vms, timeout).await?,
        Command::Flatten { vms } => vms::flatten(&client, &vms).await?,
        Command::Reset { vms } => vms::reset(&client, &vms).await?,
        Command::Pause { vms } => vms::pause(&client, &vms).await?,
        Command::Resume { vms } => vms::resume(&client, &vms).await?,
        Command::Rm { vms, force } => vms::remove(&client, &vms, force).await?,
        Command::Snapshot(command) => snapshots::run(&client, command, format).await?,
        Command::Image(command) => images::run(&client, command, format).await?,
        Command::BootSource(command) => boot_sources::run(&client, command, format).await?,
        Command::Metadef(command) => metadefs::run(&client, command, format).await?,
        Command::Migrate(wish) => migrations::migrate(&client, wish, format).await?,
        Command::Migration(command) => migrations::run(&client, command, format).await?,
        Command::Completion { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what went wrong and, where the causes add to it, why.
fn report(error: &anyhow::Error) {
    let mut stderr = std::io::stderr();
    let mut told = format!("karat: {error}");
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !told.contains(&cause) {
            told.push_str("\n  because: ");
            told.push_str(&cause);
        }
    }
    // Nowhere is left to complain when stderr is gone.
    drop(writeln!(stderr, "{told}"));
}
