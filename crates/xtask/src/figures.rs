//! Figures: one line each, `name value unit peer ratio target ok|short`, and JSON lines in `target/perf/figures.jsonl`.

use std::fs;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::guests::{Program, run_program};
use crate::tools::{say, target};

/// Areas that have figures, and the program that measures each.
const AREAS: &[(&str, &str)] = &[("machine", "machine-figures")];

/// Measures one area, or all. Figures are measured, never asserted: one that misses its target says `short`.
pub fn run(area: Option<&str>) -> Result<()> {
    let wanted: Vec<_> = AREAS
        .iter()
        .filter(|(name, _)| area.is_none_or(|area| area == *name))
        .collect();
    if wanted.is_empty() {
        let known: Vec<_> = AREAS.iter().map(|(name, _)| *name).collect();
        bail!("no figures for that area; there are: {}", known.join(", "));
    }
    for (area, name) in wanted {
        say(format!("measures the figures of {area}"));
        let program = Program {
            package: "perf",
            name,
            words: "--json /results/figures.jsonl",
            with_peer: true,
            limit: Duration::from_secs(1200),
        };
        let ended = run_program(&program)?;
        ensure!(ended.status == 0, "{name} ended with status {}", ended.status);
        let lines = fs::read_to_string(ended.results.join("figures.jsonl")).context("it left no figures.jsonl")?;
        let dir = target().join("perf");
        fs::create_dir_all(&dir)?;
        let mut all = fs::File::options()
            .create(true)
            .append(true)
            .open(dir.join("figures.jsonl"))?;
        all.write_all(lines.as_bytes())?;
        say(format!(
            "{} figures of {area} added to {}",
            lines.lines().count(),
            dir.join("figures.jsonl").display()
        ));
    }
    Ok(())
}
