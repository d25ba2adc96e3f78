//! Rules about single files: first line, size, names, who may say `unsafe`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Finding;
use super::lex::{blank, without_tests};

/// Lines (tests apart) from which a file is told to be split.
const LINES_WARN: usize = 500;
/// Lines (tests apart) from which a file breaks the rule.
const LINES_FAIL: usize = 800;
/// Names that say nothing about what is inside.
const BANNED: &[&str] = &[
    "common", "util", "utils", "base", "core", "manager", "helper", "helpers", "misc",
];
/// Where `unsafe_code` may be allowed: whole crates, and single parts of a path.
const UNSAFE_HOMES: &[&str] = &["guestmem", "kvm", "uring", "sandbox", "tap", "tap.rs"];

/// A Rust file of the repository.
pub(super) struct Source {
    /// Path from the repository's root.
    pub(super) path: PathBuf,
    /// As it is.
    text: String,
    /// Comments, literals and test items blanked.
    pub(super) code: String,
    /// Lines outside test items.
    lines: usize,
}

/// All Rust files of the workspace.
pub(super) struct Tree {
    pub(super) sources: Vec<Source>,
}

impl Tree {
    /// Reads all `.rs` files below the folders that hold code.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let mut paths = Vec::new();
        for folder in ["crates", "firmware", "tests", "benches"] {
            collect(&root.join(folder), &mut paths)?;
        }
        paths.sort();
        let mut sources = Vec::new();
        for path in paths {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            sources.push(Source::new(path.strip_prefix(root).unwrap_or(&path), text));
        }
        Ok(Self { sources })
    }
}

impl Source {
    /// A file with its analysis.
    pub(super) fn new(path: &Path, text: String) -> Self {
        let (code, dropped) = without_tests(&blank(&text));
        let lines = text.lines().count() - dropped.min(text.lines().count());
        Self {
            path: path.to_path_buf(),
            text,
            code,
            lines,
        }
    }

    /// Test code as a whole: file or folder says so.
    pub(super) fn is_test(&self) -> bool {
        let parts: Vec<_> = self.path.iter().map(|part| part.to_string_lossy()).collect();
        // The workspace folder `tests` holds a package whose own sources are ordinary code; `x/tests/…` and `tests.rs` are tests.
        parts.iter().skip(1).any(|part| {
            matches!(part.as_ref(), "tests" | "tests.rs" | "test" | "benches") || part.ends_with("_tests.rs")
        })
    }
}

fn collect(dir: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    if !dir.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                collect(&path, paths)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
    Ok(())
}

/// Checks each file by itself.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    tree.sources.iter().flat_map(file).collect()
}

fn file(source: &Source) -> Vec<Finding> {
    let place = source.path.display();
    let mut findings = Vec::new();
    if !source.text.starts_with("//!") {
        findings.push(Finding::error(
            &place,
            "does not open with `//!`: say in one line what the file is",
        ));
    }
    let banned = source.path.iter().map(|part| part.to_string_lossy()).find(|part| {
        let stem = part.strip_suffix(".rs").unwrap_or(part);
        BANNED.contains(&stem)
    });
    if let Some(name) = banned {
        findings.push(Finding::error(
            &place,
            format!("the name {name} says nothing: name it by what is inside"),
        ));
    }
    if !source.is_test() {
        let lines = source.lines;
        if lines > LINES_FAIL {
            findings.push(Finding::error(
                &place,
                format!("{lines} lines without its tests, more than {LINES_FAIL}: split it"),
            ));
        } else if lines > LINES_WARN {
            findings.push(Finding::warning(
                &place,
                format!("{lines} lines without its tests, more than {LINES_WARN}"),
            ));
        }
    }
    if let Some(line) = unsafe_opt_in(&source.code).filter(|_| !unsafe_home(&source.path)) {
        let homes = "guestmem, kvm, uring, sandbox, tap, firmware/rom";
        findings.push(Finding::error(
            format!("{place}:{line}"),
            format!("opts in to unsafe code outside its homes ({homes})"),
        ));
    }
    findings
}

/// The line of the first attribute that lifts the ban on unsafe code.
fn unsafe_opt_in(code: &str) -> Option<usize> {
    let lifts = |line: &str| {
        line.contains("unsafe_code")
            && ["allow", "expect", "warn"]
                .iter()
                .any(|word| line.contains(&format!("{word}(")))
    };
    // An attribute may be broken over lines: look at each `#[`/`#![` up to its end.
    let mut rest = code;
    let mut line = 1;
    while let Some(start) = rest.find("#[").into_iter().chain(rest.find("#![")).min() {
        line += rest.get(..start)?.matches('\n').count();
        let attribute = rest.get(start..)?;
        let end = attribute.find(']').unwrap_or(attribute.len());
        if lifts(attribute.get(..end)?) {
            return Some(line);
        }
        line += attribute.get(..end)?.matches('\n').count();
        rest = attribute.get(end..)?;
    }
    None
}

fn unsafe_home(path: &Path) -> bool {
    path.starts_with("firmware/rom") || path.iter().any(|part| UNSAFE_HOMES.iter().any(|home| part == *home))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        file(&Source::new(Path::new(path), text.to_owned()))
            .into_iter()
            .map(|finding| finding.what)
            .collect()
    }

    #[test]
    fn a_file_without_a_first_line_is_named() {
        assert!(found("crates/a/src/lib.rs", "//! A.\n").is_empty());
        assert!(found("crates/a/src/lib.rs", "use std;\n")[0].contains("`//!`"));
    }

    #[test]
    fn big_files_are_named_and_their_tests_do_not_count() {
        let long = |lines: usize| format!("//! A.\n{}", "fn a() {}\n".repeat(lines));
        assert!(found("crates/a/src/x.rs", &long(499)).is_empty());
        assert!(found("crates/a/src/x.rs", &long(600))[0].contains("more than 500"));
        assert!(found("crates/a/src/x.rs", &long(801))[0].contains("split it"));
        let tests = format!(
            "//! A.\n#[cfg(test)]\nmod tests {{\n{}}}\n",
            "    fn a() {}\n".repeat(900)
        );
        assert!(found("crates/a/src/x.rs", &tests).is_empty());
        assert!(found("crates/a/tests/x.rs", &long(900)).is_empty());
    }

    #[test]
    fn names_that_say_nothing_are_named() {
        for path in [
            "crates/common/src/lib.rs",
            "crates/a/src/util.rs",
            "crates/a/src/manager/x.rs",
        ] {
            assert!(found(path, "//! A.\n")[0].contains("says nothing"), "{path}");
        }
    }

    #[test]
    fn unsafe_opt_in_outside_its_homes_is_named() {
        let text = "//! A.\n#![expect(\n    unsafe_code,\n    reason = \"x\"\n)]\n";
        assert!(found("crates/disk/src/lib.rs", text)[0].contains("opts in to unsafe"));
        assert!(found("crates/kvm/src/lib.rs", text).is_empty());
        assert!(found("crates/hostnet/src/tap.rs", text).is_empty());
        assert!(
            found(
                "crates/disk/src/lib.rs",
                "//! A.\n// #![allow(unsafe_code)]\n#![deny(unsafe_code)]\n"
            )
            .is_empty()
        );
    }
}
