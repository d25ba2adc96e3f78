//! Figures of images next to `skopeo copy`, `tar` and `qemu-img convert`; runs by `cargo xtask figures images`.
//!
//! Prints a line per figure and, with `--json FILE`, appends JSON lines. Rounds of Karat and of the peer alternate.
#![expect(clippy::print_stdout, reason = "the report is what this program is for")]

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use perf::images::{self, Extent};

#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Measures all.
    All {
        /// Directory to work in, with six times the space of the image's data; its file system is part of what is measured.
        #[arg(long)]
        work: PathBuf,
        #[command(flatten)]
        extent: Extent,
        /// File for JSON lines.
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Karat's side of one import.
    #[command(hide = true)]
    Import {
        /// Directory of a new store.
        #[arg(long)]
        store: PathBuf,
        /// The image.
        #[arg(long)]
        reference: String,
    },
}

fn main() -> Result<()> {
    match Args::parse().what {
        What::All { work, extent, json } => {
            ensure!(
                extent.rounds > 0 && extent.data_mib > 0,
                "at least one round, of at least one MiB"
            );
            let dir = work.join(format!("image-figures-{}", std::process::id()));
            std::fs::create_dir_all(&dir)?;
            let figures = images::figures(&dir, extent, |figure| println!("{figure}"));
            let removed = std::process::Command::new("sh")
                .args(["-c", "chmod -R u+w \"$0\" && rm -r \"$0\""])
                .arg(&dir)
                .status()?;
            let figures = figures?;
            ensure!(removed.success(), "{} can not be removed", dir.display());
            if let Some(path) = json {
                let mut file = std::fs::File::options().create(true).append(true).open(path)?;
                for figure in &figures {
                    writeln!(file, "{}", serde_json::to_string(figure)?)?;
                }
            }
        }
        What::Import { store, reference } => images::import(&store, &reference)?,
    }
    Ok(())
}
