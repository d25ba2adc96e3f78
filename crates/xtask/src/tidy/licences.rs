//! Licences of everything that is linked, and crates that are there in several versions.

use std::collections::BTreeMap;

use super::Finding;
use super::graph::Metadata;

/// As in `.deny.toml`.
const ALLOWED: &[&str] = &[
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "MIT",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Unicode-3.0",
    "Zlib",
    "CDLA-Permissive-2.0",
    "OpenSSL",
    "0BSD",
    // Permissive, in the manner of BSD: the decoder of .bz2 images.
    "bzip2-1.0.6",
];
/// Never linked, whatever their licence.
const BANNED: &[(&str, &str)] = &[("openssl-sys", "TLS is rustls; nothing of OpenSSL is linked")];

/// Checks every package that cargo resolved.
pub(super) fn check(metadata: &Metadata) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in &metadata.packages {
        let place = format!("{} {}", package.name, package.version);
        versions.entry(&package.name).or_default().push(&package.version);
        match &package.license {
            None => findings.push(Finding::error(&place, "names no licence")),
            Some(words) if !allowed(words) => findings.push(Finding::error(
                &place,
                format!("its licence {words} is not on the list"),
            )),
            Some(_) => {}
        }
        if let Some((_, why)) = BANNED.iter().find(|(name, _)| *name == package.name) {
            findings.push(Finding::error(&place, format!("is banned: {why}")));
        }
    }
    for (name, mut all) in versions {
        if all.len() > 1 {
            all.sort_unstable();
            findings.push(Finding::warning(
                name,
                format!("is there in several versions: {}", all.join(", ")),
            ));
        }
    }
    findings
}

/// Is one of the alternatives of an SPDX expression allowed? `AND` binds tighter than `OR`; `/` is an old `OR`.
fn allowed(expression: &str) -> bool {
    let flat = expression.replace('/', " OR ");
    if let Some((before, inner, after)) = group(&flat) {
        // The group's verdict stands in for it.
        let verdict = if allowed(inner) { "MIT" } else { "none" };
        return allowed(&format!("{before}{verdict}{after}"));
    }
    flat.split(" OR ")
        .any(|any| any.split(" AND ").all(|all| ALLOWED.contains(&all.trim())))
}

/// The innermost group in parentheses, with what stands before and after it.
fn group(expression: &str) -> Option<(&str, &str, &str)> {
    let (head, after) = expression.split_once(')')?;
    let (before, inner) = head.rsplit_once('(')?;
    Some((before, inner, after))
}

#[cfg(test)]
mod tests {
    use super::super::graph::Package;
    use super::*;

    #[test]
    fn expressions_are_read() {
        for fine in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-2.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR MIT",
        ] {
            assert!(allowed(fine), "{fine}");
        }
        for bad in [
            "GPL-3.0",
            "MIT AND GPL-2.0",
            "(MIT OR Apache-2.0) AND AGPL-3.0",
            "",
            "Apache-2.0 WITH x",
        ] {
            assert!(!allowed(bad), "{bad}");
        }
    }

    #[test]
    fn bad_licences_bans_and_doubles_are_named() {
        let package = |name: &str, version: &str, license: Option<&str>| Package {
            name: name.to_owned(),
            version: version.to_owned(),
            license: license.map(str::to_owned),
            ..Package::default()
        };
        let packages = vec![
            package("a", "1.0.0", None),
            package("openssl-sys", "0.9.0", Some("MIT")),
            package("b", "1.0.0", Some("MIT")),
            package("b", "2.0.0", Some("GPL-2.0")),
        ];
        let found = check(&Metadata {
            packages,
            ..Metadata::default()
        });
        assert_eq!(found.len(), 4, "{found:?}");
    }
}
