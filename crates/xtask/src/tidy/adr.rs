//! Decision records are numbered 0001, 0002, … without gaps or doubles.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::Finding;

/// Checks the records in `dir`; none at all is fine.
pub(super) fn check(dir: &Path) -> Result<Vec<Finding>> {
    let mut names = Vec::new();
    if dir.is_dir() {
        for entry in fs::read_dir(dir)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(numbering(&names))
}

fn numbering(names: &[String]) -> Vec<Finding> {
    let records = names
        .iter()
        .filter(|name| name.ends_with(".md") && name.as_str() != "README.md");
    let mut findings = Vec::new();
    for (index, name) in records.enumerate() {
        let wanted = format!("{:04}-", index + 1);
        if !name.starts_with(&wanted) {
            findings.push(Finding::error(
                format!("docs/adr/{name}"),
                format!("its number breaks the sequence: {wanted}… comes here"),
            ));
            break;
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str]) -> usize {
        numbering(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).len()
    }

    #[test]
    fn gaps_and_doubles_are_named() {
        assert_eq!(found(&["0001-a.md", "0002-b.md", "README.md"]), 0);
        assert_eq!(found(&["0001-a.md", "0003-b.md"]), 1);
        assert_eq!(found(&["0001-a.md", "0001-b.md"]), 1);
        assert_eq!(found(&["first.md"]), 1);
    }
}
