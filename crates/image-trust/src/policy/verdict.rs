//! What is known of an image, and what came of it.

use uuid::Uuid;

use crate::cosign::{CosignError, CosignSignature};
use crate::digests::{DigestError, DigestSet, Pinned};
use crate::openpgp::{OpenPgpError, Signer};
use crate::sums::SumsError;
use crate::x509::{ImageSignature, X509Error};

/// All that is known of an image when its bytes have gone by.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// Digests of the bytes as they came from the source: after unpacking a stream's compression, before any conversion.
    pub digests: &'a DigestSet,
    /// What the request says they are.
    pub pinned: Option<&'a Pinned>,
    /// A sums file that the request named.
    pub sums: Option<SumsFile<'a>>,
    /// For an image from a registry.
    pub container: Option<Container<'a>>,
    /// The image's signature properties.
    pub x509: Option<&'a ImageSignature>,
}

impl<'a> Evidence<'a> {
    /// Nothing but the bytes' `digests`.
    pub const fn of(digests: &'a DigestSet) -> Self {
        Self {
            digests,
            pinned: None,
            sums: None,
            container: None,
            x509: None,
        }
    }
}

/// A sums file and where to look in it.
#[derive(Debug, Clone, Copy)]
pub struct SumsFile<'a> {
    /// Its bytes.
    pub file: &'a [u8],
    /// The name under which the image is listed: see [`crate::name_of_url`].
    pub name: &'a str,
    /// The detached signature, if the request named one.
    pub signature: Option<&'a [u8]>,
}

/// What a registry says of an image.
#[derive(Debug, Clone, Copy)]
pub struct Container<'a> {
    /// Digest of the manifest, or index, that the reference led to: computed over its bytes, not taken from a header.
    pub manifest: &'a Pinned,
    /// The digest in the reference, if it has one.
    pub asked: Option<&'a Pinned>,
    /// Signatures found for the manifest.
    pub signatures: &'a [CosignSignature],
}

/// What came of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "an image that is not accepted must not become active"]
pub enum Verdict {
    /// It may be used.
    Accepted(Grounds),
    /// It must not be used.
    Refused(Refusal),
}

impl Verdict {
    /// Turns a refusal into an error.
    ///
    /// # Errors
    ///
    /// The refusal.
    pub fn into_result(self) -> Result<Grounds, Refusal> {
        match self {
            Self::Accepted(grounds) => Ok(grounds),
            Self::Refused(refusal) => Err(refusal),
        }
    }
}

/// Why an image may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grounds {
    /// Name of the rule that decided; none where no rule is about the source.
    pub rule: Option<String>,
    /// All that was verified; may be nothing where nothing is demanded.
    pub proofs: Vec<Proof>,
}

/// Something that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// The bytes have the digest in the request.
    Digest(Pinned),
    /// The manifest has the digest in the reference.
    Manifest(Pinned),
    /// The bytes have the digest in the sums file.
    Listed(Pinned),
    /// The sums file is by this signer.
    OpenPgp(Signer),
    /// A trusted key signed the manifest of this digest.
    Cosign(Pinned),
    /// The bytes were signed by the key of this certificate.
    X509(Uuid),
}

/// Why an image must not be used.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("image from {image} is not trusted ({})", by(rule.as_deref()))]
pub struct Refusal {
    /// Its source in its one spelling.
    pub image: String,
    /// Name of the rule that decided; none where no rule is about the source.
    pub rule: Option<String>,
    /// What is wrong.
    #[source]
    pub cause: RefusalCause,
}

fn by(rule: Option<&str>) -> String {
    match rule {
        Some(name) => format!("trust rule {name:?}"),
        None => "no trust rule is about it".to_owned(),
    }
}

impl Refusal {
    /// Stable name of the failure.
    pub const fn code(&self) -> &'static str {
        self.cause.code()
    }
}

/// What is wrong with an image.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum RefusalCause {
    /// The policy takes nothing from there.
    #[error("the policy takes no image from this source: add a rule for it if it should")]
    Source,
    /// What is demanded is not there.
    #[error("the policy demands {demand}, and the image comes without: {}", remedy(demand))]
    Missing {
        /// The demand, as the file has it.
        demand: &'static str,
    },
    /// Signed, but by a certificate that the rule does not name.
    #[error("the image is signed by certificate {certificate}, which is not among the signers of its trust rule")]
    Signer {
        /// The certificate.
        certificate: Uuid,
    },
    /// The registry gave another manifest than was asked for.
    #[error("the registry answered with manifest {found} when asked for {asked}: do not use this registry")]
    Manifest {
        /// The digest in the reference.
        asked: Pinned,
        /// The digest of the answer.
        found: Pinned,
    },
    /// The bytes are others.
    #[error(transparent)]
    Digest(DigestError),
    /// The sums file does not tell.
    #[error(transparent)]
    Sums(SumsError),
    /// Its signature does not hold.
    #[error(transparent)]
    OpenPgp(OpenPgpError),
    /// The container image's signature does not hold.
    #[error(transparent)]
    Cosign(CosignError),
    /// The image service's signature does not hold.
    #[error(transparent)]
    X509(X509Error),
}

impl RefusalCause {
    /// Stable name of the failure.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Source => "source_refused",
            Self::Missing { .. } => "proof_missing",
            Self::Signer { .. } => "x509_signer_not_allowed",
            Self::Manifest { .. } => "manifest_digest_mismatch",
            Self::Digest(error) => error.code(),
            Self::Sums(error) => error.code(),
            Self::OpenPgp(error) => error.code(),
            Self::Cosign(error) => error.code(),
            Self::X509(error) => error.code(),
        }
    }
}

fn remedy(demand: &str) -> &'static str {
    match demand {
        "digest" => "pin its digest in the request",
        "openpgp" => "name its signed sums file in the request",
        "cosign" => "sign it in its registry, and pull it from there",
        "x509" => "set its img_signature properties",
        _ => "see the documentation of the trust section",
    }
}
