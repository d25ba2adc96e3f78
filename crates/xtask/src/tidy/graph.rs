//! Rules about who depends on whom: layers, single importers, what must not be reachable.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::Finding;
use crate::tools::{cargo, output};

/// A foreign crate and the one workspace crate that may name it.
const SINGLE_IMPORTERS: &[(&str, &str)] = &[
    ("kvm-ioctls", "kvm"),
    ("kvm-bindings", "kvm"),
    ("vm-memory", "guestmem"),
    ("io-uring", "uring"),
    ("linux-loader", "boot"),
    ("axum", "rest"),
];

/// A program and the crates that must not be linked into it.
const UNREACHABLE: &[(&str, &str, &str)] = &[
    ("karat-vmm", "tokio", "the data path has no async runtime but uring"),
    (
        "karatd",
        "kvm",
        "a guest that breaks its process must not break the daemon",
    ),
    (
        "karatd",
        "vmm",
        "a guest that breaks its process must not break the daemon",
    ),
];

/// What `cargo metadata` says, as far as the rules read it.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Metadata {
    pub(super) packages: Vec<Package>,
    pub(super) workspace_members: Vec<String>,
    pub(super) resolve: Resolve,
}

/// One package.
#[derive(Debug, Default, Clone, Deserialize)]
pub(super) struct Package {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) license: Option<String>,
    #[serde(default)]
    pub(super) metadata: Option<Own>,
    #[serde(default)]
    pub(super) dependencies: Vec<Dependency>,
}

#[derive(Debug, Default, Clone, Deserialize)]
pub(super) struct Own {
    layer: Option<u8>,
}

#[derive(Debug, Default, Clone, Deserialize)]
pub(super) struct Dependency {
    name: String,
    kind: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Default, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Debug, Default, Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Debug, Default, Deserialize)]
struct Kind {
    kind: Option<String>,
}

impl Metadata {
    /// Asks cargo.
    pub(super) fn load() -> Result<Self> {
        let text = output(cargo().args([
            "metadata",
            "--format-version",
            "1",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ]))?;
        serde_json::from_str(&text).context("cannot read what cargo metadata printed")
    }

    fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages
            .iter()
            .filter(|package| self.workspace_members.contains(&package.id))
    }

    /// Names of all packages linked into `program`.
    fn linked(&self, program: &str) -> BTreeSet<&str> {
        let nodes: BTreeMap<&str, &Node> = self.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
        let names: BTreeMap<&str, &str> = self
            .packages
            .iter()
            .map(|package| (package.id.as_str(), package.name.as_str()))
            .collect();
        let mut found = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut ahead: Vec<&str> = self
            .members()
            .filter(|package| package.name == program)
            .map(|package| package.id.as_str())
            .collect();
        while let Some(id) = ahead.pop() {
            if !seen.insert(id) {
                continue;
            }
            found.extend(names.get(id));
            let linked = nodes.get(id).into_iter().flat_map(|node| &node.deps);
            ahead.extend(
                linked
                    .filter(|edge| edge.dep_kinds.iter().any(|kind| kind.kind.is_none()))
                    .map(|edge| edge.pkg.as_str()),
            );
        }
        found
    }
}

/// Checks layers, importers and reachability.
pub(super) fn check(metadata: &Metadata) -> Vec<Finding> {
    let mut findings = layers(metadata);
    for package in metadata.members() {
        for (foreign, home) in SINGLE_IMPORTERS {
            if package.name != *home
                && package
                    .dependencies
                    .iter()
                    .any(|dependency| dependency.name == *foreign)
            {
                findings.push(Finding::error(
                    &package.name,
                    format!("depends on {foreign}: only {home} may; take what {home} re-exports"),
                ));
            }
        }
    }
    for (program, banned, why) in UNREACHABLE {
        if metadata.linked(program).contains(banned) {
            findings.push(Finding::error(program, format!("links {banned}: {why}")));
        }
    }
    findings
}

fn layers(metadata: &Metadata) -> Vec<Finding> {
    let mut findings = Vec::new();
    let layer = |package: &Package| package.metadata.as_ref().and_then(|own| own.layer);
    let known: BTreeMap<&str, u8> = metadata
        .members()
        .filter_map(|package| Some((package.name.as_str(), layer(package)?)))
        .collect();
    for package in metadata.members() {
        let Some(own) = layer(package) else {
            findings.push(Finding::error(&package.name, "has no [package.metadata] layer"));
            continue;
        };
        for dependency in &package.dependencies {
            let Some(theirs) = known.get(dependency.name.as_str()) else {
                continue;
            };
            if *theirs >= own && dependency.name != package.name {
                let kind = dependency.kind.as_deref().unwrap_or("normal");
                findings.push(Finding::error(
                    &package.name,
                    format!(
                        "layer {own} depends ({kind}) on {} of layer {theirs}: only lower layers may be used",
                        dependency.name
                    ),
                ));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, layer: Option<u8>, needs: &[&str]) -> Package {
        let dependencies = needs
            .iter()
            .map(|name| Dependency {
                name: (*name).to_owned(),
                kind: None,
            })
            .collect();
        Package {
            id: name.to_owned(),
            name: name.to_owned(),
            metadata: Some(Own { layer }),
            dependencies,
            ..Package::default()
        }
    }

    fn metadata(packages: Vec<Package>) -> Metadata {
        let workspace_members = packages
            .iter()
            .filter(|p| p.metadata.as_ref().is_some_and(|m| m.layer.is_some()))
            .map(|p| p.id.clone())
            .collect();
        let nodes = packages.iter().map(|package| Node {
            id: package.id.clone(),
            deps: package
                .dependencies
                .iter()
                .map(|d| Edge {
                    pkg: d.name.clone(),
                    dep_kinds: vec![Kind::default()],
                })
                .collect(),
        });
        Metadata {
            resolve: Resolve { nodes: nodes.collect() },
            workspace_members,
            packages,
        }
    }

    fn found(packages: Vec<Package>) -> Vec<String> {
        check(&metadata(packages))
            .into_iter()
            .map(|finding| format!("{}: {}", finding.place, finding.what))
            .collect()
    }

    #[test]
    fn a_dependency_on_the_same_or_a_higher_layer_is_named() {
        assert!(found(vec![package("a", Some(0), &[]), package("b", Some(1), &["a"])]).is_empty());
        let found = found(vec![package("a", Some(1), &["b"]), package("b", Some(1), &[])]);
        assert!(
            found[0].contains("layer 1 depends (normal) on b of layer 1"),
            "{found:?}"
        );
    }

    #[test]
    fn a_member_without_layer_is_named() {
        let mut metadata = metadata(vec![package("a", Some(0), &[])]);
        metadata.packages[0].metadata = None;
        assert_eq!(check(&metadata).len(), 1);
    }

    #[test]
    fn a_second_importer_is_named() {
        let found = found(vec![
            package("rest", Some(2), &["axum"]),
            package("host", Some(1), &["axum"]),
            package("axum", None, &[]),
        ]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("host: depends on axum"), "{found:?}");
    }

    #[test]
    fn a_runtime_reached_through_others_is_named() {
        let packages = vec![
            package("karat-vmm", Some(7), &["x"]),
            package("x", None, &["tokio"]),
            package("tokio", None, &[]),
        ];
        assert!(found(packages)[0].contains("links tokio"));
        let packages = vec![package("karatd", Some(7), &["vmm"]), package("vmm", Some(6), &[])];
        assert!(found(packages)[0].contains("links vmm"));
    }
}
