//! Recorded runs of all kinds that power loss is tried on, each in a process of its own; and the kinds that crashes are tried on.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::kind::{Extra, Fill, Kind, MIB};
use crate::matrix::within;
use crate::power::Found;
use crate::say;
use crate::stack::Format::{Qcow2, Raw};

/// How long one recorded run and its states may take.
const LIMIT: Duration = Duration::from_secs(240);

/// What is run.
#[derive(Debug)]
pub struct Outages {
    /// Words of the command line that choose the engine.
    pub engine: Vec<String>,
    /// Kinds of images.
    pub kinds: Vec<Kind>,
    /// Of everything.
    pub seed: u64,
    /// Recorded runs; 0: as many as the time allows.
    pub runs: u64,
    /// States of each.
    pub states: u32,
    /// Requests in each.
    pub requests: u32,
    /// Requests in flight at once.
    pub depth: u32,
    /// When to stop.
    pub at_most: Duration,
    /// Processes at once.
    pub jobs: u32,
    /// Contents are read by QEMU.
    pub by_qemu: bool,
    /// Where images are made.
    pub dir: PathBuf,
}

/// Small images with much metadata.
pub fn kinds_for_power() -> Vec<Kind> {
    let small = |name: &str, cluster| Kind::new(name, cluster).size(2 * MIB);
    vec![
        small("plain-4k", 4096),
        small("plain-64k", 65_536).fill(Fill::Empty),
        small("plain-512", 512).size(MIB),
        small("refcounts-grow", 512)
            .size(3 * MIB)
            .option("refcount_bits=64")
            .fill(Fill::Empty),
        small("refcount-1", 512).option("refcount_bits=1").fill(Fill::Empty),
        small("overlay-4k", 4096).over(Raw, 100),
        small("overlay-64k-smaller", 65_536).over(Raw, 50),
        small("compressed-4k", 4096).fill(Fill::Mixed),
        small("compressed-64k", 65_536).fill(Fill::Compressed),
        small("snapshot-4k", 4096).extra(Extra::Snapshots(1)),
        small("snapshot-512", 512).size(MIB).extra(Extra::Snapshots(2)),
        small("lazy-4k", 4096).option("lazy_refcounts=on"),
        small("lazy-512-overlay", 512)
            .size(MIB)
            .option("lazy_refcounts=on")
            .over(Raw, 100),
        small("subclusters-16k", 16 << 10).option("extended_l2=on"),
        small("subclusters-overlay", 16 << 10)
            .option("extended_l2=on")
            .over(Raw, 100),
        small("zeroes-4k", 4096).fill(Fill::Zeroes),
        small("prealloc-4k", 4096)
            .option("preallocation=metadata")
            .fill(Fill::Empty),
        small("v2-4k", 4096).v2(),
        small("v2-overlay", 4096).v2().over(Raw, 100),
        small("bitmap-64k", 65_536).extra(Extra::Bitmap(true)),
    ]
}

/// Plain, overlay, compressed, snapshotted and lazy-refcount images.
pub fn kinds_for_kills() -> Vec<Kind> {
    let small = |name: &str, cluster| Kind::new(name, cluster).size(6 * MIB);
    vec![
        small("plain-64k", 65_536),
        small("overlay-64k", 65_536).over(Qcow2, 100),
        small("compressed-64k", 65_536).fill(Fill::Mixed),
        small("snapshot-64k", 65_536).extra(Extra::Snapshots(1)),
        small("lazy-64k", 65_536).option("lazy_refcounts=on"),
        small("plain-4k", 4096).fill(Fill::Empty),
        small("overlay-4k", 4096).over(Raw, 70),
        small("compressed-4k", 4096).fill(Fill::Compressed),
        small("snapshot-4k", 4096).extra(Extra::Snapshots(2)),
        small("lazy-4k", 4096).option("lazy_refcounts=on").over(Raw, 100),
        small("plain-512", 512).size(2 * MIB).option("refcount_bits=64"),
        small("lazy-512", 512)
            .size(2 * MIB)
            .option("lazy_refcounts=on")
            .fill(Fill::Mixed),
        small("subclusters-overlay", 65_536)
            .option("extended_l2=on")
            .over(Raw, 100),
    ]
}

/// The kind for power loss with this name.
pub fn kind_named(name: &str) -> Result<Kind> {
    let found = kinds_for_power().into_iter().find(|kind| kind.name == name);
    found.with_context(|| format!("no kind for power loss is called {name}"))
}

/// A result as one line of a child's output.
pub fn to_line(found: &Found) -> String {
    let numbers = [found.states, found.corrupt, found.lost, found.unusable];
    let value = serde_json::json!({ "numbers": numbers, "words": found.words });
    value.to_string()
}

fn from_line(line: &str) -> Option<Found> {
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    let number = |index: usize| value.get("numbers")?.get(index)?.as_u64();
    let words = value.get("words")?.as_array()?;
    Some(Found {
        states: number(0)?,
        corrupt: number(1)?,
        lost: number(2)?,
        unusable: number(3)?,
        words: words
            .iter()
            .filter_map(|word| word.as_str().map(str::to_owned))
            .collect(),
    })
}

/// Sums of all processes so far.
#[derive(Default)]
struct Sum {
    begun: u64,
    broken: u64,
    found: Found,
}

/// Runs all; recorded runs, what was found, and runs that broke before any state was made.
pub fn run(outages: &Outages) -> Result<(u64, Found, u64)> {
    let begun = Instant::now();
    let sum = Mutex::new(Sum::default());
    say(&format!(
        "power loss: {} kinds, seed {}",
        outages.kinds.len(),
        outages.seed
    ));
    thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = (0..outages.jobs)
            .map(|_| scope.spawn(|| work(outages, &sum, begun)))
            .collect();
        for thread in threads {
            thread
                .join()
                .unwrap_or_else(|_| anyhow::bail!("the harness panicked"))?;
        }
        Ok(())
    })?;
    let sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok((sum.begun, sum.found, sum.broken))
}

fn work(outages: &Outages, sum: &Mutex<Sum>, begun: Instant) -> Result<()> {
    loop {
        let number = {
            let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
            let enough = outages.runs > 0 && sum.begun >= outages.runs;
            if enough || begun.elapsed() > outages.at_most {
                return Ok(());
            }
            sum.begun += 1;
            sum.begun - 1
        };
        let index = usize::try_from(number)? % outages.kinds.len();
        let kind = outages.kinds.get(index).context("no kinds")?;
        let ended = one(outages, kind, outages.seed.wrapping_add(number))?;
        let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
        match ended {
            Ok(found) => {
                sum.found.states += found.states;
                sum.found.corrupt += found.corrupt;
                sum.found.lost += found.lost;
                sum.found.unusable += found.unusable;
            }
            Err(words) => {
                sum.broken += 1;
                say(&words);
            }
        }
    }
}

/// One process; the inner error is what it said when it broke.
fn one(outages: &Outages, kind: &Kind, seed: u64) -> Result<Result<Found, String>> {
    let dir = outages.dir.join(format!("{}-{seed}", kind.name));
    let images = dir.join("images");
    fs::create_dir_all(&images)?;
    let (log, result) = (dir.join("log"), dir.join("result"));
    let mut command = Command::new(std::env::current_exe()?);
    command.env("RUST_BACKTRACE", "0");
    command.args(&outages.engine).args(["power-one", "--kind", &kind.name]);
    command.args(["--seed", &seed.to_string()]);
    command.args(["--states", &outages.states.to_string()]);
    command.args(["--requests", &outages.requests.to_string()]);
    command.args(["--depth", &outages.depth.to_string()]);
    if outages.by_qemu {
        command.arg("--by-qemu");
    }
    command.arg("--dir").arg(&images).stdin(Stdio::null());
    command.stdout(File::create(&result)?).stderr(File::create(&log)?);
    let ended = within(command, LIMIT);
    let found = fs::read_to_string(&result)?.lines().find_map(from_line);
    match (ended, found) {
        (Ok(true), Some(found)) => {
            for words in &found.words {
                say(&format!("{} seed {seed}: {words}", kind.name));
            }
            if found.words.is_empty() {
                fs::remove_dir_all(&dir)?;
            }
            Ok(Ok(found))
        }
        (ended, _) => {
            let why = ended.err().map_or_else(String::new, |error| format!("{error:#}; "));
            let log = fs::read(&log).unwrap_or_default();
            let log: String = String::from_utf8_lossy(&log).chars().take(900).collect();
            Ok(Err(format!("broken: {} seed {seed}: {why}{log}", kind.name)))
        }
    }
}
