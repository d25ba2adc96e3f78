//! Digests of an image's bytes, computed while the bytes go by, and the values they are held against.
//!
//! Everything compared here is public (a digest is no secret), so comparison need not hide how many bytes were equal.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::digest::DynDigest;
use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512};

/// How many bytes go through one hash before the next takes them, bytes: they are still in the first-level cache then.
const STRIDE_BYTES: usize = 16 << 10;

/// A hash function of the SHA-2 family (FIPS 180-4): those the image service and sums files name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HashMethod {
    /// 28 bytes. Only in X.509 image signatures.
    Sha224,
    /// 32 bytes. The name of content in the store and in registries.
    Sha256,
    /// 48 bytes. Only in signatures.
    Sha384,
    /// 64 bytes.
    Sha512,
}

impl HashMethod {
    /// Every method, weakest first.
    pub const ALL: [Self; 4] = [Self::Sha224, Self::Sha256, Self::Sha384, Self::Sha512];

    /// Length of a digest, bytes.
    pub const fn digest_bytes(self) -> usize {
        match self {
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// The name in `sha256:…`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha224 => "sha224",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// The digest of `bytes`, which are all in memory.
    pub fn digest(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha224 => Sha224::digest(bytes).to_vec(),
            Self::Sha256 => Sha256::digest(bytes).to_vec(),
            Self::Sha384 => Sha384::digest(bytes).to_vec(),
            Self::Sha512 => Sha512::digest(bytes).to_vec(),
        }
    }

    fn hasher(self) -> Box<dyn DynDigest + Send> {
        match self {
            Self::Sha224 => Box::new(Sha224::new()),
            Self::Sha256 => Box::new(Sha256::new()),
            Self::Sha384 => Box::new(Sha384::new()),
            Self::Sha512 => Box::new(Sha512::new()),
        }
    }
}

impl fmt::Display for HashMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Several digests of one stream, fed in pieces, in one pass.
///
/// ```
/// use image_trust::{Digests, HashMethod};
/// let mut digests = Digests::new([HashMethod::Sha256, HashMethod::Sha512]);
/// digests.update(b"an im");
/// digests.update(b"age");
/// let set = digests.finish();
/// assert_eq!(set.size_bytes(), 8);
/// assert!(set.get(HashMethod::Sha512).is_some());
/// ```
pub struct Digests {
    hashers: Vec<(HashMethod, Box<dyn DynDigest + Send>)>,
    size_bytes: u64,
}

impl Digests {
    /// Digests by each of `methods`; one named twice is computed once.
    pub fn new(methods: impl IntoIterator<Item = HashMethod>) -> Self {
        let mut methods: Vec<_> = methods.into_iter().collect();
        methods.sort_unstable();
        methods.dedup();
        Self {
            hashers: methods.into_iter().map(|method| (method, method.hasher())).collect(),
            size_bytes: 0,
        }
    }

    /// SHA-256 and SHA-512: whatever a request or a sums file pins.
    pub fn sha256_sha512() -> Self {
        Self::new([HashMethod::Sha256, HashMethod::Sha512])
    }

    /// The next bytes of the stream.
    pub fn update(&mut self, bytes: &[u8]) {
        self.size_bytes = self.size_bytes.saturating_add(bytes.len() as u64);
        for piece in bytes.chunks(STRIDE_BYTES) {
            for (_, hasher) in &mut self.hashers {
                hasher.update(piece);
            }
        }
    }

    /// The digests of what was fed up to now.
    pub fn so_far(&self) -> DigestSet {
        DigestSet {
            digests: self
                .hashers
                .iter()
                .map(|(method, hasher)| (*method, hasher.box_clone().finalize().into_vec()))
                .collect(),
            size_bytes: self.size_bytes,
        }
    }

    /// The digests of all that was fed.
    pub fn finish(self) -> DigestSet {
        DigestSet {
            digests: self
                .hashers
                .into_iter()
                .map(|(method, hasher)| (method, hasher.finalize().into_vec()))
                .collect(),
            size_bytes: self.size_bytes,
        }
    }
}

impl fmt::Debug for Digests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Digests")
            .field(
                "methods",
                &self.hashers.iter().map(|(method, _)| *method).collect::<Vec<_>>(),
            )
            .field("size_bytes", &self.size_bytes)
            .finish()
    }
}

/// What a stream came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DigestSet {
    digests: Vec<(HashMethod, Vec<u8>)>,
    size_bytes: u64,
}

impl DigestSet {
    /// The digest by `method`, unless it was not asked for.
    pub fn get(&self, method: HashMethod) -> Option<&[u8]> {
        self.digests
            .iter()
            .find(|(own, _)| *own == method)
            .map(|(_, digest)| digest.as_slice())
    }

    /// Length of the stream, bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The digest by the method that `pinned` names, as a value to compare or to show.
    pub fn pinned(&self, method: HashMethod) -> Option<Pinned> {
        Pinned::new(method, self.get(method)?.to_vec())
    }

    /// Holds the stream against `pinned`.
    ///
    /// # Errors
    ///
    /// When the digest is another one, or was not computed (nothing passes for want of a digest).
    pub fn check(&self, pinned: &Pinned) -> Result<(), DigestError> {
        let Some(found) = self.get(pinned.method) else {
            return Err(DigestError::NotComputed { method: pinned.method });
        };
        if found == pinned.digest.as_slice() {
            return Ok(());
        }
        Err(DigestError::Mismatch {
            expected: pinned.clone(),
            found: hex(found),
        })
    }
}

/// Why bytes are not those that were pinned.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum DigestError {
    /// Other bytes.
    #[error(
        "the image's digest is {}:{found}, not {expected}: the source holds other bytes, or they were damaged on the way",
        expected.method
    )]
    Mismatch {
        /// What was asked for.
        expected: Pinned,
        /// What came, hexadecimal, by the same method.
        found: String,
    },
    /// The digest by this method was not computed while the bytes went by.
    #[error("the image's {method} digest was not computed, so it cannot be compared: verify the image again")]
    NotComputed {
        /// The method that was asked for.
        method: HashMethod,
    },
}

impl DigestError {
    /// Stable name of the failure.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Mismatch { .. } => "digest_mismatch",
            Self::NotComputed { .. } => "digest_not_computed",
        }
    }
}

/// A digest that bytes must have, written `sha256:` or `sha512:` and lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pinned {
    method: HashMethod,
    digest: Vec<u8>,
}

impl Pinned {
    /// `digest` by `method`; none when its length is wrong or the method is not one that may be pinned.
    pub fn new(method: HashMethod, digest: Vec<u8>) -> Option<Self> {
        let may = matches!(method, HashMethod::Sha256 | HashMethod::Sha512);
        (may && digest.len() == method.digest_bytes()).then_some(Self { method, digest })
    }

    /// A SHA-256 digest.
    pub fn sha256(digest: [u8; 32]) -> Self {
        Self {
            method: HashMethod::Sha256,
            digest: digest.to_vec(),
        }
    }

    /// How the digest is made.
    pub fn method(&self) -> HashMethod {
        self.method
    }

    /// The digest.
    pub fn digest(&self) -> &[u8] {
        &self.digest
    }

    /// The digits alone.
    pub fn hex(&self) -> String {
        hex(&self.digest)
    }
}

/// The text is not a digest that can be pinned.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("digest {0:?} is not sha256: and 64, or sha512: and 128, lower-case hexadecimal digits")]
pub struct BadPinned(pub String);

impl BadPinned {
    /// Stable name of the failure.
    pub const fn code(&self) -> &'static str {
        "bad_digest"
    }
}

impl FromStr for Pinned {
    type Err = BadPinned;

    fn from_str(text: &str) -> Result<Self, BadPinned> {
        let parse = || {
            let (name, digits) = text.split_once(':')?;
            let method = HashMethod::ALL.into_iter().find(|method| method.name() == name)?;
            if digits.bytes().any(|byte| byte.is_ascii_uppercase()) {
                return None;
            }
            Self::new(method, unhex(digits.as_bytes())?)
        };
        parse().ok_or_else(|| BadPinned(text.chars().take(150).collect()))
    }
}

impl TryFrom<String> for Pinned {
    type Error = BadPinned;

    fn try_from(text: String) -> Result<Self, BadPinned> {
        text.parse()
    }
}

impl From<Pinned> for String {
    fn from(pinned: Pinned) -> Self {
        pinned.to_string()
    }
}

impl fmt::Display for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.method, self.hex())
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Lower-case hexadecimal digits of `bytes`.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}"); // Writing to a String cannot fail.
            text
        })
}

/// The bytes that hexadecimal `digits` of either case stand for; at most those of the longest digest.
pub(crate) fn unhex(digits: &[u8]) -> Option<Vec<u8>> {
    if digits.len() > 2 * HashMethod::Sha512.digest_bytes() {
        return None;
    }
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let nibble = |digit: u8| {
        char::from(digit)
            .to_digit(16)
            .and_then(|value| u8::try_from(value).ok())
    };
    pairs
        .iter()
        .map(|[high, low]| Some(nibble(*high)? << 4 | nibble(*low)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf 'abc' | sha256sum`, and the same with the other tools (FIPS 180-4, examples).
    const ABC: [(HashMethod, &str); 4] = [
        (
            HashMethod::Sha224,
            "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7",
        ),
        (
            HashMethod::Sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        ),
        (
            HashMethod::Sha384,
            "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7",
        ),
        (
            HashMethod::Sha512,
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
             2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        ),
    ];

    #[test]
    fn all_methods_in_one_pass_whatever_the_pieces() {
        for cut in 0..=3 {
            let mut digests = Digests::new(HashMethod::ALL);
            let (first, second) = b"abc".split_at(cut);
            digests.update(first);
            digests.update(&[]);
            digests.update(second);
            let set = digests.finish();
            assert_eq!(set.size_bytes(), 3);
            for (method, expected) in ABC {
                assert_eq!(hex(set.get(method).unwrap()), expected, "{method} cut at {cut}");
                assert_eq!(hex(&method.digest(b"abc")), expected);
            }
        }
    }

    #[test]
    fn long_pieces_are_the_same_as_short_ones() {
        let bytes: Vec<u8> = (0..100_000_u32)
            .map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1])
            .collect();
        let mut long = Digests::sha256_sha512();
        long.update(&bytes);
        let mut short = Digests::sha256_sha512();
        for piece in bytes.chunks(977) {
            short.update(piece);
        }
        let long = long.finish();
        assert_eq!(long, short.finish());
        assert_eq!(long.get(HashMethod::Sha256).unwrap(), HashMethod::Sha256.digest(&bytes));
    }

    #[test]
    fn compares_with_what_was_pinned() {
        let mut digests = Digests::new([HashMethod::Sha256, HashMethod::Sha256]);
        digests.update(b"abc");
        let set = digests.finish();
        let right: Pinned = format!("sha256:{}", ABC[1].1).parse().unwrap();
        assert_eq!(set.check(&right), Ok(()));
        assert_eq!(set.pinned(HashMethod::Sha256), Some(right.clone()));
        let wrong: Pinned = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
        let error = set.check(&wrong).unwrap_err();
        assert_eq!(error.code(), "digest_mismatch");
        assert!(error.to_string().contains(ABC[1].1), "{error}");
        let other: Pinned = format!("sha512:{}", ABC[3].1).parse().unwrap();
        assert_eq!(set.check(&other).unwrap_err().code(), "digest_not_computed");
    }

    #[test]
    fn reads_only_canonical_digests() {
        let good = format!("sha256:{}", ABC[1].1);
        let pinned: Pinned = good.parse().unwrap();
        assert_eq!((pinned.to_string(), pinned.hex().as_str()), (good.clone(), ABC[1].1));
        for bad in [
            String::new(),
            "sha256:".to_owned(),
            ABC[1].1.to_owned(),
            format!("sha512:{}", ABC[1].1),
            format!("sha224:{}", ABC[0].1),
            format!("md5:{}", "0".repeat(32)),
            good.to_uppercase(),
            good.replace("ba7816bf", "BA7816BF"),
            format!("{good}00"),
            good.replace("20015ad", "20015aé"),
            format!(" {good}"),
        ] {
            assert!(bad.parse::<Pinned>().is_err(), "{bad}");
        }
    }
}
