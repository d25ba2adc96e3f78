//! Where a source's images come from.

use std::fmt;

use serde::{Deserialize, Serialize};
use spec::Problems;

/// Longest reference, bytes.
const REFERENCE_MAX: usize = 2048;

/// Where images come from, as somebody wrote it: exactly one of the first four. Unknown fields are errors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceWish {
    /// A container disk: `docker://quay.io/containerdisks/centos-stream:9`; the beginning may be left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,
    /// An image on a web server: `https://…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// An object in a store: `s3://bucket/key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<String>,
    /// A file on this host, beneath a directory that is allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Beside `registry`: who pulls. `pod` is the daemon, the default; `node` would be a container engine's cache, which Karat
    /// does not use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_method: Option<String>,
    /// Beside `url`: a file of checksums, by which a poll knows of a new image without fetching it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksums: Option<String>,
    /// Beside `checksums`: its detached OpenPGP signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksums_signature: Option<String>,
}

/// Where images come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "SourceWish", try_from = "SourceWish")]
pub enum SourceRef {
    /// A container disk in a registry.
    Registry {
        /// `registry/repository[:tag][@digest]`, without `docker://`.
        reference: String,
    },
    /// An image on a web server.
    Url {
        /// `http://` or `https://`.
        url: String,
        /// File of checksums.
        checksums: Option<String>,
        /// Its detached signature.
        checksums_signature: Option<String>,
    },
    /// An object in a store.
    S3 {
        /// `s3://bucket/key`.
        url: String,
    },
    /// A file on this host.
    File {
        /// An absolute path.
        path: String,
    },
}

impl SourceRef {
    /// Checks what was written as `field`; `None` where a problem was added.
    pub fn check(wish: &SourceWish, field: &str, problems: &mut Problems) -> Option<Self> {
        let before = problems.list().len();
        let source = match (&wish.registry, &wish.url, &wish.s3, &wish.file) {
            (Some(text), None, None, None) => check_registry(text, field, problems),
            (None, Some(url), None, None) => {
                check_url(&format!("{field}.url"), url, problems);
                Some(Self::Url {
                    url: url.clone(),
                    checksums: wish.checksums.clone(),
                    checksums_signature: wish.checksums_signature.clone(),
                })
            }
            (None, None, Some(url), None) => check_s3(url, field, problems),
            (None, None, None, Some(path)) => check_file(path, field, problems),
            (None, None, None, None) => {
                problems.add(field, "empty; write one of registry, url, s3 and file");
                None
            }
            _ => {
                problems.add(field, "write only one of registry, url, s3 and file");
                None
            }
        };
        check_companions(wish, field, problems);
        source.filter(|_| problems.list().len() == before)
    }
}

fn check_companions(wish: &SourceWish, field: &str, problems: &mut Problems) {
    let field_of = |name: &str| format!("{field}.{name}");
    match wish.pull_method.as_deref() {
        Some(_) if wish.registry.is_none() => problems.add(field_of("pull_method"), "only beside registry"),
        None | Some("pod") => {}
        Some("node") => {
            let message = "node takes images from a container engine's cache, which Karat does not use; leave it out";
            problems.add(field_of("pull_method"), message);
        }
        Some(_) => problems.add(field_of("pull_method"), "take pod, or leave it out"),
    }
    match &wish.checksums {
        None => {}
        Some(_) if wish.url.is_none() => problems.add(field_of("checksums"), "only beside url"),
        Some(url) => check_url(&field_of("checksums"), url, problems),
    }
    match &wish.checksums_signature {
        None => {}
        Some(_) if wish.checksums.is_none() => {
            problems.add(field_of("checksums_signature"), "only beside checksums");
        }
        Some(url) => check_url(&field_of("checksums_signature"), url, problems),
    }
}

/// Whether it is short, and printable ASCII without blanks.
fn is_plain(text: &str) -> bool {
    (1..=REFERENCE_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

fn check_registry(text: &str, field: &str, problems: &mut Problems) -> Option<SourceRef> {
    let reference = text.strip_prefix("docker://").unwrap_or(text);
    let field = format!("{field}.registry");
    let allowed =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/' | b':' | b'@' | b'[' | b']');
    let named = !reference.is_empty() && !reference.starts_with('/') && !reference.ends_with(['/', ':', '@']);
    if !is_plain(reference) || !reference.bytes().all(allowed) || !named || reference.contains("//") {
        problems.add(
            field,
            "no reference of an image; write it as docker://quay.io/containerdisks/debian:12",
        );
        return None;
    }
    Some(SourceRef::Registry {
        reference: reference.to_owned(),
    })
}

fn check_url(field: &str, url: &str, problems: &mut Problems) {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let host = rest.and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or("");
    if !is_plain(url) || host.is_empty() {
        problems.add(field, "no address; write it as https://server/path");
    } else if host.contains('@') {
        problems.add(
            field,
            "holds a user name; credentials belong into the daemon's configuration",
        );
    } else if url.contains('#') {
        problems.add(
            field,
            "holds a fragment, which servers do not see; leave # and what follows out",
        );
    }
}

fn check_s3(url: &str, field: &str, problems: &mut Problems) -> Option<SourceRef> {
    let object = url.strip_prefix("s3://").and_then(|rest| rest.split_once('/'));
    if !is_plain(url) || !object.is_some_and(|(bucket, key)| !bucket.is_empty() && !key.is_empty()) {
        problems.add(format!("{field}.s3"), "no object; write it as s3://bucket/key");
        return None;
    }
    Some(SourceRef::S3 { url: url.to_owned() })
}

fn check_file(path: &str, field: &str, problems: &mut Problems) -> Option<SourceRef> {
    let plain = path.len() <= REFERENCE_MAX && !path.chars().any(char::is_control);
    if !plain || !path.starts_with('/') || path.split('/').any(|part| part == "..") {
        problems.add(format!("{field}.file"), "no file; write an absolute path without ..");
        return None;
    }
    Some(SourceRef::File { path: path.to_owned() })
}

impl fmt::Display for SourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry { reference } => write!(f, "docker://{reference}"),
            Self::Url { url, .. } | Self::S3 { url } => f.write_str(url),
            Self::File { path } => f.write_str(path),
        }
    }
}

impl From<SourceRef> for SourceWish {
    fn from(source: SourceRef) -> Self {
        let text = Some(source.to_string());
        match source {
            SourceRef::Registry { .. } => Self {
                registry: text,
                ..Self::default()
            },
            SourceRef::Url {
                url,
                checksums,
                checksums_signature,
            } => Self {
                url: Some(url),
                checksums,
                checksums_signature,
                ..Self::default()
            },
            SourceRef::S3 { .. } => Self {
                s3: text,
                ..Self::default()
            },
            SourceRef::File { .. } => Self {
                file: text,
                ..Self::default()
            },
        }
    }
}

impl TryFrom<SourceWish> for SourceRef {
    type Error = Problems;

    fn try_from(wish: SourceWish) -> Result<Self, Problems> {
        let mut problems = Problems::new();
        let source = Self::check(&wish, "source", &mut problems);
        source.ok_or(problems)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<SourceRef, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn each_kind_reads_and_is_written_back() {
        for json in [
            r#"{"registry":"docker://quay.io/containerdisks/centos-stream:9"}"#,
            r#"{"url":"https://cloud.debian.org/a.qcow2","checksums":"https://cloud.debian.org/SHA512SUMS"}"#,
            r#"{"s3":"s3://bucket/some/key"}"#,
            r#"{"file":"/srv/images/a.img"}"#,
        ] {
            let source = read(json).unwrap();
            assert_eq!(serde_json::to_string(&source).unwrap(), json);
        }
        assert_eq!(
            read(r#"{"registry": "localhost:5000/a@sha256:00", "pull_method": "pod"}"#)
                .unwrap()
                .to_string(),
            "docker://localhost:5000/a@sha256:00"
        );
    }

    #[test]
    fn what_is_no_source_is_refused_with_a_reason() {
        for (json, reason) in [
            (r#"{}"#, "write one of registry"),
            (r#"{"url": "https://a/b", "file": "/c"}"#, "write only one"),
            (r#"{"registry": "docker://"}"#, "source.registry"),
            (r#"{"registry": "a b"}"#, "source.registry"),
            (r#"{"registry": "https://a/b"}"#, "source.registry"),
            (
                r#"{"registry": "a/b", "pull_method": "node"}"#,
                "container engine's cache",
            ),
            (r#"{"file": "/a", "pull_method": "pod"}"#, "only beside registry"),
            (r#"{"url": "ftp://a/b"}"#, "source.url"),
            (r#"{"url": "https:///b"}"#, "source.url"),
            (r#"{"url": "https://me:secret@a/b"}"#, "credentials"),
            (r#"{"url": "https://a/b#c"}"#, "fragment"),
            (
                r#"{"url": "https://a/b", "checksums": "x", "checksums_signature": "y"}"#,
                "source.checksums_signature",
            ),
            (r#"{"s3": "s3://bucket"}"#, "source.s3"),
            (r#"{"file": "a"}"#, "source.file"),
            (r#"{"file": "/a/../b"}"#, "source.file"),
            (r#"{"registri": "a"}"#, "unknown field"),
        ] {
            let told = read(json).unwrap_err();
            assert!(told.contains(reason), "{json}: {told}");
        }
    }
}
