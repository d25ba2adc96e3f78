//! Files of checksums as `sha256sum` and `sha512sum` write them (GNU coreutils manual, "md5sum invocation"), and as BSD's tools do.
//!
//! ```text
//! <hex>  name          text            SHA256 (name) = <hex>     BSD
//! <hex> *name          binary          \<hex>  na\nme            escaped: \\, \n, \r in the name
//! ```
//!
//! A name counts by its last path segment, since files list `./dir/name` and `*name` alike. A name that is there twice with the
//! same digest is fine, with two different digests of one length it is refused: nobody could say which holds.

use crate::digests::{HashMethod, Pinned, unhex};

/// Longest file read, bytes. Debian's longest list of a release's images has some hundred lines; 1 MiB is about 8,000.
pub const SUMS_MAX_BYTES: usize = 1 << 20;

/// Longest line, bytes: a SHA-512, the marks, and a path of `PATH_MAX`, all of it escaped.
const LINE_MAX_BYTES: usize = 128 + 16 + 2 * 4096;

/// Why a sums file does not tell the digest of an image.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum SumsError {
    /// Longer than [`SUMS_MAX_BYTES`].
    #[error(
        "the sums file is {size_bytes} bytes, more than {SUMS_MAX_BYTES}: give the address of a list, not of an image"
    )]
    TooLong {
        /// Its size.
        size_bytes: usize,
    },
    /// No line of it is one of a sums file (a page of HTML, say).
    #[error("the sums file has no line with a sha256 or sha512 digest: check its address")]
    NoSums,
    /// The name is not in it.
    #[error("the sums file does not list {name:?}: check both addresses, or pin the digest in the request")]
    NotListed {
        /// What was looked for.
        name: String,
    },
    /// The name is in it with different digests.
    #[error("the sums file lists {name:?} twice with different digests: pin the right one in the request")]
    Ambiguous {
        /// What was looked for.
        name: String,
    },
    /// The address of the image has no last segment to look for.
    #[error("the address {address:?} ends with no file name to look for in a sums file: pin the digest in the request")]
    NoName {
        /// The address, shortened to 300 characters.
        address: String,
    },
}

impl SumsError {
    /// Stable name of the failure.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "sums_too_long",
            Self::NoSums => "sums_malformed",
            Self::NotListed { .. } => "sums_name_missing",
            Self::Ambiguous { .. } => "sums_name_ambiguous",
            Self::NoName { .. } => "sums_no_name",
        }
    }
}

/// One line: a name and its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SumsEntry {
    /// The name as the line has it, unescaped.
    pub name: Vec<u8>,
    /// Its digest.
    pub digest: Pinned,
}

/// The lines of a sums file that are sums.
///
/// Others (comments, blank lines, digests of other kinds such as MD5) are passed over: lists of several kinds exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sums {
    entries: Vec<SumsEntry>,
}

impl Sums {
    /// Reads a list.
    ///
    /// # Errors
    ///
    /// When it is too long or has no line of a sums file.
    pub fn parse(bytes: &[u8]) -> Result<Self, SumsError> {
        if bytes.len() > SUMS_MAX_BYTES {
            return Err(SumsError::TooLong {
                size_bytes: bytes.len(),
            });
        }
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let entries: Vec<_> = bytes.split(|&byte| byte == b'\n').filter_map(entry).collect();
        if entries.is_empty() {
            return Err(SumsError::NoSums);
        }
        Ok(Self { entries })
    }

    /// The lines in their order.
    pub fn entries(&self) -> &[SumsEntry] {
        &self.entries
    }

    /// The digest of what is called `name`; the longest digest when both SHA-256 and SHA-512 are listed.
    ///
    /// # Errors
    ///
    /// When the name is missing, or is there twice with different values of one kind.
    pub fn find(&self, name: &str) -> Result<&Pinned, SumsError> {
        let mut found = None;
        for method in [HashMethod::Sha512, HashMethod::Sha256] {
            let mut of_kind = self
                .entries
                .iter()
                .filter(|entry| entry.digest.method() == method && last_segment(&entry.name) == name.as_bytes())
                .map(|entry| &entry.digest);
            let Some(first) = of_kind.next() else { continue };
            if of_kind.any(|other| other != first) {
                return Err(SumsError::Ambiguous { name: name.to_owned() });
            }
            found = found.or(Some(first));
        }
        found.ok_or_else(|| SumsError::NotListed { name: name.to_owned() })
    }

    /// The digest of the file at `url`: looked up by the URL's last path segment.
    ///
    /// # Errors
    ///
    /// As [`Sums::find`], and when the URL ends with no name.
    pub fn find_for_url(&self, url: &str) -> Result<&Pinned, SumsError> {
        self.find(&name_of_url(url)?)
    }
}

/// The last path segment of `url` with its percent signs decoded; query and fragment do not count.
///
/// # Errors
///
/// When there is none (`https://host/dir/`), or it decodes to something that is no file name.
pub fn name_of_url(url: &str) -> Result<String, SumsError> {
    let fail = || SumsError::NoName {
        address: url.chars().take(300).collect(),
    };
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let path = path.split_once("://").map_or(path, |(_, rest)| rest);
    let (_, last) = path.rsplit_once('/').ok_or_else(fail)?;
    let name = crate::source::percent_decoded(last).ok_or_else(fail)?;
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(fail());
    }
    Ok(name)
}

fn last_segment(name: &[u8]) -> &[u8] {
    name.rsplit(|&byte| byte == b'/').next().unwrap_or(name)
}

fn entry(line: &[u8]) -> Option<SumsEntry> {
    if line.len() > LINE_MAX_BYTES {
        return None;
    }
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let (escaped, line) = match line.strip_prefix(b"\\") {
        Some(rest) => (true, rest),
        None => (false, line),
    };
    let (digest, name) = gnu(line).or_else(|| bsd(line))?;
    let name = if escaped { unescaped(name)? } else { name.to_vec() };
    if name.is_empty() || name.contains(&0) {
        return None;
    }
    Some(SumsEntry { name, digest })
}

/// `<hex> ` and a space (text) or an asterisk (binary), then the name.
fn gnu(line: &[u8]) -> Option<(Pinned, &[u8])> {
    let end = line.iter().position(|byte| !byte.is_ascii_hexdigit())?;
    let (digits, rest) = line.split_at_checked(end)?;
    let name = rest.strip_prefix(b"  ").or_else(|| rest.strip_prefix(b" *"))?;
    let digest = match digits.len() {
        64 => Pinned::new(HashMethod::Sha256, unhex(digits)?),
        128 => Pinned::new(HashMethod::Sha512, unhex(digits)?),
        _ => None,
    }?;
    Some((digest, name))
}

/// `SHA256 (name) = <hex>`; the name may hold parentheses, so the last `) = ` counts.
fn bsd(line: &[u8]) -> Option<(Pinned, &[u8])> {
    let methods = [
        (&b"SHA256 ("[..], HashMethod::Sha256),
        (&b"SHA512 ("[..], HashMethod::Sha512),
    ];
    let (method, rest) = methods
        .into_iter()
        .find_map(|(start, method)| Some((method, line.strip_prefix(start)?)))?;
    let digits = method.digest_bytes() * 2;
    let (name, end) = rest.split_at_checked(rest.len().checked_sub(digits + 4)?)?;
    let digest = Pinned::new(method, unhex(end.strip_prefix(b") = ")?)?)?;
    Some((digest, name))
}

fn unescaped(name: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(name.len());
    let mut bytes = name.iter();
    while let Some(&byte) = bytes.next() {
        out.push(match byte {
            b'\\' => match bytes.next()? {
                b'\\' => b'\\',
                b'n' => b'\n',
                b'r' => b'\r',
                _ => return None,
            },
            other => other,
        });
    }
    Some(out)
}

#[cfg(test)]
#[path = "sums_tests.rs"]
mod tests;
