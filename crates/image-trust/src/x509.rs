//! Signatures over images by the key of an X.509 certificate, as the image service documents them ("Image Signature
//! Verification", and `cursive`, which it does that with).
//!
//! Four properties of the image make one signature, over all bytes of the image as it was uploaded, before any conversion:
//!
//! | property | value |
//! |---|---|
//! | `img_signature` | the signature, base64 |
//! | `img_signature_hash_method` | `SHA-224` `SHA-256` `SHA-384` `SHA-512` |
//! | `img_signature_key_type` | `RSA-PSS` (MGF1 with the same hash, longest salt), `DSA`, `ECC_SECP384R1`, `ECC_SECP521R1` |
//! | `img_signature_certificate_uuid` | the UUID under which the key manager has the certificate |
//!
//! In place of a key manager there is a [`CertificateDirectory`]. Four more key types are documented, all on binary curves
//! (`ECC_SECT571K1`, `ECC_SECT409K1`, `ECC_SECT571R1`, `ECC_SECT409R1`): cryptographic libraries have dropped these, and so has
//! the image service; they are refused with a code of their own.
//!
//! Stricter than the image service: some of the four properties without the others are an error and not "unsigned"; the key's
//! curve has to be the one named; a certificate must be within its dates and meant for signatures; and where a [`TrustStore`]
//! is configured, it must lead to a root there. The documented limit of 255 characters for the signature is not kept: a key of
//! 2048 bits would not fit. Revocation lists are not read: take a certificate out of the directory instead.

mod certificate;
mod signer;
mod trust_store;

use std::path::PathBuf;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use uuid::Uuid;

pub use certificate::{CERTIFICATE_MAX_BYTES, Certificate, CertificateDirectory};
pub use signer::{Signer, SignerError};
pub use trust_store::TrustStore;

use crate::digests::{DigestSet, HashMethod};
use crate::public_key::{KeyError, KeyKind, Padding};

/// Property: the signature.
pub const SIGNATURE: &str = "img_signature";
/// Property: the hash it is over.
pub const HASH_METHOD: &str = "img_signature_hash_method";
/// Property: the kind of key and signature.
pub const KEY_TYPE: &str = "img_signature_key_type";
/// Property: whose key.
pub const CERTIFICATE_UUID: &str = "img_signature_certificate_uuid";

/// Longest signature, characters of base64: an RSA key of 8192 bits makes 1368, and line breaks may come on top.
const SIGNATURE_MAX_CHARS: usize = 2048;

/// Why an image's signature does not make it trusted.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum X509Error {
    /// Some of the four properties are there, this one is not.
    #[error("the image has signature properties, but no {missing}: set all four or none")]
    Incomplete {
        /// Name of the property.
        missing: &'static str,
    },
    /// A property has a value that is none of the documented ones.
    #[error("property {name} is {value:?}, which is none of the documented values")]
    Property {
        /// Name of the property.
        name: &'static str,
        /// Its value, shortened to 100 characters.
        value: String,
    },
    /// A documented key type that nobody supports any more.
    #[error(
        "{KEY_TYPE} {key_type} is a binary curve, which is not supported: sign with RSA-PSS, ECC_SECP384R1 or ECC_SECP521R1"
    )]
    KeyTypeUnsupported {
        /// The type.
        key_type: String,
    },
    /// No directory of certificates is configured.
    #[error(
        "the image is signed, but no directory of certificates is configured: set certificates in the trust section"
    )]
    NoDirectory,
    /// The directory has no such certificate.
    #[error("certificate {uuid} is not in {}: put it there as {uuid}.pem if you trust it", directory.display())]
    CertificateMissing {
        /// Its name.
        uuid: Uuid,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// The file cannot be read.
    #[error("certificate file {} cannot be read: {problem}", path.display())]
    CertificateUnreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        problem: String,
    },
    /// The file is no certificate.
    #[error("the certificate cannot be decoded: it has to be one X.509 certificate in PEM or DER")]
    CertificateMalformed,
    /// The key in the certificate cannot be used.
    #[error("the certificate's key cannot be used")]
    Key(#[source] KeyError),
    /// The key is not of the kind the image says.
    #[error("the certificate's key is {key:?}, but {KEY_TYPE} says {key_type}")]
    KeyTypeMismatch {
        /// What it is.
        key: KeyKind,
        /// What was said.
        key_type: &'static str,
    },
    /// Its first day has not come.
    #[error("the certificate is not valid yet: check this host's clock")]
    NotYetValid,
    /// Its last day is over.
    #[error("the certificate has expired: sign the image with a current one")]
    Expired,
    /// It is for other things.
    #[error("the certificate's key is not meant for signatures (key usage)")]
    Usage,
    /// It has a critical extension that is not understood.
    #[error("the certificate has critical extension {oid}, which is not understood here")]
    CriticalExtension {
        /// Its object identifier.
        oid: String,
    },
    /// No chain leads to a configured root.
    #[error(
        "the certificate does not lead to a root in the trust store: add its issuers, with their root, if you trust them"
    )]
    Untrusted,
    /// The digest the signature is over was not computed.
    #[error(
        "the image's {method} digest was not computed, so its signature cannot be verified: verify the image again"
    )]
    NotHashed {
        /// The hash.
        method: HashMethod,
    },
    /// The image is not what was signed.
    #[error(
        "the signature does not fit the image: the bytes, the certificate or the signature's parameters are others"
    )]
    Mismatch,
}

impl X509Error {
    /// Stable name of the failure.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Incomplete { .. } => "x509_incomplete",
            Self::Property { .. } => "x509_property",
            Self::KeyTypeUnsupported { .. } => "x509_key_type_unsupported",
            Self::NoDirectory => "x509_no_directory",
            Self::CertificateMissing { .. } => "x509_certificate_missing",
            Self::CertificateUnreadable { .. } => "x509_certificate_unreadable",
            Self::CertificateMalformed => "x509_certificate_malformed",
            Self::Key(_) => "x509_key",
            Self::KeyTypeMismatch { .. } => "x509_key_type_mismatch",
            Self::NotYetValid => "x509_certificate_not_yet_valid",
            Self::Expired => "x509_certificate_expired",
            Self::Usage => "x509_certificate_usage",
            Self::CriticalExtension { .. } => "x509_certificate_extension",
            Self::Untrusted => "x509_certificate_untrusted",
            Self::NotHashed { .. } => "x509_not_hashed",
            Self::Mismatch => "x509_mismatch",
        }
    }
}

/// What the four properties say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSignature {
    signature: Vec<u8>,
    method: HashMethod,
    key_type: KeyType,
    certificate: Uuid,
}

/// Documented values of [`KEY_TYPE`] that are supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyType {
    RsaPss,
    Dsa,
    P384,
    P521,
}

impl KeyType {
    const fn name(self) -> &'static str {
        match self {
            Self::RsaPss => "RSA-PSS",
            Self::Dsa => "DSA",
            Self::P384 => "ECC_SECP384R1",
            Self::P521 => "ECC_SECP521R1",
        }
    }

    const fn kind(self) -> KeyKind {
        match self {
            Self::RsaPss => KeyKind::Rsa,
            Self::Dsa => KeyKind::Dsa,
            Self::P384 => KeyKind::P384,
            Self::P521 => KeyKind::P521,
        }
    }
}

impl ImageSignature {
    /// Reads the properties of an image, which `property` looks up; none of the four means an unsigned image.
    ///
    /// # Errors
    ///
    /// When some are missing or one has no documented value.
    pub fn from_properties<'a>(property: impl Fn(&str) -> Option<&'a str>) -> Result<Option<Self>, X509Error> {
        let names = [SIGNATURE, HASH_METHOD, KEY_TYPE, CERTIFICATE_UUID];
        let [signature, method, key_type, certificate] = names.map(|name| property(name).ok_or(name));
        if [signature, method, key_type, certificate].iter().all(Result::is_err) {
            return Ok(None);
        }
        let incomplete = |missing| X509Error::Incomplete { missing };
        Ok(Some(Self {
            signature: signature_of(signature.map_err(incomplete)?)?,
            method: method_of(method.map_err(incomplete)?)?,
            key_type: key_type_of(key_type.map_err(incomplete)?)?,
            certificate: uuid_of(certificate.map_err(incomplete)?)?,
        }))
    }

    /// By which hash the image's digest is needed: give it to [`crate::Digests`] before the bytes come.
    pub fn hash_method(&self) -> HashMethod {
        self.method
    }

    /// Which certificate is needed.
    pub fn certificate(&self) -> Uuid {
        self.certificate
    }

    /// Whether the image with these `digests` was signed by the key of `certificate`, and that one holds at the time `now`.
    ///
    /// # Errors
    ///
    /// Every way of not being so.
    pub fn verify(
        &self,
        digests: &DigestSet,
        certificate: &Certificate,
        roots: Option<&TrustStore>,
        now: SystemTime,
    ) -> Result<(), X509Error> {
        certificate.check_for_signing(now)?;
        if let Some(roots) = roots {
            roots.check(certificate, now)?;
        }
        let key = certificate.key().map_err(X509Error::Key)?;
        if key.kind() != self.key_type.kind() {
            return Err(X509Error::KeyTypeMismatch {
                key: key.kind(),
                key_type: self.key_type.name(),
            });
        }
        let digest = digests
            .get(self.method)
            .ok_or(X509Error::NotHashed { method: self.method })?;
        if !key.verifies_digest(self.method, digest, &self.signature, Padding::PssMaxSalt) {
            return Err(X509Error::Mismatch);
        }
        Ok(())
    }
}

fn bad(name: &'static str, value: &str) -> X509Error {
    X509Error::Property {
        name,
        value: value.chars().take(100).collect(),
    }
}

fn signature_of(value: &str) -> Result<Vec<u8>, X509Error> {
    if value.len() > SIGNATURE_MAX_CHARS {
        return Err(bad(SIGNATURE, value));
    }
    let digits: String = value.split_ascii_whitespace().collect();
    let signature = STANDARD.decode(digits).ok().filter(|signature| !signature.is_empty());
    signature.ok_or_else(|| bad(SIGNATURE, value))
}

fn method_of(value: &str) -> Result<HashMethod, X509Error> {
    match value {
        "SHA-224" => Ok(HashMethod::Sha224),
        "SHA-256" => Ok(HashMethod::Sha256),
        "SHA-384" => Ok(HashMethod::Sha384),
        "SHA-512" => Ok(HashMethod::Sha512),
        _ => Err(bad(HASH_METHOD, value)),
    }
}

fn key_type_of(value: &str) -> Result<KeyType, X509Error> {
    match value {
        "RSA-PSS" => Ok(KeyType::RsaPss),
        "DSA" => Ok(KeyType::Dsa),
        "ECC_SECP384R1" => Ok(KeyType::P384),
        "ECC_SECP521R1" => Ok(KeyType::P521),
        "ECC_SECT571K1" | "ECC_SECT409K1" | "ECC_SECT571R1" | "ECC_SECT409R1" => Err(X509Error::KeyTypeUnsupported {
            key_type: value.to_owned(),
        }),
        _ => Err(bad(KEY_TYPE, value)),
    }
}

fn uuid_of(value: &str) -> Result<Uuid, X509Error> {
    Uuid::parse_str(value).map_err(|_| bad(CERTIFICATE_UUID, value))
}

#[cfg(test)]
#[path = "x509_tests.rs"]
mod tests;
