//! Names of stores.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name, bytes: fits a label of a metric and a file name.
const NAME_MAX: usize = 63;

/// What a store is called: lower-case letters, digits, `-` and `_`, beginning with a letter; at most 63 characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StoreName(String);

/// The text is no store's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("store name {0:?} is not 1 to 63 lower-case letters, digits, - and _ that begin with a letter")]
pub struct BadStoreName(pub String);

impl Default for StoreName {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl StoreName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for StoreName {
    type Err = BadStoreName;

    fn from_str(text: &str) -> Result<Self, BadStoreName> {
        let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
        let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
        if begins && text.len() <= NAME_MAX && text.bytes().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadStoreName(text.chars().take(100).collect()))
        }
    }
}

impl TryFrom<String> for StoreName {
    type Error = BadStoreName;

    fn try_from(text: String) -> Result<Self, BadStoreName> {
        text.parse()
    }
}

impl From<StoreName> for String {
    fn from(name: StoreName) -> Self {
        name.0
    }
}

impl fmt::Display for StoreName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_taken() {
        for fine in ["default", "nvme-1", "a", &"x".repeat(63)] {
            assert_eq!(fine.parse::<StoreName>().unwrap().as_str(), fine);
        }
        for bad in ["", "1a", "-a", "A", "a/b", "a b", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<StoreName>().is_err(), "{bad}");
        }
    }
}
