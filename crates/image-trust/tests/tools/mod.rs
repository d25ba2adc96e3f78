//! Real tools in a directory of the test's own. A test whose tool is missing says so on stderr and ends.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "each test uses some of these, and a failure here is a failed test"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// A directory in which commands are run.
pub(crate) struct Bench {
    dir: TempDir,
}

impl Bench {
    /// A fresh directory, unless `tool` is missing here.
    pub(crate) fn with(tool: &str) -> Option<Self> {
        let found = Command::new(tool).arg("--version").output();
        if !found.is_ok_and(|output| output.status.success()) && Command::new(tool).arg("version").output().is_err() {
            eprintln!("skipped: no {tool} here (apt install gnupg openssl)");
            return None;
        }
        Some(Self {
            dir: tempfile::tempdir().unwrap(),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.at(name), bytes).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.at(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Runs a line of blank-separated words in the directory; it has to succeed.
    pub(crate) fn run(&self, line: &str) {
        let mut words = line.split(' ').filter(|word| !word.is_empty());
        let output = Command::new(words.next().unwrap())
            .args(words)
            .current_dir(self.path())
            .env("GNUPGHOME", self.at("gnupg"))
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
