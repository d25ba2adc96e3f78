//! Figures of disk images next to `qemu-img bench` and `qemu-img convert`; runs by `cargo xtask figures disk`.
//!
//! Prints a line per figure and, with `--json FILE`, appends JSON lines. Rounds of Karat and of QEMU alternate; QEMU's is the better
//! of io_uring and threads.
#![expect(clippy::print_stdout, reason = "the report is what this program is for")]

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use perf::disk::{self, Files, Load};

#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Measures all.
    All {
        /// Directory to work in, with 3 GiB of space; its file system is part of what is measured.
        #[arg(long)]
        work: PathBuf,
        /// Rounds of each.
        #[arg(long, default_value_t = 5)]
        rounds: u32,
        /// Only figures whose names contain this.
        #[arg(long)]
        only: Option<String>,
        /// File for JSON lines.
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Karat's side of one measurement.
    #[command(hide = true)]
    Run(Load),
    /// Opens an image.
    #[command(hide = true)]
    Open { image: PathBuf },
    /// Converts an image to raw.
    #[command(hide = true)]
    Convert { from: PathBuf, to: PathBuf },
}

fn main() -> Result<()> {
    match Args::parse().what {
        What::All {
            work,
            rounds,
            only,
            json,
        } => {
            ensure!(rounds > 0, "at least one round");
            disk::allow_deep_stacks()?;
            let dir = work.join(format!("disk-figures-{}", std::process::id()));
            let made = Files::make(&dir)?;
            let figures = disk::figures(&made, rounds, only.as_deref(), |figure| println!("{figure}"));
            std::fs::remove_dir_all(&dir)?;
            let figures = figures?;
            if let Some(path) = json {
                let mut file = std::fs::File::options().create(true).append(true).open(path)?;
                for figure in &figures {
                    writeln!(file, "{}", serde_json::to_string(figure)?)?;
                }
            }
        }
        What::Run(load) => println!("completed in {} seconds", disk::run(&load)?),
        What::Open { image } => {
            let (seconds, bytes) = disk::open(&image)?;
            println!("completed in {seconds} seconds");
            println!("resident bytes: {bytes}");
        }
        What::Convert { from, to } => disk::convert(&from, &to)?,
    }
    Ok(())
}
