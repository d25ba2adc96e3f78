//! Quantities of bytes with Kubernetes suffixes.

use std::fmt;
use std::str::FromStr;

/// A number of bytes. Written as a plain number or with a suffix: `Ki Mi Gi Ti` (powers of 1024), `k M G T` (of 1000).
///
/// Source: Kubernetes API conventions, resource quantities; the fractional and exponent forms are not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "Written")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, example = "2Gi"))]
pub struct ByteSize(u64);

/// JSON takes both `2147483648` and `"2Gi"`.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

/// Why a text is no quantity of bytes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ByteSizeError {
    /// Not digits followed by a known suffix.
    #[error("{0:?} is no size: write a whole number of bytes, or one with Ki, Mi, Gi, Ti, k, M, G or T, as 2Gi")]
    Malformed(String),
    /// Does not fit in 64 bits.
    #[error("{0:?} is larger than 2^64 bytes")]
    TooLarge(String),
}

/// Suffixes and what they multiply by, largest binary first: the order in which a size is written back.
const SUFFIXES: [(&str, u64); 8] = [
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
];

impl ByteSize {
    /// So many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many MiB.
    pub const fn from_mib(mib: u32) -> Self {
        Self((mib as u64) << 20)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    fn from_str(text: &str) -> Result<Self, ByteSizeError> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, suffix) = text.split_at(digits);
        let malformed = || ByteSizeError::Malformed(text.to_owned());
        if number.is_empty() {
            return Err(malformed());
        }
        let factor = match suffix {
            "" => 1,
            _ => {
                SUFFIXES
                    .iter()
                    .find(|(known, _)| *known == suffix)
                    .ok_or_else(malformed)?
                    .1
            }
        };
        let number: u64 = number.parse().map_err(|_| ByteSizeError::TooLarge(text.to_owned()))?;
        number
            .checked_mul(factor)
            .map(Self)
            .ok_or_else(|| ByteSizeError::TooLarge(text.to_owned()))
    }
}

impl fmt::Display for ByteSize {
    /// The shortest binary form that is exact: `2Gi`, `1536Mi`, `1000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (suffix, factor) in SUFFIXES.iter().take(4) {
            if self.0 != 0 && self.0.is_multiple_of(*factor) {
                return write!(f, "{}{suffix}", self.0 / factor);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> Self {
        size.to_string()
    }
}

impl TryFrom<Written> for ByteSize {
    type Error = ByteSizeError;

    fn try_from(written: Written) -> Result<Self, ByteSizeError> {
        match written {
            Written::Number(bytes) => Ok(Self(bytes)),
            Written::Text(text) => text.parse(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_kubernetes_users_write() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("512Mi", 512 << 20),
            ("2Gi", 2 << 30),
            ("1k", 1000),
            ("3T", 3_000_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn refuses_everything_else() {
        for text in ["", "Gi", "-1", "1.5Gi", "2gb", "2 Gi", "2GiB", "１Gi"] {
            assert!(
                matches!(text.parse::<ByteSize>(), Err(ByteSizeError::Malformed(_))),
                "{text}"
            );
        }
        for text in ["18446744073709551616", "16777216Ti"] {
            assert!(
                matches!(text.parse::<ByteSize>(), Err(ByteSizeError::TooLarge(_))),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_written_back_reads_the_same(bytes: u64) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }
    }
}
