//! `api/openapi.json` is generated from the code and committed; a stale one fails.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::tools::{cargo, output, root, run as build, say, target};

/// Writes the description, or only checks that it is fresh.
pub fn run(check: bool) -> Result<()> {
    say("asks karatd for its API description (builds karatd first)");
    // Of the whole workspace, as the tests are built: one package alone has other features of its dependencies, and all anew.
    build(cargo().args(["build", "--quiet", "--workspace", "--bins"]))?;
    let fresh = output(Command::new(target().join("debug/karatd")).arg("--print-openapi"))?;
    let _: serde_json::Value = serde_json::from_str(&fresh).context("karatd --print-openapi printed no JSON")?;
    let path = root().join("api/openapi.json");
    if !check {
        fs::write(&path, &fresh).with_context(|| format!("cannot write {}", path.display()))?;
        say(format!("wrote {}", path.display()));
        return Ok(());
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    ensure!(
        committed == fresh,
        "api/openapi.json is stale: run `cargo xtask openapi` and commit it"
    );
    Ok(())
}
