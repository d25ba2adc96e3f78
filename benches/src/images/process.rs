//! A row of programs, measured from outside.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::disk::children_seconds;

/// How often memory is looked at; a peak is kept by the kernel until a program ends.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What it took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Took {
    pub(super) seconds: f64,
    /// Of processors; seconds.
    pub(super) cpu_seconds: f64,
    /// Resident memory of the largest program.
    pub(super) peak_bytes: f64,
    /// Bytes that were to be written to disk (proc(5), `write_bytes`).
    pub(super) written_bytes: f64,
}

/// Runs lines of a shell script in `dir`.
pub(super) fn measured(dir: &Path, lines: &str) -> Result<Took> {
    // What the shell has waited for counts as its own.
    let script = format!("{lines}\ncat /proc/$$/io\n");
    let before = children_seconds()?;
    let begun = Instant::now();
    let mut shell = Command::new("sh")
        .args(["-ec", &script])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("no shell")?;
    let children = format!("/proc/{0}/task/{0}/children", shell.id());
    let mut peak_kib = 0.0_f64;
    while shell.try_wait()?.is_none() {
        for child in std::fs::read_to_string(&children)
            .unwrap_or_default()
            .split_whitespace()
        {
            peak_kib = peak_kib.max(field(&format!("/proc/{child}/status"), "VmHWM:").unwrap_or(0.0));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let output = shell.wait_with_output()?;
    ensure!(output.status.success(), "a shell ended with {}: {lines}", output.status);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(Took {
        seconds,
        cpu_seconds: children_seconds()? - before,
        peak_bytes: peak_kib * 1024.0,
        written_bytes: number(&said, "write_bytes:").context("the kernel does not count what is written")?,
    })
}

fn field(path: &str, name: &str) -> Option<f64> {
    number(&std::fs::read_to_string(path).ok()?, name)
}

fn number(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}
