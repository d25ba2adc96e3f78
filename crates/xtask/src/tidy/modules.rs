//! The modules of each crate form no cycle: siblings are compared at every level of the module tree.
//!
//! An edge is what the text says: a path that begins with `crate::`, `self::` or `super::`, in a `use` or elsewhere. What a module takes
//! from its own parent or gives to it is no edge between siblings.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::Finding;
use super::sources::Tree;

type Module = Vec<String>;
type Edges = BTreeMap<Module, BTreeSet<Module>>;

/// Checks every crate.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut crates: BTreeMap<String, Vec<(Module, &str)>> = BTreeMap::new();
    for source in tree.sources.iter().filter(|source| !source.is_test()) {
        if let Some((name, module)) = module_of(&source.path) {
            crates.entry(name).or_default().push((module, &source.code));
        }
    }
    let mut findings = Vec::new();
    for (name, files) in crates {
        if let Some(cycle) = cycle(&edges(&files)) {
            let path: Vec<String> = cycle.iter().map(|module| module.join("::")).collect();
            findings.push(Finding::error(
                name,
                format!("its modules form a cycle: {}", path.join(" → ")),
            ));
        }
    }
    findings
}

/// `crates/x/src/a/b.rs` is module `a::b` of `crates/x`; `lib.rs`, `main.rs` and `mod.rs` are their folder.
fn module_of(path: &Path) -> Option<(String, Module)> {
    let text = path.to_str()?;
    let (name, inside) = text.split_once("/src/")?;
    let inside = inside.strip_suffix(".rs")?;
    let mut module: Module = inside.split('/').map(str::to_owned).collect();
    match module.last().map(String::as_str) {
        Some("lib" | "main") if module.len() == 1 => module.clear(),
        Some("mod") => drop(module.pop()),
        _ => {}
    }
    Some((name.to_owned(), module))
}

fn edges(files: &[(Module, &str)]) -> Edges {
    let known: BTreeSet<&Module> = files.iter().map(|(module, _)| module).collect();
    let mut edges = Edges::new();
    for (module, code) in files {
        for target in paths(code).iter().filter_map(|path| resolve(module, path)) {
            let shared = module.iter().zip(&target).take_while(|(a, b)| a == b).count();
            let (Some(from), Some(to)) = (module.get(..=shared), target.get(..=shared)) else {
                continue;
            };
            if known.iter().any(|known| known.starts_with(to)) {
                edges.entry(from.to_vec()).or_default().insert(to.to_vec());
            }
        }
    }
    edges
}

/// What `path`, written in `module`, means from the crate's root.
fn resolve(module: &Module, path: &[String]) -> Option<Module> {
    let (first, rest) = path.split_first()?;
    let mut from = match first.as_str() {
        "crate" => Vec::new(),
        "self" => module.clone(),
        "super" => module.get(..module.len().checked_sub(1)?)?.to_vec(),
        _ => return None,
    };
    for word in rest {
        if word == "super" {
            from.pop()?;
        } else {
            from.push(word.clone());
        }
    }
    Some(from)
}

/// All paths that begin with `crate`, `self` or `super`, groups in braces written out.
fn paths(code: &str) -> Vec<Vec<String>> {
    let words = tokens(code);
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(word) = words.get(at) {
        let begins =
            matches!(word.as_str(), "crate" | "self" | "super") && words.get(at + 1).is_some_and(|next| next == "::");
        let continues = at > 0 && words.get(at - 1).is_some_and(|before| before == "::");
        if begins && !continues {
            at = read(&words, at, &mut Vec::new(), &mut found);
        } else {
            at += 1;
        }
    }
    found
}

/// Reads one path (or one arm of a group) from `at`; gives where it ends.
fn read(words: &[String], mut at: usize, prefix: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    let depth = prefix.len();
    while let Some(word) = words.get(at) {
        if word == "{" {
            at += 1;
            while words.get(at).is_some_and(|word| word != "}") {
                let next = read(words, at, prefix, found);
                // Commas, and anything odd: never stand still.
                at = if next == at || words.get(next).is_some_and(|word| word == ",") {
                    next + 1
                } else {
                    next
                };
            }
            at += 1;
            break;
        }
        if !word.starts_with(|first: char| first.is_alphanumeric() || first == '_') {
            break;
        }
        prefix.push(word.clone());
        at += 1;
        if words.get(at).is_some_and(|next| next == "::") {
            at += 1;
            continue;
        }
        found.push(prefix.clone());
        if words.get(at).is_some_and(|next| next == "as") {
            at += 2;
        }
        break;
    }
    prefix.truncate(depth);
    at
}

/// Identifiers, `::`, and single signs.
fn tokens(code: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut signs = code.chars().peekable();
    while let Some(sign) = signs.next() {
        if sign.is_alphanumeric() || sign == '_' {
            let mut word = String::from(sign);
            while let Some(more) = signs.next_if(|next| next.is_alphanumeric() || *next == '_') {
                word.push(more);
            }
            words.push(word);
        } else if sign == ':' && signs.next_if_eq(&':').is_some() {
            words.push("::".to_owned());
        } else if !sign.is_whitespace() {
            words.push(sign.to_string());
        }
    }
    words
}

/// A cycle, first module repeated at its end; `None` when there is none.
fn cycle(edges: &Edges) -> Option<Vec<Module>> {
    let mut done = BTreeSet::new();
    edges
        .keys()
        .find_map(|start| walk(edges, start, &mut Vec::new(), &mut done))
}

fn walk(edges: &Edges, here: &Module, way: &mut Vec<Module>, done: &mut BTreeSet<Module>) -> Option<Vec<Module>> {
    if let Some(first) = way.iter().position(|module| module == here) {
        return Some(way.iter().skip(first).cloned().chain([here.clone()]).collect());
    }
    if done.contains(here) {
        return None;
    }
    way.push(here.clone());
    let found = edges
        .get(here)
        .into_iter()
        .flatten()
        .find_map(|next| walk(edges, next, way, done));
    way.pop();
    done.insert(here.clone());
    found
}

#[cfg(test)]
mod tests {
    use super::super::sources::Source;
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let sources = files
            .iter()
            .map(|(path, text)| Source::new(Path::new(path), (*text).to_owned()))
            .collect();
        check(&Tree { sources })
            .into_iter()
            .map(|finding| finding.what)
            .collect()
    }

    #[test]
    fn siblings_that_use_each_other_are_named() {
        let found = found(&[
            ("crates/x/src/lib.rs", "mod a; mod b;"),
            ("crates/x/src/a.rs", "use crate::b::B;"),
            ("crates/x/src/b/mod.rs", "fn f() -> super::a::A {}"),
        ]);
        assert_eq!(found, ["its modules form a cycle: a → b → a"]);
    }

    #[test]
    fn grouped_imports_and_deeper_levels_are_followed() {
        let found = found(&[
            ("crates/x/src/a/one.rs", "use super::{two::{T, U as V}, three};"),
            ("crates/x/src/a/two.rs", "use crate::{z::Z, a::three::W};"),
            ("crates/x/src/a/three.rs", "use crate::a::one;"),
        ]);
        assert!(
            found[0].contains("a::one → a::three → a::one") || found[0].contains("a::one → a::two"),
            "{found:?}"
        );
    }

    #[test]
    fn one_way_parents_and_tests_are_fine() {
        assert!(
            found(&[
                (
                    "crates/x/src/lib.rs",
                    "mod a; mod b; pub use crate::a::A; pub struct Root;"
                ),
                ("crates/x/src/a.rs", "use crate::{Root, b::B};"),
                (
                    "crates/x/src/b.rs",
                    "use crate::Root;\n#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}\n// use crate::a::A;"
                ),
            ])
            .is_empty()
        );
    }
}
