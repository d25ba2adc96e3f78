//! QEMU's programs as oracles: what they say about an image, and images made by them.

use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// How long an image may stay locked by something that has ended.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// What `qemu-img check` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// Clusters whose metadata contradicts itself.
    pub corruptions: u64,
    /// Clusters that are counted and used by nobody.
    pub leaks: u64,
}

/// Runs a program, again while an image is locked: the kernel takes an io_uring apart after its process, or the thread that
/// dropped it, is gone, and until then it keeps the files that requests were made on open, and so their locks.
fn run(program: &str, args: &[&str]) -> Result<Output> {
    let begun = Instant::now();
    loop {
        let output = Command::new(program)
            .args(args)
            .output()
            .with_context(|| format!("{program} can not be run: install qemu-utils"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        let locked = said.contains("Failed to lock byte") || said.contains("Is another process using the image");
        if !locked || begun.elapsed() > LOCK_LIMIT {
            return Ok(output);
        }
        thread::sleep(Duration::from_millis(3));
    }
}

fn said(program: &str, args: &[&str], output: &Output) -> String {
    format!(
        "{program} {} ended with {}: {}{}",
        args.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs `qemu-img`; its standard output.
pub fn qemu_img(args: &[&str]) -> Result<String> {
    let output = run("qemu-img", args)?;
    if !output.status.success() {
        bail!("{}", said("qemu-img", args, &output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `qemu-io` commands, one after another, on one opening of an image.
pub fn qemu_io(image: &Path, commands: &[String]) -> Result<()> {
    let path = text(image)?;
    for some in commands.chunks(64) {
        let mut args = vec!["-f", "qcow2"];
        for command in some {
            args.extend(["-c", command]);
        }
        args.push(path);
        let output = run("qemu-io", &args)?;
        let words = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() || words.contains("failed") {
            bail!("{}", said("qemu-io", &args, &output));
        }
    }
    Ok(())
}

/// Runs `qemu-img check`. An image it can not check at all is an error.
pub fn check(image: &Path) -> Result<Checked> {
    let args = ["check", "-f", "qcow2", "--output=json", text(image)?];
    let output = run("qemu-img", &args)?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("no report: {}", said("qemu-img", &args, &output)))?;
    let number = |name: &str| report.get(name).and_then(Value::as_u64).unwrap_or(0);
    // Errors in the course of checking count like what it looks for.
    let checked = Checked {
        corruptions: number("corruptions") + number("check-errors"),
        leaks: number("leaks"),
    };
    let agrees = match output.status.code() {
        Some(0) => checked.corruptions == 0 && checked.leaks == 0,
        Some(2) => checked.corruptions > 0,
        Some(3) => checked.leaks > 0,
        _ => false,
    };
    if !agrees {
        bail!("{}", said("qemu-img", &args, &output));
    }
    Ok(checked)
}

/// The words of a check that found something.
pub fn check_words(image: &Path) -> String {
    let args = ["check", "-f", "qcow2", text(image).unwrap_or_default()];
    run("qemu-img", &args).map_or_else(|error| error.to_string(), |output| said("qemu-img", &args, &output))
}

/// The contents of an image as QEMU reads them, written to `raw`.
pub fn to_raw(image: &Path, raw: &Path) -> Result<()> {
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", text(image)?, text(raw)?]).map(drop)
}

/// The contents of an internal snapshot as QEMU reads them, written to `raw`.
pub fn snapshot_to_raw(image: &Path, snapshot: &str, raw: &Path) -> Result<()> {
    let which = format!("snapshot.name={snapshot}");
    qemu_img(&[
        "convert",
        "-f",
        "qcow2",
        "-l",
        &which,
        "-O",
        "raw",
        text(image)?,
        text(raw)?,
    ])
    .map(drop)
}

/// Does QEMU read the same from both?
pub fn compare(image: &Path, raw: &Path) -> Result<()> {
    qemu_img(&["compare", "-f", "qcow2", "-F", "raw", text(image)?, text(raw)?]).map(drop)
}

/// What `qemu-img info` says.
pub fn info(image: &Path) -> Result<Value> {
    let words = qemu_img(&["info", "-f", "qcow2", "--output=json", text(image)?])?;
    serde_json::from_str(&words).context("qemu-img info printed no JSON")
}

/// A path as the programs take it.
pub fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path is not UTF-8")
}
