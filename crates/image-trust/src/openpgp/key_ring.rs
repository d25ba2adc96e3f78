//! Key rings: the public keys an operator trusts, as `gpg --export` writes them, armoured or not.

use std::time::SystemTime;

use pgp::composed::{Deserializable as _, SignedPublicKey};
use pgp::packet::{PublicKey, PublicSubkey, Signature};
use pgp::types::KeyDetails as _;

use super::Signer;

/// Longest key ring file, bytes: Debian's whole archive key ring is 60 KiB.
pub const KEY_RING_MAX_BYTES: usize = 4 << 20;
/// Most keys in a ring.
const KEYS_MAX: usize = 1000;
const BEGIN: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";

/// Why a file is no key ring.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum KeyRingError {
    /// More than is read.
    #[error(
        "the key ring is larger than {KEY_RING_MAX_BYTES} bytes or holds more than {KEYS_MAX} keys: export only keys you trust"
    )]
    TooLong,
    /// Not OpenPGP public keys.
    #[error("the key ring cannot be read ({problem}): make it by gpg --export")]
    Malformed {
        /// What was met.
        problem: String,
    },
    /// No key in it.
    #[error("the key ring holds no key: nothing could ever be verified with it")]
    Empty,
}

impl KeyRingError {
    /// Stable name of the failure.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLong => "key_ring_too_long",
            Self::Malformed { .. } => "key_ring_malformed",
            Self::Empty => "key_ring_empty",
        }
    }
}

/// Trusted OpenPGP keys.
///
/// Whether a key may be used is decided when it is: keys expire while the ring is in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRing {
    certificates: Vec<SignedPublicKey>,
}

/// A key that may have made a signature.
#[derive(Debug, Clone, Copy)]
pub(super) enum Candidate<'a> {
    Primary(&'a PublicKey),
    /// With what its certificate says of it.
    Subkey(&'a PublicSubkey, &'a [Signature]),
}

impl Candidate<'_> {
    /// As gpg shows it.
    pub(super) fn fingerprint(&self) -> String {
        match self {
            Self::Primary(key) => format!("{:X}", key.fingerprint()),
            Self::Subkey(key, _) => format!("{:X}", key.fingerprint()),
        }
    }

    /// The arithmetic alone.
    pub(super) fn verifies(&self, signature: &Signature, document: &[u8]) -> bool {
        match self {
            Self::Primary(key) => signature.verify(*key, document).is_ok(),
            Self::Subkey(key, _) => signature.verify(*key, document).is_ok(),
        }
    }
}

impl KeyRing {
    /// Reads a ring: packets, or any number of armoured blocks one behind the other with text between them.
    ///
    /// # Errors
    ///
    /// When it is too large, is something else, or holds no key.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeyRingError> {
        if bytes.len() > KEY_RING_MAX_BYTES {
            return Err(KeyRingError::TooLong);
        }
        let mut certificates = Vec::new();
        if bytes.first().is_some_and(|first| first & 0x80 != 0) {
            collect(SignedPublicKey::from_bytes_many(bytes), &mut certificates)?;
        } else {
            let text = std::str::from_utf8(bytes).map_err(|_| KeyRingError::Malformed {
                problem: "neither packets nor armour".to_owned(),
            })?;
            for (start, _) in text.match_indices(BEGIN) {
                let block = text.get(start..).unwrap_or_default();
                let end = block.get(BEGIN.len()..).and_then(|rest| rest.find(BEGIN));
                let block = end.and_then(|end| block.get(..BEGIN.len() + end)).unwrap_or(block);
                let keys = SignedPublicKey::from_armor_many_buf(block.as_bytes()).map(|(keys, _)| keys);
                collect(keys, &mut certificates)?;
            }
        }
        if certificates.is_empty() {
            return Err(KeyRingError::Empty);
        }
        Ok(Self { certificates })
    }

    /// Puts the keys of `other` behind those of this ring.
    pub fn extend(&mut self, other: Self) {
        self.certificates.extend(other.certificates);
    }

    /// Fingerprints of the primary keys.
    pub fn fingerprints(&self) -> Vec<String> {
        self.certificates
            .iter()
            .map(|key| format!("{:X}", key.fingerprint()))
            .collect()
    }

    /// Keys that `signature` may be by: those it names, or all when it names none.
    pub(super) fn candidates<'a>(
        &'a self,
        signature: &Signature,
    ) -> impl Iterator<Item = (&'a SignedPublicKey, Candidate<'a>)> {
        let ids: Vec<_> = signature.issuer_key_id().into_iter().copied().collect();
        let fingerprints: Vec<_> = signature.issuer_fingerprint().into_iter().cloned().collect();
        let named = move |id, fingerprint| {
            (ids.is_empty() && fingerprints.is_empty()) || ids.contains(&id) || fingerprints.contains(&fingerprint)
        };
        self.certificates
            .iter()
            .flat_map(|certificate| {
                let primary = std::iter::once((
                    certificate.primary_key.legacy_key_id(),
                    certificate.primary_key.fingerprint(),
                    Candidate::Primary(&certificate.primary_key),
                ));
                let subkeys = certificate.public_subkeys.iter().map(|subkey| {
                    let candidate = Candidate::Subkey(&subkey.key, &subkey.signatures);
                    (subkey.key.legacy_key_id(), subkey.key.fingerprint(), candidate)
                });
                primary.chain(subkeys).map(move |key| (certificate, key))
            })
            .filter(move |(_, (id, fingerprint, _))| named(*id, fingerprint.clone()))
            .map(|(certificate, (_, _, candidate))| (certificate, candidate))
    }
}

fn collect<'a>(
    keys: pgp::errors::Result<impl Iterator<Item = pgp::errors::Result<SignedPublicKey>> + 'a>,
    certificates: &mut Vec<SignedPublicKey>,
) -> Result<(), KeyRingError> {
    let malformed = |error: pgp::errors::Error| KeyRingError::Malformed {
        problem: error.to_string().chars().take(200).collect(),
    };
    for key in keys.map_err(malformed)? {
        if certificates.len() == KEYS_MAX {
            return Err(KeyRingError::TooLong);
        }
        certificates.push(key.map_err(malformed)?);
    }
    Ok(())
}

/// How an accepted signature's maker is told.
pub(super) fn signer(certificate: &SignedPublicKey, signed_at: SystemTime) -> Signer {
    let user = certificate.details.users.first();
    Signer {
        fingerprint: format!("{:X}", certificate.fingerprint()),
        user_id: user.map(|user| String::from_utf8_lossy(user.id.id()).into_owned()),
        signed_at,
    }
}
