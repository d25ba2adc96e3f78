//! Imports from a registry: what comes out, and what is left when they go wrong.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what surrounds a test fails the test by panicking, and says so when it skips"
)]

mod crash;
mod faults;
mod good;
mod real_registry;
#[allow(dead_code, reason = "shared with the tests of imports, which use more of it")]
mod registry_stub;

use std::path::Path;

use images::{Progress, PullError, Pulled, Reference, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Pulls without watching.
async fn pull(store: &Store, reference: &Reference) -> Result<Pulled, PullError> {
    let (progress, _) = watch::channel(Progress::default());
    store.pull(reference, &progress, &CancellationToken::new()).await
}

fn open(settings: images::Settings) -> Store {
    Store::open(settings).unwrap().0
}

/// Names in a directory of the store, sorted.
fn names(root: &Path, part: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(root.join(part))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The error and all its sources on one line, as an operator sees it.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn have(program: &str) -> bool {
    let found = ["/usr/bin", "/usr/local/bin"]
        .iter()
        .any(|dir| Path::new(dir).join(program).exists());
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}
