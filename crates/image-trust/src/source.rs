//! Where an image comes from, in one spelling, and patterns over that.
//!
//! A rule must not be missed because an address was spelled in another way, so a source is first brought into one form:
//! lower-case scheme and host, no default port, no user, query or fragment, percent signs decoded where they need not be,
//! `.` and `..` and doubled slashes resolved; for registries no tag and no digest, and Docker Hub's short names written out.
//!
//! In a pattern `*` stands for any run of characters: within the host (and port) it does not reach into the path, within the
//! path it goes over slashes. A pattern without `://` is about registries, and the single `*` is about everything.

use std::fmt;

/// Longest source or pattern, bytes: more than any URL that servers take.
const TEXT_MAX_BYTES: usize = 4096;
/// Docker Hub as users write it, or as its machines are called.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// Why a text names no source, and what to write instead.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("source {text:?}: {problem}")]
pub struct BadSource {
    /// What was written, shortened to 300 characters.
    pub text: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl BadSource {
    /// Stable name of the failure.
    pub const fn code(&self) -> &'static str {
        "bad_source"
    }

    fn of(text: &str, problem: &'static str) -> Self {
        Self {
            text: text.chars().take(300).collect(),
            problem,
        }
    }
}

/// A source in its one spelling.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    /// `http`, `https`, `s3`, `file`, `upload`, or empty for a registry.
    scheme: String,
    /// Host and port, bucket, registry; empty for files and uploads.
    host: String,
    /// Of a bucket the server that has it, host and port; empty where that was not said, and for all else.
    server: String,
    /// What follows the host, without its first slash.
    path: String,
}

impl Source {
    /// The bytes a client sends: nobody says where they are from.
    pub fn upload() -> Self {
        Self {
            scheme: "upload".to_owned(),
            host: String::new(),
            server: String::new(),
            path: String::new(),
        }
    }

    /// Reads a URL (`http`, `https`, `s3`, `file`; `s3://bucket@server/key` says which server) or a registry reference (`host/repository:tag@digest`).
    ///
    /// # Errors
    ///
    /// When the text is neither, or cannot be brought into one spelling.
    pub fn parse(text: &str) -> Result<Self, BadSource> {
        check_text(text)?;
        match text.split_once("://") {
            Some((scheme, rest)) => url(text, &scheme.to_ascii_lowercase(), rest),
            None => registry(text),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scheme.as_str() {
            "" => write!(f, "{}/{}", self.host, self.path),
            "upload" => f.write_str("upload://"),
            "s3" if !self.server.is_empty() => write!(f, "s3://{}@{}/{}", self.host, self.server, self.path),
            scheme => write!(f, "{scheme}://{}/{}", self.host, self.path),
        }
    }
}

fn check_text(text: &str) -> Result<(), BadSource> {
    if text.is_empty() || text.len() > TEXT_MAX_BYTES {
        return Err(BadSource::of(text, "is empty or longer than 4096 bytes"));
    }
    if text.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\\') {
        return Err(BadSource::of(
            text,
            "has blanks, control characters or backslashes: write them percent-encoded",
        ));
    }
    Ok(())
}

fn url(text: &str, scheme: &str, rest: &str) -> Result<Source, BadSource> {
    let default_port = match scheme {
        "http" => ":80",
        "https" => ":443",
        "s3" | "file" => "",
        _ => {
            return Err(BadSource::of(
                text,
                "begins with none of http://, https://, s3://, file://",
            ));
        }
    };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (before, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    // Of an object store it is the bucket that is in front.
    let (host, server) = match (scheme, before) {
        ("s3", "") | ("http" | "https" | "file", _) => (host, String::new()),
        (_, bucket) => (bucket, host.to_ascii_lowercase()),
    };
    let host = host.to_ascii_lowercase();
    let host = host.strip_suffix(default_port).unwrap_or(&host);
    let host = match scheme {
        "file" if matches!(host, "" | "localhost") => "",
        "file" => return Err(BadSource::of(text, "names a host: files are local, write file:///path")),
        _ => without_last_dot(host),
    };
    let empty_label = host.starts_with(['.', ':']) || host.ends_with('.') || host.contains("..");
    if scheme != "file" && (host.is_empty() || empty_label || host.contains('%')) {
        return Err(BadSource::of(text, "names no host"));
    }
    let path = path_of(path).ok_or_else(|| BadSource::of(text, "has a path whose percent signs cannot be decoded"))?;
    Ok(Source {
        scheme: scheme.to_owned(),
        host: host.to_owned(),
        server,
        path,
    })
}

fn without_last_dot(host: &str) -> &str {
    // "host.:8080" is left as it is: it matches no rule for "host:8080", and no certificate either.
    host.strip_suffix('.').unwrap_or(host)
}

/// Decodes percent signs and resolves dots and doubled slashes, as servers do before they look for a file.
fn path_of(path: &str) -> Option<String> {
    let decoded = percent_decoded(path)?;
    let mut segments: Vec<&str> = Vec::new();
    for segment in decoded.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    Some(segments.join("/"))
}

/// `text` with its percent signs decoded; none when one is not followed by two digits or the result is not UTF-8.
pub(crate) fn percent_decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let pair = [bytes.next()?, bytes.next()?];
        out.extend(crate::digests::unhex(&pair)?);
    }
    String::from_utf8(out).ok()
}

fn registry(text: &str) -> Result<Source, BadSource> {
    let name = text.split('@').next().unwrap_or_default();
    // A colon after the last slash begins a tag; one before it, a port.
    let name = match name.rsplit_once('/') {
        Some((front, last)) => format!("{front}/{}", last.split(':').next().unwrap_or_default()),
        None => name.split(':').next().unwrap_or_default().to_owned(),
    };
    let (host, path) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
            (first.to_ascii_lowercase(), rest.to_owned())
        }
        Some(_) => ("docker.io".to_owned(), name.clone()),
        None => ("docker.io".to_owned(), format!("library/{name}")),
    };
    let hub = DOCKER_HUB.contains(&host.as_str());
    let path = match hub && !path.contains('/') {
        true => format!("library/{path}"),
        false => path,
    };
    if path.contains('%') || path.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return Err(BadSource::of(
            text,
            "is no registry reference: write host/repository:tag",
        ));
    }
    Ok(Source {
        scheme: String::new(),
        host: if hub { "docker.io".to_owned() } else { host },
        server: String::new(),
        path,
    })
}

/// A pattern over sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    /// None for the pattern that is about everything.
    parts: Option<Source>,
}

impl Pattern {
    /// Reads a pattern: `*`, `upload://`, `https://host/path*`, `s3://bucket@server/key*`, `registry.example.com/team/*`. Without a
    /// server a bucket of that name is meant on whichever server.
    ///
    /// # Errors
    ///
    /// When it could match nothing, because no source is spelled that way.
    pub fn parse(text: &str) -> Result<Self, BadSource> {
        let of = |parts| {
            Ok(Self {
                text: text.to_owned(),
                parts,
            })
        };
        check_text(text)?;
        if text == "*" {
            return of(None);
        }
        if text.eq_ignore_ascii_case("upload://") {
            return of(Some(Source::upload()));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return of(Some(Self::registry(text)?));
        };
        let bucket_on = scheme
            .eq_ignore_ascii_case("s3")
            .then(|| rest.split_once('@'))
            .flatten();
        // A bucket's server may be named; a part of a URL that is nobody's name may not.
        let written = bucket_on
            .filter(|(bucket, server)| !bucket.contains('/') && !bucket.is_empty() && !server.starts_with('/'));
        let written = written.map_or(rest, |(_, behind)| behind);
        if written.contains(['?', '#', '@', '%']) {
            return Err(BadSource::of(
                text,
                "has a user, query, fragment or percent sign, none of which is part of what patterns are compared with",
            ));
        }
        let parts = url(text, &scheme.to_ascii_lowercase(), rest)?;
        if !rest.contains('/') {
            return Err(BadSource::of(
                text,
                "has no path: write /* after the host for everything there",
            ));
        }
        if parts.path.len()
            != rest
                .split_once('/')
                .map_or(0, |(_, path)| path.trim_end_matches('/').len())
        {
            return Err(BadSource::of(
                text,
                "has dots or doubled slashes in its path: write the path they lead to",
            ));
        }
        of(Some(parts))
    }

    fn registry(text: &str) -> Result<Source, BadSource> {
        let Some((host, path)) = text.split_once('/') else {
            return Err(BadSource::of(
                text,
                "has no repository: write host/* for everything on a registry",
            ));
        };
        if path.contains(['@', ':', '%']) {
            return Err(BadSource::of(
                text,
                "has a tag or digest: rules are for repositories, leave it out",
            ));
        }
        if !host.contains(['.', ':', '*']) && host != "localhost" {
            return Err(BadSource::of(
                text,
                "has no registry host: write docker.io/ in front for Docker Hub, or https:// for a URL",
            ));
        }
        if path.is_empty() {
            return Err(BadSource::of(
                text,
                "has no repository: write host/* for everything on a registry",
            ));
        }
        let host = host.to_ascii_lowercase();
        let hub = DOCKER_HUB.contains(&host.as_str());
        let official = hub && !path.contains(['/', '*']);
        Ok(Source {
            scheme: String::new(),
            host: if hub { "docker.io".to_owned() } else { host },
            server: String::new(),
            path: if official {
                format!("library/{path}")
            } else {
                path.to_owned()
            },
        })
    }

    /// Whether `source` is one of those meant.
    pub fn matches(&self, source: &Source) -> bool {
        let Some(parts) = &self.parts else { return true };
        let is_server = parts.server.is_empty() || glob(&parts.server, &source.server);
        parts.scheme == source.scheme && is_server && glob(&parts.host, &source.host) && glob(&parts.path, &source.path)
    }

    /// Whether all that `other` is about is meant here too. May say no where the answer is yes, never the reverse.
    pub fn covers(&self, other: &Self) -> bool {
        match (&self.parts, &other.parts) {
            (None, _) => true,
            (Some(_), None) => false,
            // A star of the other pattern is only met by a star here: it is a character no literal of a source has.
            (Some(_), Some(parts)) => self.matches(parts),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether `text` is `pattern` with each `*` replaced by some run of characters. Time: length of one times the other.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on when what follows the last star does not fit: the star, and one byte further in the text.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match (pattern.get(p), text.get(t)) {
            (Some(b'*'), _) => {
                retry = Some((p, t));
                p += 1;
            }
            (Some(a), Some(b)) if a == b => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((star, from)) = retry else { return false };
                retry = Some((star, from + 1));
                p = star + 1;
                t = from + 1;
            }
        }
    }
    pattern
        .get(p..)
        .is_some_and(|rest| rest.iter().all(|&byte| byte == b'*'))
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
