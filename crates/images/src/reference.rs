//! Names of images in registries: `registry/repository:tag@digest`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ImageDigest;

/// Where a name without a registry points, as users of container tools expect.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Where a one-part name on the default registry points.
const DEFAULT_NAMESPACE: &str = "library";
/// What a name without tag and digest means.
const DEFAULT_TAG: &str = "latest";
/// Longest repository name, characters (OCI distribution specification 1.1, "pulling manifests").
const REPOSITORY_MAX: usize = 255;
/// Longest tag, characters (same place).
const TAG_MAX: usize = 128;

/// A parsed and normalised image reference: registry and repository are always there, and a tag or a digest or both.
///
/// With both, the digest decides and the tag is only remembered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<ImageDigest>,
}

/// Why a text is not an image reference, and what to write instead.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("image reference {text:?}: {problem}")]
pub struct BadReference {
    /// What was written, shortened to 300 characters.
    pub text: String,
    /// What is wrong with it and what would be right.
    pub problem: String,
}

impl Reference {
    /// Registry host and optional port.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Repository path on the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; always present when there is no digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest or index, if pinned.
    pub fn digest(&self) -> Option<&ImageDigest> {
        self.digest.as_ref()
    }

    /// What a registry's manifest URL ends with: the digest if there is one, else the tag.
    pub(crate) fn manifest_name(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }
}

impl FromStr for Reference {
    type Err = BadReference;

    fn from_str(text: &str) -> Result<Self, BadReference> {
        parse(text).map_err(|problem| BadReference {
            text: text.chars().take(300).collect(),
            problem,
        })
    }
}

impl TryFrom<String> for Reference {
    type Error = BadReference;

    fn try_from(text: String) -> Result<Self, BadReference> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn parse(text: &str) -> Result<Reference, String> {
    if text.is_empty() {
        return Err("is empty; write registry/repository:tag, for example docker.io/library/debian:12".to_owned());
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        return Err(format!(
            "leave out {scheme}:// and write {rest:?} (plain http is chosen by insecure_registries in the configuration)"
        ));
    }
    if let Some(odd) = text
        .chars()
        .find(|c| c.is_whitespace() || c.is_control() || !c.is_ascii())
    {
        return Err(format!(
            "{odd:?} is not allowed; only ASCII letters, digits and . _ - / : @ are"
        ));
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (
            name,
            Some(digest.parse::<ImageDigest>().map_err(|error| error.to_string())?),
        ),
        None => (text, None),
    };
    let (registry, path) = split_registry(name)?;
    let (repository, tag) = match path.rsplit_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (path, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') && !repository.is_empty() {
        format!("{DEFAULT_NAMESPACE}/{repository}")
    } else {
        repository.to_owned()
    };
    check_repository(&repository)?;
    let tag = match (tag, &digest) {
        (None, None) => Some(DEFAULT_TAG.to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(Reference {
        registry,
        repository,
        tag,
        digest,
    })
}

/// The first part is a registry if it has a dot or a port, or is `localhost`; as every container tool decides.
fn split_registry(name: &str) -> Result<(String, &str), String> {
    match name.split_once('/') {
        Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => {
            let first = first.to_ascii_lowercase();
            check_registry(&first)?;
            // The port of https says nothing: with and without it one registry is meant, by policies and credentials too.
            let plain = first.strip_suffix(":443").unwrap_or(&first);
            let registry = match plain {
                "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
                plain => plain,
            }
            .to_owned();
            Ok((registry, path))
        }
        _ => Ok((DEFAULT_REGISTRY.to_owned(), name)),
    }
}

fn check_registry(registry: &str) -> Result<(), String> {
    let (host, port) = match registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(format!(
                    "registry [{address}] is not an IPv6 address; write [2001:db8::1]:5000/repository"
                ));
            }
            (
                None,
                rest.strip_prefix(':').or(if rest.is_empty() { None } else { Some("") }),
            )
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        },
    };
    if let Some(port) = port
        && !port
            .parse::<u16>()
            .is_ok_and(|number| number > 0 && number.to_string() == port)
    {
        return Err(format!(
            "registry port {port:?} is not a number from 1 to 65535; write host:5000/repository"
        ));
    }
    if let Some(host) = host {
        let label = |label: &str| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
        };
        if host.len() > 253 || !host.split('.').all(label) {
            return Err(format!(
                "registry {host:?} is not a host name; write registry.example.com/repository:tag"
            ));
        }
    }
    Ok(())
}

fn check_repository(repository: &str) -> Result<(), String> {
    if repository.is_empty() {
        return Err("names no repository; write registry/repository:tag".to_owned());
    }
    if repository.len() > REPOSITORY_MAX {
        return Err(format!(
            "the repository name is longer than {REPOSITORY_MAX} characters"
        ));
    }
    if repository.bytes().any(|c| c.is_ascii_uppercase()) {
        return Err(format!(
            "repository names are lower case; write {:?}",
            repository.to_ascii_lowercase()
        ));
    }
    for part in repository.split('/') {
        if !is_path_part(part) {
            return Err(format!(
                "repository part {part:?} is not letters and digits joined by single '.', one or two '_', or '-'"
            ));
        }
    }
    Ok(())
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, as the distribution specification has it.
fn is_path_part(part: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends_plain = bytes.first().is_some_and(|&c| plain(c)) && bytes.last().is_some_and(|&c| plain(c));
    ends_plain
        && part
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|joint| matches!(joint, "" | "." | "_" | "__") || joint.bytes().all(|c| c == b'-'))
}

fn check_tag(tag: &str) -> Result<(), String> {
    let first = tag
        .bytes()
        .next()
        .is_some_and(|c| c.is_ascii_alphanumeric() || c == b'_');
    let all = tag
        .bytes()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-'));
    if first && all && tag.len() <= TAG_MAX {
        return Ok(());
    }
    Err(format!(
        "tag {tag:?} is not 1 to {TAG_MAX} letters, digits and . _ - starting with a letter, digit or _; write repository:v1.2"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn normalises_as_users_expect() {
        let pinned = format!("q.io/a/b@{HEX}");
        let both = format!("q.io/a/b:1@{HEX}");
        for (text, normal) in [
            ("debian", "docker.io/library/debian:latest"),
            ("debian:12", "docker.io/library/debian:12"),
            ("me/debian", "docker.io/me/debian:latest"),
            ("index.docker.io/debian", "docker.io/library/debian:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("127.0.0.1:5000/demo/x:v1", "127.0.0.1:5000/demo/x:v1"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("Quay.IO/a__b/c-d--e.f:V_1.x-", "quay.io/a__b/c-d--e.f:V_1.x-"),
            (&pinned, &pinned),
            (&both, &both),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), normal);
            assert_eq!(normal.parse(), Ok(reference), "normal form is a fixed point");
        }
    }

    #[test]
    fn refuses_and_says_what_to_write() {
        let long = "a".repeat(256);
        for (text, hint) in [
            ("", "registry/repository:tag"),
            ("docker://debian", "leave out docker://"),
            ("https://q.io/x", "\"q.io/x\""),
            ("q.io/Foo/Bar", "foo/bar"),
            ("q.io/", "names no repository"),
            ("q.io/x:", "tag \"\""),
            ("q.io/x:-a", "tag \"-a\""),
            ("q.io/x@sha256:12", "64"),
            ("q.io/a//b", "part \"\""),
            ("q.io/a/../b", "part \"..\""),
            ("q.io/a_._b", "part \"a_._b\""),
            ("q.io:0/a", "port"),
            ("q.io:70000/a", "port"),
            ("-q.io/a", "host name"),
            ("a b", "not allowed"),
            ("déb", "not allowed"),
            (&long, "longer"),
        ] {
            let error = text.parse::<Reference>().unwrap_err();
            assert!(error.problem.contains(hint), "{text}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics_and_normal_forms_are_stable(text in "[a-zA-Z0-9./:@_\\[\\]-]{0,60}|\\PC{0,30}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let normal = reference.to_string();
                proptest::prop_assert_eq!(normal.parse::<Reference>().unwrap(), reference);
            }
        }
    }
}
