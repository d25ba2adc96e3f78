//! Public keys of the kinds images are signed with, and the verification of a signature over a digest.

use dsa::signature::hazmat::PrehashVerifier as _;
use ed25519_dalek::Signature as Ed25519Signature;
use rsa::pkcs1::DecodeRsaPublicKey as _;
use rsa::{Pkcs1v15Sign, Pss, RsaPublicKey, traits::PublicKeyParts as _};
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode as _, Encode as _};
use x509_cert::spki::{SubjectPublicKeyInfoOwned, SubjectPublicKeyInfoRef};

use crate::digests::HashMethod;

/// Longest key file, bytes. An RSA key of 8192 bits is 1.4 KiB of PEM, a DSA key with its parameters 2 KiB.
pub const KEY_MAX_BYTES: usize = 64 << 10;
/// Fewest bits of an RSA modulus or a DSA prime (NIST SP 800-131A revision 2: fewer are disallowed for signatures).
const MODULUS_MIN_BITS: usize = 2048;
/// Most bits of either: more cost the verifier without making anything safer.
const MODULUS_MAX_BITS: usize = 8192;
/// Longest encoding of a DSA key, bytes: prime, generator and key of 4096 bits each, and the order of their group.
const DSA_MAX_BYTES: usize = 2048;

/// RFC 3279 §2.3.1.
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// RFC 3279 §2.3.2.
const DSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10040.4.1");
/// RFC 5480 §2.1.1.
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
/// RFC 8410 §3.
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
/// Curves, RFC 5480 §2.1.1.1.
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const P521: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");

/// Why a key cannot be used.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// The text is not PEM of `PUBLIC KEY`, or the bytes in it are no key.
    #[error("the key cannot be read: it has to be PEM of PUBLIC KEY (openssl pkey -pubout)")]
    Malformed,
    /// A kind of key, or a curve, that is not supported.
    #[error("keys of kind {kind} are not supported: use RSA, ECDSA on P-256, P-384 or P-521, or Ed25519")]
    Unsupported {
        /// Object identifier of the algorithm or the curve.
        kind: String,
    },
    /// Too few bits, or absurdly many.
    #[error("the key has {bits} bits, not {MODULUS_MIN_BITS} to {MODULUS_MAX_BITS}: sign with another key")]
    Size {
        /// Bits of the modulus or prime.
        bits: usize,
    },
}

impl KeyError {
    /// Stable name of the failure.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed => "key_malformed",
            Self::Unsupported { .. } => "key_unsupported",
            Self::Size { .. } => "key_weak",
        }
    }
}

/// The kind of a key, for choosing how a signature is checked and for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA, either padding.
    Rsa,
    /// DSA.
    Dsa,
    /// ECDSA on NIST P-256 (secp256r1).
    P256,
    /// ECDSA on NIST P-384 (secp384r1).
    P384,
    /// ECDSA on NIST P-521 (secp521r1).
    P521,
    /// Ed25519.
    Ed25519,
}

/// How an RSA signature is padded (RFC 8017 §8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// RSASSA-PKCS1-v1_5.
    Pkcs1,
    /// RSASSA-PSS, MGF1 with the same hash, a salt of so many bytes.
    Pss(usize),
    /// RSASSA-PSS, MGF1 with the same hash, the longest salt the modulus leaves room for.
    PssMaxSalt,
}

/// A public key that holds to the limits above.
#[derive(Debug, Clone, PartialEq)]
pub struct PublicKey(Inner);

#[derive(Debug, Clone, PartialEq)]
enum Inner {
    Rsa(RsaPublicKey),
    Dsa(Box<dsa::VerifyingKey>),
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
    P521(p521::PublicKey),
    Ed25519(ed25519_dalek::VerifyingKey),
}

impl PublicKey {
    /// Reads `-----BEGIN PUBLIC KEY-----` (RFC 7468 §13), the form cosign and openssl write.
    ///
    /// # Errors
    ///
    /// When the text is something else, or the key is not one to trust.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        if pem.len() > KEY_MAX_BYTES {
            return Err(KeyError::Malformed);
        }
        let (label, der) = x509_cert::der::pem::decode_vec(pem).map_err(|_| KeyError::Malformed)?;
        if label != "PUBLIC KEY" {
            return Err(KeyError::Malformed);
        }
        let info = SubjectPublicKeyInfoOwned::from_der(&der).map_err(|_| KeyError::Malformed)?;
        Self::from_info(&info)
    }

    /// Reads the key of a certificate.
    ///
    /// # Errors
    ///
    /// As [`PublicKey::from_pem`].
    pub fn from_info(info: &SubjectPublicKeyInfoOwned) -> Result<Self, KeyError> {
        let malformed = KeyError::Malformed;
        let key = info.subject_public_key.as_bytes().ok_or(KeyError::Malformed)?;
        match info.algorithm.oid {
            RSA => Self::rsa(key),
            DSA => Self::dsa(info),
            EC => {
                let parameters = info.algorithm.parameters.as_ref().ok_or(KeyError::Malformed)?;
                let curve: ObjectIdentifier = parameters.decode_as().map_err(|_| KeyError::Malformed)?;
                Self::ec(curve, key)
            }
            ED25519 => {
                let key = key.try_into().map_err(|_| KeyError::Malformed)?;
                let key = ed25519_dalek::VerifyingKey::from_bytes(key).map_err(|_| KeyError::Malformed)?;
                if key.is_weak() {
                    return Err(malformed);
                }
                Ok(Self(Inner::Ed25519(key)))
            }
            other => Err(KeyError::Unsupported {
                kind: other.to_string(),
            }),
        }
    }

    fn rsa(key: &[u8]) -> Result<Self, KeyError> {
        let parts = rsa::pkcs1::RsaPublicKey::try_from(key).map_err(|_| KeyError::Malformed)?;
        check_bits(bits(parts.modulus.as_bytes()))?;
        // The general constructor stops at 4096 bits.
        let number = rsa::BigUint::from_bytes_be;
        let key = RsaPublicKey::from_pkcs1_der(key).or_else(|_| {
            RsaPublicKey::new_with_max_size(
                number(parts.modulus.as_bytes()),
                number(parts.public_exponent.as_bytes()),
                MODULUS_MAX_BITS,
            )
        });
        key.map(|key| Self(Inner::Rsa(key))).map_err(|_| KeyError::Malformed)
    }

    fn dsa(info: &SubjectPublicKeyInfoOwned) -> Result<Self, KeyError> {
        let der = info.to_der().map_err(|_| KeyError::Malformed)?;
        // Before any arithmetic with numbers of the key, which are shorter than its encoding.
        if der.len() > DSA_MAX_BYTES {
            return Err(KeyError::Malformed);
        }
        let info = SubjectPublicKeyInfoRef::from_der(&der).map_err(|_| KeyError::Malformed)?;
        let key = dsa::VerifyingKey::try_from(info).map_err(|_| KeyError::Malformed)?;
        check_bits(key.components().p().bits())?;
        Ok(Self(Inner::Dsa(Box::new(key))))
    }

    fn ec(curve: ObjectIdentifier, point: &[u8]) -> Result<Self, KeyError> {
        let inner = match curve {
            P256 => p256::ecdsa::VerifyingKey::from_sec1_bytes(point).ok().map(Inner::P256),
            P384 => p384::ecdsa::VerifyingKey::from_sec1_bytes(point).ok().map(Inner::P384),
            P521 => p521::PublicKey::from_sec1_bytes(point).ok().map(Inner::P521),
            other => {
                return Err(KeyError::Unsupported {
                    kind: other.to_string(),
                });
            }
        };
        inner.map(Self).ok_or(KeyError::Malformed)
    }

    /// What kind of key it is.
    pub fn kind(&self) -> KeyKind {
        match &self.0 {
            Inner::Rsa(_) => KeyKind::Rsa,
            Inner::Dsa(_) => KeyKind::Dsa,
            Inner::P256(_) => KeyKind::P256,
            Inner::P384(_) => KeyKind::P384,
            Inner::P521(_) => KeyKind::P521,
            Inner::Ed25519(_) => KeyKind::Ed25519,
        }
    }

    /// Whether `signature` over `digest`, made by `method`, is by this key; `padding` counts for RSA only.
    ///
    /// ECDSA and DSA signatures are DER (RFC 3279 §2.2.2, §2.2.3). Ed25519 signs messages, not digests, and says no.
    pub fn verifies_digest(&self, method: HashMethod, digest: &[u8], signature: &[u8], padding: Padding) -> bool {
        if digest.len() != method.digest_bytes() {
            return false;
        }
        match &self.0 {
            Inner::Rsa(key) => rsa_verifies(key, method, digest, signature, padding),
            Inner::Dsa(key) => dsa::Signature::try_from(signature)
                .is_ok_and(|signature| key.verify_prehash(digest, &signature).is_ok()),
            Inner::P256(key) => p256::ecdsa::Signature::from_der(signature)
                .is_ok_and(|signature| key.verify_prehash(digest, &signature).is_ok()),
            Inner::P384(key) => p384::ecdsa::Signature::from_der(signature)
                .is_ok_and(|signature| key.verify_prehash(digest, &signature).is_ok()),
            Inner::P521(key) => {
                // The library wants at least half a field; a digest is a number, so zeroes in front change nothing.
                let mut field = [0; 66];
                let Some(end) = field.len().checked_sub(digest.len()).and_then(|at| field.get_mut(at..)) else {
                    return false;
                };
                end.copy_from_slice(digest);
                p521::ecdsa::Signature::from_der(signature).is_ok_and(|signature| {
                    p521::ecdsa::VerifyingKey::from_affine(*key.as_affine())
                        .is_ok_and(|key| key.verify_prehash(&field, &signature).is_ok())
                })
            }
            Inner::Ed25519(_) => false,
        }
    }

    /// Whether `signature` over `message` is by this key: Ed25519 (RFC 8032, pure), or another kind over the message's digest
    /// by `method`.
    pub fn verifies_message(&self, method: HashMethod, message: &[u8], signature: &[u8], padding: Padding) -> bool {
        match &self.0 {
            Inner::Ed25519(key) => Ed25519Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify_strict(message, &signature).is_ok()),
            _ => self.verifies_digest(method, &method.digest(message), signature, padding),
        }
    }
}

fn rsa_verifies(key: &RsaPublicKey, method: HashMethod, digest: &[u8], signature: &[u8], padding: Padding) -> bool {
    if signature.len() != key.size() {
        return false;
    }
    if padding == Padding::Pkcs1 {
        let scheme = match method {
            HashMethod::Sha224 => Pkcs1v15Sign::new::<rsa::sha2::Sha224>(),
            HashMethod::Sha256 => Pkcs1v15Sign::new::<rsa::sha2::Sha256>(),
            HashMethod::Sha384 => Pkcs1v15Sign::new::<rsa::sha2::Sha384>(),
            HashMethod::Sha512 => Pkcs1v15Sign::new::<rsa::sha2::Sha512>(),
        };
        return key.verify(scheme, digest, signature).is_ok();
    }
    let salt_bytes = match padding {
        // RFC 8017 §9.1.1: the encoded message holds the hash, the salt and two bytes more.
        Padding::PssMaxSalt => (key.n().bits() - 1).div_ceil(8).saturating_sub(digest.len() + 2),
        Padding::Pss(salt_bytes) => salt_bytes.min(key.size()),
        Padding::Pkcs1 => digest.len(),
    };
    let scheme = match method {
        HashMethod::Sha224 => Pss::new_with_salt::<rsa::sha2::Sha224>(salt_bytes),
        HashMethod::Sha256 => Pss::new_with_salt::<rsa::sha2::Sha256>(salt_bytes),
        HashMethod::Sha384 => Pss::new_with_salt::<rsa::sha2::Sha384>(salt_bytes),
        HashMethod::Sha512 => Pss::new_with_salt::<rsa::sha2::Sha512>(salt_bytes),
    };
    key.verify(scheme, digest, signature).is_ok()
}

/// Bits of a big-endian number.
fn bits(number: &[u8]) -> usize {
    let number = number
        .iter()
        .position(|&byte| byte != 0)
        .and_then(|at| number.get(at..));
    number.map_or(0, |number| {
        let first = number.first().map_or(0, |byte| byte.leading_zeros() as usize);
        number.len() * 8 - first
    })
}

fn check_bits(bits: usize) -> Result<(), KeyError> {
    if !(MODULUS_MIN_BITS..=MODULUS_MAX_BITS).contains(&bits) {
        return Err(KeyError::Size { bits });
    }
    Ok(())
}
