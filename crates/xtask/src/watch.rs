//! Commands whose output is shown line by line as it comes. Lines that tell of a failure are kept for the end of a long log,
//! where its reader looks first, and so is what a failed test died of.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::guests::merged;

/// Most lines that are kept.
const KEPT_LINES: usize = 60;

/// Lines that are kept of what a failed test died of: place, message, and both sides of a comparison.
const REASON_LINES: usize = 4;

static KEPT: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Runs a command to its end, with no input; `each` sees every line of its output and errors.
pub fn watch(command: &Command, mut each: impl FnMut(&str)) -> Result<ExitStatus> {
    let mut child = merged(command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
    let output = child.stdout.take().context("a command has no output")?;
    let mut stdout = std::io::stdout();
    let mut listener = Listener::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        each(&line);
        if listener.wants(&line) {
            keep(line.clone());
        }
        writeln!(stdout, "{line}")?;
    }
    Ok(child.wait()?)
}

/// Keeps a line for [`kept`].
pub fn keep(line: String) {
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.len() < KEPT_LINES && !kept.contains(&line) {
        kept.push(line);
    }
}

/// What was kept, in the order in which it came.
pub fn kept() -> Vec<String> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Tells which lines are worth keeping from what came before them.
#[derive(Default)]
struct Listener {
    /// The output is that of a test that failed.
    in_failure: bool,
    /// Lines still to come of what it died of.
    reason_lines: usize,
}

impl Listener {
    fn wants(&mut self, line: &str) -> bool {
        let begun = line.trim_start();
        if tells_of_failure(line) {
            (self.in_failure, self.reason_lines) = (begun.starts_with("FAIL"), 0);
            return true;
        }
        if ["PASS [", "SLOW [", "Summary ["]
            .iter()
            .any(|begin| begun.starts_with(begin))
        {
            self.in_failure = false;
        }
        if self.in_failure && line.contains("panicked at") {
            self.reason_lines = REASON_LINES;
        }
        let wanted = self.in_failure && self.reason_lines > 0 && !begun.starts_with("stack backtrace");
        self.reason_lines = if wanted { self.reason_lines - 1 } else { 0 };
        wanted
    }
}

/// As cargo, nextest, the disk matrix and the scenarios say it.
fn tells_of_failure(line: &str) -> bool {
    let line = line.trim_start();
    ["error:", "error[", "FAIL [", "FAIL ", "FAILED ", "TIMEOUT ["]
        .iter()
        .any(|begin| line.starts_with(begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_seen_and_the_status_is_told() {
        let mut seen = Vec::new();
        let script = "echo one; echo two >&2; exit 3";
        let status = watch(Command::new("sh").args(["-c", script]), |line| {
            seen.push(line.to_owned());
        })
        .unwrap();
        assert_eq!(
            (status.code(), seen),
            (Some(3), vec!["one".to_owned(), "two".to_owned()])
        );
        assert!(kept().is_empty());
    }

    #[test]
    fn what_a_failed_test_died_of_is_kept_with_it() {
        let lines = [
            ("        FAIL [   0.3s] a test", true),
            ("  stderr", false),
            ("    thread 'a test' panicked at a.rs:1:5:", true),
            ("    assertion `left == right` failed: the same", true),
            ("      left: 1", true),
            ("     right: 2", true),
            ("    stack backtrace:", false),
            ("       0: begin", false),
            ("        PASS [   0.3s] another test", false),
            ("    thread 'another test' panicked at b.rs:1:5:", false),
        ];
        let mut listener = Listener::default();
        for (line, wanted) in lines {
            assert_eq!(listener.wants(line), wanted, "{line}");
        }
    }

    // These lines are not printed: whoever watches this test would keep them.
    #[test]
    fn what_failed_is_told_from_the_rest() {
        for line in [
            "   FAIL [ 1.0s] a test",
            "error: `panic` is not wanted",
            "error[E0308]: no",
            "FAILED a, b",
        ] {
            assert!(tells_of_failure(line), "{line}");
        }
        for line in ["PASS a test", "test result: ok", "no error: fine"] {
            assert!(!tells_of_failure(line), "{line}");
        }
    }
}
