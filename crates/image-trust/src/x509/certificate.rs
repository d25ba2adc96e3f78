//! One certificate: its dates, what it is for, its key, and whether another one's key signed it.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::PathBuf;
use std::time::SystemTime;

use rsa::pkcs1::RsaPssParams;
use uuid::Uuid;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode as _, Reader as _, SliceReader, pem};
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage};
use x509_cert::name::Name;
use x509_cert::spki::AlgorithmIdentifierOwned;

use super::X509Error;
use crate::digests::HashMethod;
use crate::public_key::{KeyError, Padding, PublicKey};

/// Longest certificate file, bytes.
pub const CERTIFICATE_MAX_BYTES: usize = 64 << 10;

/// Extensions whose meaning is heeded here, or asks nothing of a verifier of images: basic constraints, key usage, extended
/// key usage, alternative names of both parties, key identifiers of both, policies (RFC 5280 §4.2.1).
const UNDERSTOOD: [ObjectIdentifier; 8] = [
    ObjectIdentifier::new_unwrap("2.5.29.19"),
    ObjectIdentifier::new_unwrap("2.5.29.15"),
    ObjectIdentifier::new_unwrap("2.5.29.37"),
    ObjectIdentifier::new_unwrap("2.5.29.17"),
    ObjectIdentifier::new_unwrap("2.5.29.18"),
    ObjectIdentifier::new_unwrap("2.5.29.14"),
    ObjectIdentifier::new_unwrap("2.5.29.35"),
    ObjectIdentifier::new_unwrap("2.5.29.32"),
];

/// RSASSA-PSS as a certificate's signature (RFC 4055 §3.1).
const RSASSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");
/// MGF1 (RFC 4055 §2.2).
const MGF1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.8");

/// An X.509 certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    parsed: x509_cert::Certificate,
    /// The part that is signed, as it was encoded.
    signed: Vec<u8>,
}

impl Certificate {
    /// Reads one certificate, PEM or DER.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub fn parse(bytes: &[u8]) -> Result<Self, X509Error> {
        if bytes.len() > CERTIFICATE_MAX_BYTES {
            return Err(X509Error::CertificateMalformed);
        }
        if bytes.first() == Some(&0x30) {
            return Self::from_der(bytes);
        }
        let (label, der) = pem::decode_vec(bytes).map_err(|_| X509Error::CertificateMalformed)?;
        if label != "CERTIFICATE" {
            return Err(X509Error::CertificateMalformed);
        }
        Self::from_der(&der)
    }

    fn from_der(der: &[u8]) -> Result<Self, X509Error> {
        let parse = || {
            let parsed = x509_cert::Certificate::from_der(der)?;
            // Certificate ::= SEQUENCE { tbsCertificate, … }: the first element with its header, to the byte.
            let signed = SliceReader::new(der)?.sequence(|fields| {
                let signed = fields.tlv_bytes()?.to_vec();
                while !fields.is_finished() {
                    fields.tlv_bytes()?;
                }
                Ok(signed)
            })?;
            Ok::<_, x509_cert::der::Error>(Self { parsed, signed })
        };
        let certificate = parse().map_err(|_| X509Error::CertificateMalformed)?;
        // RFC 5280 §4.1.1.2: both must be the same, else the inner one would be an unsigned statement.
        if certificate.parsed.signature_algorithm != certificate.parsed.tbs_certificate.signature {
            return Err(X509Error::CertificateMalformed);
        }
        Ok(certificate)
    }

    /// Its public key.
    ///
    /// # Errors
    ///
    /// When the key is not one to trust.
    pub fn key(&self) -> Result<PublicKey, KeyError> {
        PublicKey::from_info(&self.parsed.tbs_certificate.subject_public_key_info)
    }

    pub(super) fn subject(&self) -> &Name {
        &self.parsed.tbs_certificate.subject
    }

    pub(super) fn issuer(&self) -> &Name {
        &self.parsed.tbs_certificate.issuer
    }

    /// Whether it is within its dates, has nothing critical that is not understood, and is for signatures.
    pub(super) fn check_for_signing(&self, now: SystemTime) -> Result<(), X509Error> {
        self.check_dates(now)?;
        self.check_extensions()?;
        match self.key_usage()? {
            Some(usage) if !usage.digital_signature() && !usage.non_repudiation() => Err(X509Error::Usage),
            _ => Ok(()),
        }
    }

    /// Whether it may have issued others at the time `now`: a CA by its basic constraints and, where it has one, its key usage.
    /// Tells how many CAs may stand between it and a certificate that is none.
    pub(super) fn issuing_depth(&self, now: SystemTime) -> Option<usize> {
        self.check_dates(now).and_then(|()| self.check_extensions()).ok()?;
        let (_, constraints) = self.parsed.tbs_certificate.get::<BasicConstraints>().ok()??;
        let usage = self.key_usage().ok()?;
        if !constraints.ca || usage.is_some_and(|usage| !usage.key_cert_sign()) {
            return None;
        }
        Some(constraints.path_len_constraint.map_or(usize::MAX, usize::from))
    }

    fn check_dates(&self, now: SystemTime) -> Result<(), X509Error> {
        let validity = &self.parsed.tbs_certificate.validity;
        if now < validity.not_before.to_system_time() {
            return Err(X509Error::NotYetValid);
        }
        if now > validity.not_after.to_system_time() {
            return Err(X509Error::Expired);
        }
        Ok(())
    }

    fn check_extensions(&self) -> Result<(), X509Error> {
        let extensions = self.parsed.tbs_certificate.extensions.iter().flatten();
        for extension in extensions {
            if extension.critical && !UNDERSTOOD.contains(&extension.extn_id) {
                return Err(X509Error::CriticalExtension {
                    oid: extension.extn_id.to_string(),
                });
            }
        }
        Ok(())
    }

    fn key_usage(&self) -> Result<Option<KeyUsage>, X509Error> {
        let usage = self.parsed.tbs_certificate.get::<KeyUsage>();
        usage
            .map(|usage| usage.map(|(_, usage)| usage))
            .map_err(|_| X509Error::CertificateMalformed)
    }

    /// Whether the key of `issuer` signed this certificate, by an algorithm nobody has broken.
    pub(super) fn is_signed_by(&self, issuer: &Self) -> bool {
        let Some(signature) = self.parsed.signature.as_bytes() else {
            return false;
        };
        let Some((method, padding)) = scheme(&self.parsed.signature_algorithm) else {
            return false;
        };
        issuer
            .key()
            .is_ok_and(|key| key.verifies_message(method, &self.signed, signature, padding))
    }
}

/// Hash and padding of a certificate's signature; none for those that are broken (MD5, SHA-1) or not known.
fn scheme(algorithm: &AlgorithmIdentifierOwned) -> Option<(HashMethod, Padding)> {
    let method = match algorithm.oid.to_string().as_str() {
        // RFC 4055 §5 (RSA), RFC 5758 §3.1 (DSA), §3.2 (ECDSA), RFC 8410 §3 (Ed25519, where the method does not count).
        "1.2.840.113549.1.1.14" | "2.16.840.1.101.3.4.3.1" | "1.2.840.10045.4.3.1" => HashMethod::Sha224,
        "1.2.840.113549.1.1.11" | "2.16.840.1.101.3.4.3.2" | "1.2.840.10045.4.3.2" | "1.3.101.112" => {
            HashMethod::Sha256
        }
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => HashMethod::Sha384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => HashMethod::Sha512,
        _ if algorithm.oid == RSASSA_PSS => return pss(algorithm),
        _ => return None,
    };
    Some((method, Padding::Pkcs1))
}

fn pss(algorithm: &AlgorithmIdentifierOwned) -> Option<(HashMethod, Padding)> {
    let parameters: RsaPssParams<'_> = algorithm.parameters.as_ref()?.decode_as().ok()?;
    let mask_hash = parameters.mask_gen.parameters.map(|hash| hash.oid);
    if parameters.mask_gen.oid != MGF1 || mask_hash != Some(parameters.hash.oid) {
        return None;
    }
    // RFC 5754 §2.
    let method = match parameters.hash.oid.to_string().as_str() {
        "2.16.840.1.101.3.4.2.4" => HashMethod::Sha224,
        "2.16.840.1.101.3.4.2.1" => HashMethod::Sha256,
        "2.16.840.1.101.3.4.2.2" => HashMethod::Sha384,
        "2.16.840.1.101.3.4.2.3" => HashMethod::Sha512,
        _ => return None,
    };
    Some((method, Padding::Pss(parameters.salt_len.into())))
}

/// What stands in for a key manager: a directory in which certificate `uuid` is `uuid.pem`, `uuid.crt` or `uuid.der`.
///
/// The names of files are made from a parsed UUID, so an image's properties lead nowhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateDirectory {
    path: PathBuf,
}

impl CertificateDirectory {
    /// The directory at `path`; read when a certificate is looked for.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The certificate called `uuid`.
    ///
    /// # Errors
    ///
    /// When there is none, or its file cannot be read or is something else.
    pub fn get(&self, uuid: Uuid) -> Result<Certificate, X509Error> {
        for ending in ["pem", "crt", "der"] {
            let path = self.path.join(format!("{uuid}.{ending}"));
            let mut bytes = Vec::new();
            let read =
                File::open(&path).and_then(|file| file.take(CERTIFICATE_MAX_BYTES as u64 + 1).read_to_end(&mut bytes));
            match read {
                Ok(_) => return Certificate::parse(&bytes),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    let problem = error.to_string();
                    return Err(X509Error::CertificateUnreadable { path, problem });
                }
            }
        }
        Err(X509Error::CertificateMissing {
            uuid,
            directory: self.path.clone(),
        })
    }
}
