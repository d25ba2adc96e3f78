//! The manifest in an OVA (DSP0243 §5.1): a digest for each file; and digests made while the files pass.

use std::collections::BTreeMap;

use sha1::{Digest, Sha1};
use sha2::{Sha256, Sha512};

use super::OvaError;

/// Most lines of a manifest.
const LINES_MAX: usize = 1024;

/// A digest's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Method {
    Sha1,
    Sha256,
    Sha512,
}

impl Method {
    const ALL: [Self; 3] = [Self::Sha1, Self::Sha256, Self::Sha512];

    /// As manifests spell it, with or without a dash.
    fn named(name: &str) -> Option<Self> {
        match name.trim().to_ascii_uppercase().replace('-', "").as_str() {
            "SHA1" => Some(Self::Sha1),
            "SHA256" => Some(Self::Sha256),
            "SHA512" => Some(Self::Sha512),
            _ => None,
        }
    }

    const fn digits(self) -> usize {
        match self {
            Self::Sha1 => 40,
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// What each file's digest has to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Manifest(BTreeMap<String, (Method, String)>);

impl Manifest {
    /// Reads lines such as `SHA256(disk.vmdk)= 0123…`.
    pub(super) fn parse(text: &[u8]) -> Result<Self, OvaError> {
        let damaged = |line: usize| OvaError::Manifest(line + 1);
        let text = std::str::from_utf8(text).map_err(|_| damaged(0))?;
        let mut all = BTreeMap::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let (name, method, digest) = read_line(line).ok_or_else(|| damaged(number))?;
            if number >= LINES_MAX || all.insert(name.to_owned(), (method, digest)).is_some() {
                return Err(damaged(number));
            }
        }
        Ok(Self(all))
    }

    pub(super) fn method(&self, name: &str) -> Option<Method> {
        self.0.get(name).map(|(method, _)| *method)
    }

    /// Compares every line with what passed, and sees to it that every name in `needed` has one.
    pub(super) fn check(&self, found: &BTreeMap<String, Digests>, needed: &[&str]) -> Result<(), OvaError> {
        if let Some(name) = needed.iter().find(|name| !self.0.contains_key(**name)) {
            return Err(OvaError::Digest((*name).to_owned()));
        }
        for (name, (method, expected)) in &self.0 {
            if found.get(name).and_then(|digests| digests.get(*method)) != Some(expected) {
                return Err(OvaError::Digest(name.clone()));
            }
        }
        Ok(())
    }
}

fn read_line(line: &str) -> Option<(&str, Method, String)> {
    let (method, rest) = line.split_once('(')?;
    // The name may have brackets in it; the digest has none.
    let (name, digest) = rest.rsplit_once(')')?;
    let method = Method::named(method)?;
    let digest = digest.trim().strip_prefix('=')?.trim().to_ascii_lowercase();
    let sound = digest.len() == method.digits() && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    (sound && !name.is_empty()).then_some((name, method, digest))
}

/// The digests of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Digests(Vec<(Method, String)>);

impl Digests {
    fn get(&self, wanted: Method) -> Option<&String> {
        self.0
            .iter()
            .find(|(method, _)| *method == wanted)
            .map(|(_, digest)| digest)
    }
}

/// Makes the digests of a file while it passes.
#[derive(Default)]
pub(super) struct Hashing {
    sha1: Option<Sha1>,
    sha256: Option<Sha256>,
    sha512: Option<Sha512>,
}

impl Hashing {
    /// What the manifest asks for `name`; all kinds while there is no manifest: it may come last.
    pub(super) fn of(manifest: Option<&Manifest>, name: &str) -> Self {
        let mut hashing = Self::default();
        for method in Method::ALL {
            if manifest.is_none_or(|manifest| manifest.method(name) == Some(method)) {
                match method {
                    Method::Sha1 => hashing.sha1 = Some(Sha1::new()),
                    Method::Sha256 => hashing.sha256 = Some(Sha256::new()),
                    Method::Sha512 => hashing.sha512 = Some(Sha512::new()),
                }
            }
        }
        hashing
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        if let Some(hash) = &mut self.sha1 {
            hash.update(bytes);
        }
        if let Some(hash) = &mut self.sha256 {
            hash.update(bytes);
        }
        if let Some(hash) = &mut self.sha512 {
            hash.update(bytes);
        }
    }

    pub(super) fn finish(self) -> Digests {
        let sha1 = self.sha1.map(|hash| (Method::Sha1, hex(&hash.finalize())));
        let sha256 = self.sha256.map(|hash| (Method::Sha256, hex(&hash.finalize())));
        let sha512 = self.sha512.map(|hash| (Method::Sha512, hex(&hash.finalize())));
        Digests([sha1, sha256, sha512].into_iter().flatten().collect())
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // Writing to a string does not fail.
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn lines_are_read_and_compared() {
        let text = format!("SHA256(a (1).vmdk)= {EMPTY}\r\n\nsha-256(b)={}\n", EMPTY.to_uppercase());
        let manifest = Manifest::parse(text.as_bytes()).unwrap();
        let mut found = BTreeMap::new();
        for name in ["a (1).vmdk", "b"] {
            found.insert(name.to_owned(), Hashing::of(Some(&manifest), name).finish());
        }
        manifest.check(&found, &["b"]).unwrap();
        assert_eq!(manifest.check(&found, &["c"]).unwrap_err().code(), "manifest_digest");
        let mut other = Hashing::of(None, "b");
        other.update(b"x");
        found.insert("b".to_owned(), other.finish());
        assert_eq!(manifest.check(&found, &[]).unwrap_err().code(), "manifest_digest");
        found.remove("b");
        assert_eq!(manifest.check(&found, &[]).unwrap_err().code(), "manifest_digest");
    }

    #[test]
    fn what_is_no_line_is_refused() {
        let twice = format!("SHA256(a)= {EMPTY}\nSHA256(a)= {EMPTY}");
        for text in [
            "MD5(a)= 1",
            "SHA256(a)= 12",
            "SHA256 a",
            &format!("SHA1(a)= {EMPTY}"),
            &twice,
        ] {
            assert_eq!(
                Manifest::parse(text.as_bytes()).unwrap_err().code(),
                "manifest_damaged",
                "{text}"
            );
        }
    }
}
