//! The matrix: each kind in a process of its own, so that a panic or a hang is that kind's and nobody else's.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::random::Random;
use crate::say;

/// How long one image may take before it counts as hanging.
const LIMIT: Duration = Duration::from_secs(90);

/// What is run.
#[derive(Debug)]
pub struct Matrix {
    /// Words of the command line that choose the engine.
    pub engine: Vec<String>,
    /// Names of the kinds.
    pub kinds: Vec<String>,
    /// Of all images.
    pub seed: u64,
    /// Requests to each image.
    pub requests: u32,
    /// Go on with further seeds for so long; every kind once in any case.
    pub at_least: Duration,
    /// Processes at once.
    pub jobs: usize,
    /// Where images are made; those of failures stay.
    pub dir: PathBuf,
}

/// An image that did not hold.
#[derive(Debug)]
pub struct Failure {
    /// Its kind.
    pub kind: String,
    /// What was wrong, and the command that repeats it.
    pub words: String,
}

/// Runs all; the number of images, and the failures.
pub fn run(matrix: &Matrix) -> Result<(u64, Vec<Failure>)> {
    let begun = Instant::now();
    let mut random = Random::new(matrix.seed);
    let mut failures = Vec::new();
    let mut images = 0;
    say(&format!(
        "disk matrix: {} kinds, seed {}",
        matrix.kinds.len(),
        matrix.seed
    ));
    let mut seed = matrix.seed;
    while images == 0 || begun.elapsed() < matrix.at_least {
        let ahead: Mutex<VecDeque<&String>> = Mutex::new(matrix.kinds.iter().collect());
        let found = Mutex::new(Vec::new());
        let count = Mutex::new(0_u64);
        thread::scope(|scope| {
            for _ in 0..matrix.jobs {
                scope.spawn(|| {
                    while let Some(kind) = next(&ahead) {
                        // Every kind once; after that, until the time is over.
                        if images > 0 && begun.elapsed() >= matrix.at_least {
                            break;
                        }
                        let ended = one(matrix, kind, seed);
                        *count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                        if let Err(error) = ended {
                            let words = format!("{error:#}");
                            say(&format!("FAILED {kind}: {words}"));
                            let kind = kind.clone();
                            found
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .push(Failure { kind, words });
                        }
                    }
                });
            }
        });
        images += count.into_inner().unwrap_or_else(PoisonError::into_inner);
        failures.append(&mut found.into_inner().unwrap_or_else(PoisonError::into_inner));
        seed = random.number() & 0xffff_ffff_ffff;
    }
    Ok((images, failures))
}

fn next<'a>(ahead: &Mutex<VecDeque<&'a String>>) -> Option<&'a String> {
    ahead.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

/// One image in a child process.
fn one(matrix: &Matrix, kind: &str, seed: u64) -> Result<()> {
    let dir = matrix.dir.join(format!("{kind}-{seed}"));
    fs::create_dir_all(&dir)?;
    let log = dir.join("log");
    let output = File::create(&log)?;
    let mut args = matrix.engine.clone();
    args.extend(["one".into(), "--kind".into(), kind.into()]);
    args.extend(["--seed".into(), seed.to_string()]);
    args.extend(["--requests".into(), matrix.requests.to_string()]);
    let images = dir.join("images");
    fs::create_dir(&images).with_context(|| format!("{} is there already", images.display()))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(&args).arg("--dir").arg(&images).env("RUST_BACKTRACE", "0");
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let ended = within(command, LIMIT);
    match ended {
        Ok(true) => {
            fs::remove_dir_all(&dir)?;
            Ok(())
        }
        Ok(false) => bail!("{} [repeat: {}]", last_words(&log), args.join(" ")),
        Err(error) => bail!("{error:#}; {} [repeat: {}]", last_words(&log), args.join(" ")),
    }
}

/// Runs a command for at most `limit`; whether it succeeded.
pub fn within(mut command: Command, limit: Duration) -> Result<bool> {
    let mut child = command.spawn().context("can not start a process of the matrix")?;
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if begun.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!("still busy after {} s", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn last_words(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.contains("RUST_BACKTRACE"))
        .collect();
    let from = lines.len().saturating_sub(12);
    let words = lines.get(from..).unwrap_or_default().join(" | ");
    words.chars().take(900).collect()
}
