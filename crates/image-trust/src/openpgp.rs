//! OpenPGP signatures (RFC 9580, RFC 4880) over sums files: detached, binary or armoured, and clear-signed.
//!
//! A signature counts when all of this holds; of several in one file, one suffices:
//!
//! - it is over a document (binary or text), made by a hash stronger than MD5, SHA-1 and RIPEMD-160, not expired and not from the
//!   future, and has no critical part that is not understood;
//! - it is by a key of the ring: by a primary key that may sign, or by a subkey that its primary bound for signing and that
//!   itself says it belongs there (a strong hash for both), neither of them revoked or expired *now*: when a signature was
//!   made is only what its maker says, so one by an expired key might be by whoever found the key later;
//! - the key has at least 2048 bits where bits count.
//!
//! Every revocation counts, whatever its reason. What a primary key says of itself (when it expires, what it is for) may be
//! signed with SHA-1: keys that sign well-known images date from 2009, and the operator put them into the ring anyway.
//! Revocations by other keys ("designated revokers") and the web of trust are not looked at.

mod cleartext;
mod key_ring;
mod validity;

use std::fmt;
use std::io::BufReader;
use std::time::{Duration, SystemTime};

use pgp::armor::{BlockType, Dearmor, DearmorOptions};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Packet, PacketParser, Signature, SignatureType, SubpacketData};

pub use cleartext::ClearSigned;
pub use key_ring::{KEY_RING_MAX_BYTES, KeyRing, KeyRingError};

use crate::sums::SUMS_MAX_BYTES;

/// Longest detached signature file, bytes: some dozen signatures of the largest keys.
pub const SIGNATURE_MAX_BYTES: usize = 64 << 10;
/// Most packets looked at in a signature file, and most signatures.
const PACKETS_MAX: usize = 32;
/// How far the clock of the signer may be ahead of ours.
const CLOCK_SKEW: Duration = Duration::from_mins(5);

/// Why a signature does not make a document trusted.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum OpenPgpError {
    /// The document or the signature is larger than what is read.
    #[error("the {what} is {size_bytes} bytes, more than {max_bytes}: check its address")]
    TooLong {
        /// Which of the two.
        what: &'static str,
        /// Its size.
        size_bytes: usize,
        /// The most that is read.
        max_bytes: usize,
    },
    /// The bytes are no OpenPGP signature.
    #[error("the signature cannot be read ({problem}): check that the address is that of the signature file")]
    Malformed {
        /// What was met.
        problem: String,
    },
    /// The document is not clear-signed as it should be.
    #[error("the sums file is not well clear-signed ({problem}): check its address, or name a detached signature")]
    NotClearSigned {
        /// What was met.
        problem: &'static str,
    },
    /// None of the signatures is by a key of the ring.
    #[error("the signature is by {issuer}, which is not in the key ring: add the key if you trust it")]
    UnknownKey {
        /// Fingerprint or key id that the signature names, or that it names none.
        issuer: String,
    },
    /// The document is not what was signed.
    #[error("the signature by {key} does not fit the sums file: one of them was changed")]
    Mismatch {
        /// Fingerprint of the key.
        key: String,
    },
    /// The signature's hash has been broken.
    #[error(
        "the signature was made with {hash}, which proves nothing any more: the publisher has to sign with SHA-256 or stronger"
    )]
    WeakHash {
        /// Its name.
        hash: String,
    },
    /// A kind of signature that says nothing about a document, or with critical parts nobody here understands.
    #[error("the signature is of a kind that cannot vouch for a file ({problem})")]
    WrongKind {
        /// What was met.
        problem: String,
    },
    /// The signature has run out.
    #[error("the signature by {key} has expired: get a fresh one from the publisher")]
    SignatureExpired {
        /// Fingerprint of the key.
        key: String,
    },
    /// The signature's date has not come yet.
    #[error("the signature's date lies in the future: check this host's clock")]
    SignatureInFuture,
    /// The key has run out.
    #[error("key {key} has expired: put the publisher's renewed key into the key ring")]
    KeyExpired {
        /// Fingerprint of the key.
        key: String,
    },
    /// The key has been revoked.
    #[error("key {key} has been revoked: put the publisher's new key into the key ring")]
    KeyRevoked {
        /// Fingerprint of the key.
        key: String,
    },
    /// The key is too short.
    #[error("key {key} has fewer than 2048 bits or a kind nobody here knows: the publisher has to sign with another")]
    KeyWeak {
        /// Fingerprint of the key.
        key: String,
    },
    /// The key is not for signing, or its subkey is not bound to it.
    #[error("key {key} may not sign documents ({problem})")]
    KeyUnfit {
        /// Fingerprint of the key.
        key: String,
        /// What is missing.
        problem: &'static str,
    },
}

impl OpenPgpError {
    /// Stable name of the failure.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "openpgp_too_long",
            Self::Malformed { .. } => "openpgp_malformed",
            Self::NotClearSigned { .. } => "openpgp_not_clear_signed",
            Self::UnknownKey { .. } => "openpgp_unknown_key",
            Self::Mismatch { .. } => "openpgp_mismatch",
            Self::WeakHash { .. } => "openpgp_weak_hash",
            Self::WrongKind { .. } => "openpgp_wrong_kind",
            Self::SignatureExpired { .. } => "openpgp_signature_expired",
            Self::SignatureInFuture => "openpgp_signature_in_future",
            Self::KeyExpired { .. } => "openpgp_key_expired",
            Self::KeyRevoked { .. } => "openpgp_key_revoked",
            Self::KeyWeak { .. } => "openpgp_key_weak",
            Self::KeyUnfit { .. } => "openpgp_key_unfit",
        }
    }

    /// How much an operator learns from it: of several failures the highest is told.
    const fn rank(&self) -> u8 {
        match self {
            Self::TooLong { .. } | Self::Malformed { .. } | Self::NotClearSigned { .. } => 0,
            Self::UnknownKey { .. } => 1,
            Self::WrongKind { .. } | Self::SignatureInFuture => 2,
            Self::WeakHash { .. } => 3,
            Self::KeyWeak { .. } | Self::KeyUnfit { .. } | Self::SignatureExpired { .. } => 4,
            Self::KeyExpired { .. } => 5,
            Self::KeyRevoked { .. } => 6,
            Self::Mismatch { .. } => 7,
        }
    }
}

/// Who signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// Fingerprint of the primary key, upper-case hexadecimal as gpg shows it.
    pub fingerprint: String,
    /// A name the key bears; not proved by anything but the ring's having it.
    pub user_id: Option<String>,
    /// When, by the signer's clock.
    pub signed_at: SystemTime,
}

impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.user_id {
            Some(name) => write!(f, "{} ({name})", self.fingerprint),
            None => f.write_str(&self.fingerprint),
        }
    }
}

impl KeyRing {
    /// Whether the detached `signature` (binary or armoured) over `document` is by a key of this ring, at the time `now`.
    ///
    /// # Errors
    ///
    /// Every way of not being so.
    pub fn verify_detached(&self, document: &[u8], signature: &[u8], now: SystemTime) -> Result<Signer, OpenPgpError> {
        check_length("sums file", document, SUMS_MAX_BYTES)?;
        check_length("signature", signature, SIGNATURE_MAX_BYTES)?;
        self.verify_any(document, &read_signatures(signature)?, now)
    }

    /// The text of a clear-signed `document`, when a signature in it is by a key of this ring at the time `now`.
    ///
    /// Only what comes back was signed; lines end with a line feed there and have no trailing blanks.
    ///
    /// # Errors
    ///
    /// Every way of not being so, and text in front of or behind what is signed.
    pub fn verify_clear_signed(&self, document: &[u8], now: SystemTime) -> Result<(Vec<u8>, Signer), OpenPgpError> {
        check_length("sums file", document, SUMS_MAX_BYTES)?;
        let ClearSigned { text, signature } = ClearSigned::parse(document)?;
        check_length("signature", signature, SIGNATURE_MAX_BYTES)?;
        let signer = self.verify_any(&text, &read_signatures(signature)?, now)?;
        Ok((text, signer))
    }

    fn verify_any(&self, document: &[u8], signatures: &[Signature], now: SystemTime) -> Result<Signer, OpenPgpError> {
        let mut worst = OpenPgpError::Malformed {
            problem: "it holds no signature".to_owned(),
        };
        for signature in signatures {
            match self.verify_one(document, signature, now) {
                Ok(signer) => return Ok(signer),
                Err(error) if error.rank() >= worst.rank() => worst = error,
                Err(_) => {}
            }
        }
        Err(worst)
    }

    fn verify_one(&self, document: &[u8], signature: &Signature, now: SystemTime) -> Result<Signer, OpenPgpError> {
        let signed_at = check_signature(signature, now)?;
        let mut worst = OpenPgpError::UnknownKey {
            issuer: issuer_of(signature),
        };
        for (certificate, key) in self.candidates(signature) {
            let fingerprint = key.fingerprint();
            let outcome = if !key.verifies(signature, document) {
                Err(OpenPgpError::Mismatch { key: fingerprint })
            } else if expired(signed_at, signature.signature_expiration_time(), now) {
                Err(OpenPgpError::SignatureExpired { key: fingerprint })
            } else {
                validity::check(certificate, &key, now)
            };
            match outcome {
                Ok(()) => return Ok(key_ring::signer(certificate, signed_at)),
                Err(error) if error.rank() >= worst.rank() => worst = error,
                Err(_) => {}
            }
        }
        Err(worst)
    }
}

fn check_length(what: &'static str, bytes: &[u8], max_bytes: usize) -> Result<(), OpenPgpError> {
    if bytes.len() > max_bytes {
        return Err(OpenPgpError::TooLong {
            what,
            size_bytes: bytes.len(),
            max_bytes,
        });
    }
    Ok(())
}

/// The signature packets of a signature file.
fn read_signatures(bytes: &[u8]) -> Result<Vec<Signature>, OpenPgpError> {
    let malformed = |problem: &str| OpenPgpError::Malformed {
        problem: problem.to_owned(),
    };
    let trimmed = bytes.trim_ascii();
    if trimmed.starts_with(b"-----BEGIN ") {
        let options = DearmorOptions::new().set_limit(SIGNATURE_MAX_BYTES);
        let mut dearmor = Dearmor::with_options(trimmed, options);
        dearmor.read_header().map_err(|error| malformed(&error.to_string()))?;
        if dearmor.typ != Some(BlockType::Signature) {
            return Err(malformed("its armour is not PGP SIGNATURE"));
        }
        return signature_packets(PacketParser::new(BufReader::new(dearmor)));
    }
    if bytes.first().is_none_or(|first| first & 0x80 == 0) {
        return Err(malformed("it is neither armour nor packets"));
    }
    signature_packets(PacketParser::new(bytes))
}

fn signature_packets(
    packets: impl Iterator<Item = pgp::errors::Result<Packet>>,
) -> Result<Vec<Signature>, OpenPgpError> {
    let mut signatures = Vec::new();
    for packet in packets.take(PACKETS_MAX) {
        match packet {
            Ok(Packet::Signature(signature)) => signatures.push(signature),
            // Markers and padding are to be ignored (RFC 9580 §5.8, §5.14), and a signature of a version or kind not known is
            // passed over beside one that is.
            Ok(Packet::Marker(_) | Packet::Padding(_)) | Err(pgp::errors::Error::Unsupported { .. }) => {}
            Ok(_) => {
                return Err(OpenPgpError::Malformed {
                    problem: "it holds other things than signatures".to_owned(),
                });
            }
            Err(error) => {
                return Err(OpenPgpError::Malformed {
                    problem: error.to_string().chars().take(200).collect(),
                });
            }
        }
    }
    Ok(signatures)
}

/// What can be said of a signature before its key is known; tells when it was made.
fn check_signature(signature: &Signature, now: SystemTime) -> Result<SystemTime, OpenPgpError> {
    let wrong = |problem: String| OpenPgpError::WrongKind { problem };
    match signature.typ() {
        Some(SignatureType::Binary | SignatureType::Text) => {}
        other => return Err(wrong(format!("type {other:?}"))),
    }
    let Some(hash) = signature.hash_alg() else {
        return Err(wrong("version not known".to_owned()));
    };
    if !is_strong(hash) {
        return Err(OpenPgpError::WeakHash { hash: hash.to_string() });
    }
    if let Some(number) = unknown_critical(signature) {
        return Err(wrong(format!("critical subpacket {number}")));
    }
    let Some(created) = signature.created() else {
        return Err(wrong("no date".to_owned()));
    };
    let created = SystemTime::from(created);
    if created > now + CLOCK_SKEW {
        return Err(OpenPgpError::SignatureInFuture);
    }
    Ok(created)
}

/// Hashes whose collisions nobody can make.
fn is_strong(hash: HashAlgorithm) -> bool {
    matches!(
        hash,
        HashAlgorithm::Sha224
            | HashAlgorithm::Sha256
            | HashAlgorithm::Sha384
            | HashAlgorithm::Sha512
            | HashAlgorithm::Sha3_256
            | HashAlgorithm::Sha3_512
    )
}

/// Number of a subpacket that must be understood and is not (RFC 9580 §5.2.3.7); notations are never understood here.
fn unknown_critical(signature: &Signature) -> Option<u8> {
    let subpackets = signature.config()?.hashed_subpackets();
    subpackets
        .filter(|subpacket| subpacket.is_critical)
        .find_map(|subpacket| match &subpacket.data {
            SubpacketData::Other(number, _) | SubpacketData::Experimental(number, _) => Some(*number),
            SubpacketData::Notation(_) => Some(20),
            _ => None,
        })
}

/// Whether a time `after` `start` has come; no time, or zero, never comes (RFC 9580 §5.2.3.13, §5.2.3.18).
fn expired(start: SystemTime, after: Option<pgp::types::Duration>, now: SystemTime) -> bool {
    let after = after.map(Duration::from).filter(|after| !after.is_zero());
    after.is_some_and(|after| start + after <= now)
}

fn issuer_of(signature: &Signature) -> String {
    let fingerprint = signature
        .issuer_fingerprint()
        .first()
        .map(|fingerprint| format!("key {fingerprint:X}"));
    let id = || {
        signature
            .issuer_key_id()
            .first()
            .map(|id| format!("key {}", crate::digests::hex(id.as_ref()).to_uppercase()))
    };
    fingerprint
        .or_else(id)
        .unwrap_or_else(|| "a key it does not name".to_owned())
}
