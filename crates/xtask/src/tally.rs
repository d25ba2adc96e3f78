//! What test runners print, added up: their closing lines, and tests that say they were skipped.

use std::ops::AddAssign;

/// Numbers of tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Ran and held.
    pub passed: u64,
    /// Ran and did not.
    pub failed: u64,
    /// Did not run.
    pub skipped: u64,
    /// Of those that passed: found something missing and said so.
    returned_early: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.returned_early += other.returned_early;
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
            returned_early,
        } = self;
        write!(
            f,
            "{} passed, {failed} failed, {} skipped",
            passed.saturating_sub(*returned_early),
            skipped + returned_early
        )
    }
}

impl Tally {
    /// One check that held.
    pub const PASSED: Self = Self {
        passed: 1,
        failed: 0,
        skipped: 0,
        returned_early: 0,
    };
    /// One check that did not.
    pub const FAILED: Self = Self {
        passed: 0,
        failed: 1,
        skipped: 0,
        returned_early: 0,
    };
    /// One check that could not be made.
    pub const SKIPPED: Self = Self {
        passed: 0,
        failed: 0,
        skipped: 1,
        returned_early: 0,
    };

    /// Reads one line of output: a closing line of cargo test, of nextest or of the scenario runner, else nothing.
    ///
    /// A test that finds something missing returns early and prints `skipped: WHY`; it is counted as skipped, not as passed.
    /// The closing line of one test's own process, which nextest shows indented, is no closing line of the run.
    pub fn read(&mut self, line: &str) {
        let indented = line.starts_with(' ');
        let line = line.trim();
        if line.starts_with("skipped: ") {
            self.returned_early += 1;
        } else if let Some(rest) = line.strip_prefix("test result: ") {
            if indented {
                return;
            }
            *self += numbers(rest.split_once(". ").map_or(rest, |(_, counts)| counts), ';');
        } else if let Some((head, rest)) = line
            .split_once(" tests run: ")
            .or_else(|| line.split_once(" test run: "))
        {
            if head.trim_start().starts_with("Summary") {
                *self += numbers(rest, ',');
            }
        } else if line.contains(" passed, ")
            && line.contains(" failed")
            && line.starts_with(|first: char| first.is_ascii_digit())
        {
            *self += numbers(line, ',');
        }
    }
}

fn numbers(text: &str, between: char) -> Tally {
    let mut tally = Tally::default();
    for part in text.split(between) {
        let mut words = part.split_whitespace();
        let (Some(number), Some(kind)) = (words.next().and_then(|number| number.parse::<u64>().ok()), words.next())
        else {
            continue;
        };
        match kind {
            "passed" => tally.passed += number,
            "failed" | "timed" | "exec" => tally.failed += number,
            "ignored" | "skipped" => tally.skipped += number,
            _ => {}
        }
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Tally {
        let mut tally = Tally::default();
        for line in lines {
            tally.read(line);
        }
        tally
    }

    #[test]
    fn closing_lines_of_all_runners_add_up() {
        let tally = read(&[
            "test result: ok. 17 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured",
            "     Summary [   1.2s] 10 tests run: 8 passed (1 slow), 1 failed, 1 timed out, 3 skipped",
            "5 passed, 1 failed",
            "test a::b ... ok",
            "    test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "PASS boot (1.0 s)",
        ]);
        assert_eq!(
            tally,
            Tally {
                passed: 31,
                failed: 5,
                skipped: 5,
                returned_early: 0
            }
        );
    }

    #[test]
    fn a_test_that_says_it_was_skipped_has_not_passed() {
        for lines in [
            ["skipped: no /dev/kvm", "test result: ok. 3 passed; 0 failed"],
            ["test result: ok. 3 passed; 0 failed", "skipped: x"],
        ] {
            assert_eq!(read(&lines).to_string(), "2 passed, 0 failed, 1 skipped");
        }
    }
}
