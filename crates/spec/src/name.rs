//! Names of things in a collection.

use std::fmt;
use std::str::FromStr;

/// 1–63 characters of `[a-z0-9-]`, first and last no hyphen: a DNS label (RFC 1123 §2.1), unique in its collection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Name(String);

/// Why a text is no name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no name: take 1 to 63 of a-z, 0-9 and -, with no - at either end")]
pub struct NameError(String);

/// Longest DNS label, characters (RFC 1035 §2.3.4).
const NAME_MAX: usize = 63;

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let fits = (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(inner);
        if fits && !text.starts_with('-') && !text.ends_with('-') {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_dns_labels_only() {
        let longest = "a".repeat(NAME_MAX);
        for text in ["a", "0", "web-1", longest.as_str()] {
            assert_eq!(text.parse::<Name>().unwrap().as_str(), text);
        }
        let too_long = "a".repeat(NAME_MAX + 1);
        for text in ["", "-", "-a", "a-", "A", "a_b", "a.b", "../x", "ä", too_long.as_str()] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }
}
