//! The project's rules as a program: what is broken is named with file, line and rule.
//!
//! Rules about packages (`graph`, `licences`) read `cargo metadata`; rules about files (`sources`, `modules`, `adr`) read the tree.
//! Function length, argument counts and the like are clippy's.

mod adr;
mod graph;
mod lex;
mod licences;
mod modules;
mod sources;

use std::fmt;
use std::path::Path;

use anyhow::{Result, bail};

use crate::tools::{root, say};

/// Does a finding fail the check?
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    /// To be mended before it grows.
    Warning,
    /// A broken rule.
    Error,
}

/// One place where a rule is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    level: Level,
    /// File (with line) or package.
    place: String,
    /// What is wrong, and what to do.
    what: String,
}

impl Finding {
    fn error(place: impl fmt::Display, what: impl Into<String>) -> Self {
        Self {
            level: Level::Error,
            place: place.to_string(),
            what: what.into(),
        }
    }

    fn warning(place: impl fmt::Display, what: impl Into<String>) -> Self {
        Self {
            level: Level::Warning,
            ..Self::error(place, what)
        }
    }
}

/// Checks the whole repository; an error when a rule is broken.
pub fn run() -> Result<()> {
    let root = root();
    let metadata = graph::Metadata::load()?;
    let mut findings = graph::check(&metadata);
    findings.extend(licences::check(&metadata));
    findings.extend(files(&root)?);
    findings.sort_by(|a, b| (a.level, &a.place).cmp(&(b.level, &b.place)));
    for finding in &findings {
        let kind = if finding.level == Level::Error {
            "error"
        } else {
            "warning"
        };
        say(format!("{kind}: {}: {}", finding.place, finding.what));
    }
    let errors = findings.iter().filter(|finding| finding.level == Level::Error).count();
    say(format!("tidy: {errors} errors, {} warnings", findings.len() - errors));
    if errors > 0 {
        bail!("tidy: {errors} broken rules, named above");
    }
    Ok(())
}

fn files(root: &Path) -> Result<Vec<Finding>> {
    let tree = sources::Tree::read(root)?;
    let mut findings = sources::check(&tree);
    findings.extend(modules::check(&tree));
    findings.extend(adr::check(&root.join("docs/adr"))?);
    Ok(findings)
}
