//! The other side of image signatures: images that are made on this host are signed with a key of its own.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use p384::ecdsa::signature::hazmat::PrehashSigner as _;
use p384::ecdsa::{Signature, SigningKey};
use p384::pkcs8::DecodePrivateKey as _;
use uuid::Uuid;
use x509_cert::der::pem;

use super::{CERTIFICATE_UUID, Certificate, HASH_METHOD, ImageSignature, KEY_TYPE, SIGNATURE, X509Error};
use crate::digests::{DigestSet, HashMethod};
use crate::public_key::{KEY_MAX_BYTES, Padding};

/// What is signed to see whether key and certificate belong together.
const PROBE: [u8; 32] = [0x5a; 32];

/// Why a key is not one to sign with.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum SignerError {
    /// The file is no such key.
    #[error(
        "the key cannot be read: it has to be PEM of PRIVATE KEY, ECDSA on P-384 and without a password \
         (openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384)"
    )]
    Malformed,
    /// The certificate is of another key.
    #[error("the key is not that of certificate {0}: put the certificate of this key into the directory")]
    OtherKey(Uuid),
}

/// A key and its certificate. Signatures are ECDSA on P-384 over SHA-256, in the four properties of the image service.
#[derive(Debug, Clone, PartialEq)]
pub struct Signer {
    key: SigningKey,
    certificate: Certificate,
    uuid: Uuid,
}

impl Signer {
    /// The key in `pem`, whose certificate others have under the name `uuid`.
    ///
    /// # Errors
    ///
    /// When it is no key to sign with, or not the certificate's.
    pub fn new(pem: &[u8], uuid: Uuid, certificate: Certificate) -> Result<Self, SignerError> {
        if pem.len() > KEY_MAX_BYTES {
            return Err(SignerError::Malformed);
        }
        let (label, der) = pem::decode_vec(pem).map_err(|_| SignerError::Malformed)?;
        if label != "PRIVATE KEY" {
            return Err(SignerError::Malformed);
        }
        let key = p384::SecretKey::from_pkcs8_der(&der).map_err(|_| SignerError::Malformed)?;
        let signer = Self {
            key: SigningKey::from(key),
            certificate,
            uuid,
        };
        let fits = signer.certificate.key().is_ok_and(|public| {
            let signature = signer.signature(&PROBE).unwrap_or_default();
            public.verifies_digest(HashMethod::Sha256, &PROBE, &signature, Padding::Pkcs1)
        });
        fits.then_some(signer).ok_or(SignerError::OtherKey(uuid))
    }

    /// Whether signatures made at the time `now` hold.
    ///
    /// # Errors
    ///
    /// When the certificate is over, or is for other things.
    pub fn check(&self, now: SystemTime) -> Result<(), X509Error> {
        self.certificate.check_for_signing(now)
    }

    /// The four properties of an image whose bytes have these digests; none without the SHA-256 among them. For the same digests
    /// they are the same (RFC 6979).
    pub fn sign(&self, digests: &DigestSet) -> Option<[(&'static str, String); 4]> {
        let signature = self.signature(digests.get(HashMethod::Sha256)?)?;
        Some([
            (SIGNATURE, STANDARD.encode(signature)),
            (HASH_METHOD, "SHA-256".to_owned()),
            (KEY_TYPE, "ECC_SECP384R1".to_owned()),
            (CERTIFICATE_UUID, self.uuid.to_string()),
        ])
    }

    /// The same, read.
    pub fn image_signature(&self, digests: &DigestSet) -> Option<ImageSignature> {
        let properties = self.sign(digests)?;
        let property = |name: &str| {
            let found = properties.iter().find(|(own, _)| *own == name);
            found.map(|(_, value)| value.as_str())
        };
        ImageSignature::from_properties(property).ok().flatten()
    }

    /// None for what is no digest.
    fn signature(&self, digest: &[u8]) -> Option<Vec<u8>> {
        let signature: Signature = self.key.sign_prehash(digest).ok()?;
        Some(signature.to_der().as_bytes().to_vec())
    }
}
