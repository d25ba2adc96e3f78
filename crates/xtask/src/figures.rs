//! Figures: one line each, `name value unit peer ratio target ok|short`, and JSON lines in `target/perf/figures.jsonl`.

use std::fs;
use std::io::Write;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::guests::{Program, run_program};
use crate::packages;
use crate::tools::{cargo, run, say, target};

/// Areas that have figures, and the program that measures each.
const AREAS: &[Area] = &[
    Area {
        name: "machine",
        program: "machine-figures",
        measure: with_guests,
    },
    Area {
        name: "disk",
        program: "disk-figures",
        measure: on_this_host,
    },
    Area {
        name: "images",
        program: "image-figures",
        measure: on_this_host,
    },
];

/// One area.
struct Area {
    name: &'static str,
    program: &'static str,
    /// Runs the program; the JSON lines it left.
    measure: fn(&str) -> Result<String>,
}

/// Measures one area, or all. Figures are measured, never asserted: one that misses its target says `short`.
pub fn run_all(area: Option<&str>) -> Result<()> {
    let wanted: Vec<_> = AREAS
        .iter()
        .filter(|known| area.is_none_or(|area| area == known.name))
        .collect();
    if wanted.is_empty() {
        let known: Vec<_> = AREAS.iter().map(|known| known.name).collect();
        bail!("no figures for that area; there are: {}", known.join(", "));
    }
    for Area { name, program, measure } in wanted {
        say(format!("measures the figures of {name}"));
        let lines = measure(program)?;
        let dir = target().join("perf");
        fs::create_dir_all(&dir)?;
        let mut all = fs::File::options()
            .create(true)
            .append(true)
            .open(dir.join("figures.jsonl"))?;
        all.write_all(lines.as_bytes())?;
        say(format!(
            "{} figures of {name} added to {}",
            lines.lines().count(),
            dir.join("figures.jsonl").display()
        ));
    }
    Ok(())
}

/// Where stock guests boot: here, or in the lab.
fn with_guests(name: &str) -> Result<String> {
    let program = Program {
        package: "perf",
        name,
        words: "--json /results/figures.jsonl",
        with_peer: true,
        with_registry: false,
        limit: Duration::from_secs(1200),
    };
    let ended = run_program(&program)?;
    ensure!(ended.status == 0, "{name} ended with status {}", ended.status);
    fs::read_to_string(ended.results.join("figures.jsonl")).context("it left no figures.jsonl")
}

/// As it is: in the build directory, whose file system is the one measured.
fn on_this_host(name: &str) -> Result<String> {
    packages::install(&[packages::QEMU_IMAGES, packages::REGISTRY])?;
    // Some figures are those of a daemon, which is looked for beside the program.
    run(cargo().args([
        "build",
        "--release",
        "--package",
        "perf",
        "--bin",
        name,
        "--package",
        "karatd",
        "--bin",
        "karatd",
    ]))?;
    let work = target().join("perf").join(name);
    fs::create_dir_all(&work)?;
    let json = work.join("figures.jsonl");
    let _ = fs::remove_file(&json);
    run(Command::new(target().join("release").join(name))
        .arg("all")
        .arg("--work")
        .arg(&work)
        .arg("--json")
        .arg(&json))?;
    fs::read_to_string(&json).context("it left no figures.jsonl")
}
