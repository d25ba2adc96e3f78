//! `api/openapi.json` is generated from the code and committed; a stale one fails.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::tools::{cargo, output, root, say};

/// Writes the description, or only checks that it is fresh.
pub fn run(check: bool) -> Result<()> {
    say("asks karatd for its API description (builds karatd first)");
    let fresh = output(cargo().args(["run", "--quiet", "--package", "karatd", "--", "--print-openapi"]))?;
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
