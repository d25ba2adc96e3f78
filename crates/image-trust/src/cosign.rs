//! Signatures of container images as cosign makes them with a key pair (sigstore's "Cosign Signature Specifications").
//!
//! The signed bytes are a small JSON document, the *payload*, that names the digest of the image's manifest. Payloads are the
//! layers of a signature manifest; each layer bears its signature as an annotation. That manifest is found
//!
//! - under the tag [`tag_for`] tells (`sha256-<hex>.sig`), in the image's repository, or
//! - among the image's referrers (OCI distribution 1.1) with the artifact type [`ARTIFACT_TYPE`]: see [`referrers`].
//!
//! Fetching is the caller's: [`SignatureManifest::parse`] tells which blobs to get, [`Cosign::verify`] takes them. Of several
//! signatures one suffices. A payload says nothing before its signature has been verified; then its type and digest must be
//! right. The name in it (`docker-reference`) is ignored as the specification demands: images are copied between registries.
//!
//! The specification leaves the scheme to the parties; it is what cosign itself takes: ECDSA with the curve's own hash or
//! SHA-256, RSA PKCS #1 v1.5 with SHA-256, and Ed25519. Certificates ("keyless") and the transparency log are not used, and
//! neither is the newer bundle format: a key the operator placed here is what is trusted.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::digests::{HashMethod, Pinned};
use crate::public_key::{KeyKind, Padding, PublicKey};

/// Artifact type of signature manifests among the referrers of an image (cosign's `registry-referrers-mode=oci-1-1`).
pub const ARTIFACT_TYPE: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// Media type of a payload's layer.
pub const PAYLOAD_MEDIA_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Where a layer has its signature, base64.
pub const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// What a payload says it is.
const PAYLOAD_TYPE: &str = "cosign container image signature";

/// Longest signature manifest or referrers index, bytes: what registries take as a manifest (OCI distribution 1.1, "pushing
/// manifests", 4 MiB).
pub const MANIFEST_MAX_BYTES: usize = 4 << 20;
/// Longest payload, bytes; cosign's own are some 250 bytes and grow by the claims a user adds.
pub const PAYLOAD_MAX_BYTES: usize = 64 << 10;
/// Longest signature, characters of base64: an RSA key of 8192 bits makes 1368.
const SIGNATURE_MAX_CHARS: usize = 2048;
/// Most signatures looked at: each costs a download and some public-key arithmetic.
pub const SIGNATURES_MAX: usize = 32;

/// Why an image's signatures do not make it trusted.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum CosignError {
    /// The registry's answer is no signature manifest.
    #[error("the signature manifest of the image cannot be read ({problem})")]
    Manifest {
        /// What was met.
        problem: String,
    },
    /// Nothing is signed there.
    #[error("the image has no cosign signature: sign it (cosign sign --key), or change the policy for its source")]
    Unsigned,
    /// A payload's blob is not what the manifest says.
    #[error(
        "a signature's payload is not the blob that its manifest names: the registry is damaged or not to be trusted"
    )]
    PayloadDigest,
    /// No signature is by a trusted key.
    #[error("none of the image's {count} signatures is by a trusted key: check the keys in the policy, and who signed")]
    UntrustedKey {
        /// How many there are.
        count: usize,
    },
    /// A trusted key signed something that is no statement about a container image.
    #[error("what the trusted key signed is no cosign payload ({problem})")]
    Payload {
        /// What was met.
        problem: String,
    },
    /// A trusted key signed another image.
    #[error("the trusted signature is for image {signed}, not for {image}: it was moved here from another image")]
    OtherImage {
        /// What it is for.
        signed: String,
        /// What it was found at.
        image: String,
    },
    /// Claims that the policy demands are not in the payload.
    #[error("the trusted signature does not claim {key}={value}, which the policy demands")]
    Claim {
        /// Name of the claim.
        key: String,
        /// What it should be.
        value: String,
    },
}

impl CosignError {
    /// Stable name of the failure.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Manifest { .. } => "cosign_manifest_malformed",
            Self::Unsigned => "cosign_unsigned",
            Self::PayloadDigest => "cosign_payload_digest",
            Self::UntrustedKey { .. } => "cosign_untrusted_key",
            Self::Payload { .. } => "cosign_payload_malformed",
            Self::OtherImage { .. } => "cosign_other_image",
            Self::Claim { .. } => "cosign_claim_missing",
        }
    }

    /// How much an operator learns from it: of several failures the highest is told.
    const fn rank(&self) -> u8 {
        match self {
            Self::Manifest { .. } | Self::Unsigned => 0,
            Self::UntrustedKey { .. } => 1,
            Self::PayloadDigest => 2,
            Self::Payload { .. } => 3,
            Self::OtherImage { .. } => 4,
            Self::Claim { .. } => 5,
        }
    }
}

/// The tag under which the signatures of the image with this manifest `digest` lie.
pub fn tag_for(digest: &Pinned) -> String {
    format!("{}-{}.sig", digest.method(), digest.hex())
}

/// Digests of the signature manifests in a referrers `index` (the answer to `GET /v2/<name>/referrers/<digest>`), in order.
///
/// # Errors
///
/// When it is too long or no index.
pub fn referrers(index: &[u8]) -> Result<Vec<Pinned>, CosignError> {
    #[derive(Deserialize)]
    struct Index {
        #[serde(default)]
        manifests: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        digest: String,
        #[serde(rename = "artifactType", default)]
        artifact_type: Option<String>,
    }
    let index: Index = json(index)?;
    let signatures = index.manifests.into_iter();
    Ok(signatures
        .filter(|entry| entry.artifact_type.as_deref() == Some(ARTIFACT_TYPE))
        .filter_map(|entry| entry.digest.parse().ok())
        .take(SIGNATURES_MAX)
        .collect())
}

/// One signature as its manifest has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureLayer {
    /// Digest of the payload's blob.
    pub payload: Pinned,
    /// Length of the blob, bytes; at most [`PAYLOAD_MAX_BYTES`].
    pub payload_bytes: usize,
    /// The signature over the payload.
    signature: Vec<u8>,
}

/// A manifest whose layers are signatures.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SignatureManifest {
    /// The signatures, in order; at most [`SIGNATURES_MAX`].
    pub layers: Vec<SignatureLayer>,
}

impl SignatureManifest {
    /// Reads the manifest; layers that are something else (attestations, say) are passed over.
    ///
    /// # Errors
    ///
    /// When it is too long or no manifest.
    pub fn parse(manifest: &[u8]) -> Result<Self, CosignError> {
        #[derive(Deserialize)]
        struct Manifest {
            layers: Vec<Layer>,
        }
        #[derive(Deserialize)]
        struct Layer {
            #[serde(rename = "mediaType")]
            media_type: String,
            digest: String,
            size: u64,
            #[serde(default)]
            annotations: Option<BTreeMap<String, String>>,
        }
        let manifest: Manifest = json(manifest)?;
        let layer = |layer: Layer| {
            let signature = layer.annotations?.remove(SIGNATURE_ANNOTATION)?;
            let payload_bytes = usize::try_from(layer.size)
                .ok()
                .filter(|&size| size <= PAYLOAD_MAX_BYTES)?;
            if layer.media_type != PAYLOAD_MEDIA_TYPE || signature.len() > SIGNATURE_MAX_CHARS {
                return None;
            }
            Some(SignatureLayer {
                payload: layer.digest.parse().ok()?,
                payload_bytes,
                signature: STANDARD.decode(signature.trim_ascii()).ok()?,
            })
        };
        Ok(Self {
            layers: manifest
                .layers
                .into_iter()
                .filter_map(layer)
                .take(SIGNATURES_MAX)
                .collect(),
        })
    }
}

fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, CosignError> {
    if bytes.len() > MANIFEST_MAX_BYTES {
        return Err(CosignError::Manifest {
            problem: format!("{} bytes, more than {MANIFEST_MAX_BYTES}", bytes.len()),
        });
    }
    serde_json::from_slice(bytes).map_err(|error| CosignError::Manifest {
        problem: error.to_string(),
    })
}

/// A signature with its payload: a layer and the blob that was fetched for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CosignSignature {
    /// The layer.
    pub layer: SignatureLayer,
    /// The blob.
    pub payload: Vec<u8>,
}

/// Who may sign container images, and what he must claim.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Cosign {
    /// Trusted keys: one signature by one of them suffices.
    pub keys: Vec<PublicKey>,
    /// Claims that the payload must have in its `optional` part (`cosign sign -a key=value`).
    pub claims: BTreeMap<String, String>,
}

impl Cosign {
    /// Whether one of `signatures` says that the image whose manifest has digest `image` is trusted; tells which one.
    ///
    /// # Errors
    ///
    /// Why none of them does: the failure of the one that came nearest.
    pub fn verify<'a>(
        &self,
        image: &Pinned,
        signatures: &'a [CosignSignature],
    ) -> Result<&'a CosignSignature, CosignError> {
        let mut worst = CosignError::Unsigned;
        for signature in signatures.iter().take(SIGNATURES_MAX) {
            match self.verify_one(image, signature, signatures.len()) {
                Ok(()) => return Ok(signature),
                Err(error) if error.rank() >= worst.rank() => worst = error,
                Err(_) => {}
            }
        }
        Err(worst)
    }

    fn verify_one(&self, image: &Pinned, signature: &CosignSignature, count: usize) -> Result<(), CosignError> {
        let CosignSignature { layer, payload } = signature;
        let method = layer.payload.method();
        if payload.len() != layer.payload_bytes || method.digest(payload) != layer.payload.digest() {
            return Err(CosignError::PayloadDigest);
        }
        if !self.keys.iter().any(|key| verifies(key, payload, &layer.signature)) {
            return Err(CosignError::UntrustedKey { count });
        }
        let payload = Payload::parse(payload)?;
        if payload.critical.kind != PAYLOAD_TYPE {
            return Err(CosignError::Payload {
                problem: format!("type {:?}", shortened(&payload.critical.kind)),
            });
        }
        let signed = &payload.critical.image.digest;
        if signed.parse::<Pinned>().as_ref() != Ok(image) {
            return Err(CosignError::OtherImage {
                signed: shortened(signed),
                image: image.to_string(),
            });
        }
        let optional = payload.optional.unwrap_or_default();
        for (key, value) in &self.claims {
            if optional.get(key).and_then(serde_json::Value::as_str) != Some(value) {
                return Err(CosignError::Claim {
                    key: key.clone(),
                    value: value.clone(),
                });
            }
        }
        Ok(())
    }
}

/// What was signed ("simple signing"); fields not listed are passed over.
#[derive(Deserialize)]
struct Payload {
    critical: Critical,
    #[serde(default)]
    optional: Option<BTreeMap<String, serde_json::Value>>,
}

#[derive(Deserialize)]
struct Critical {
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Image {
    /// The specification's example has a capital letter; what cosign writes, and its reader demands, has none.
    #[serde(rename = "docker-manifest-digest", alias = "Docker-manifest-digest")]
    digest: String,
}

impl Payload {
    fn parse(bytes: &[u8]) -> Result<Self, CosignError> {
        serde_json::from_slice(bytes).map_err(|error| CosignError::Payload {
            problem: error.to_string(),
        })
    }
}

/// Whether `key` signed `payload` in one of the ways cosign does.
fn verifies(key: &PublicKey, payload: &[u8], signature: &[u8]) -> bool {
    let methods: &[HashMethod] = match key.kind() {
        KeyKind::P384 => &[HashMethod::Sha256, HashMethod::Sha384],
        KeyKind::P521 => &[HashMethod::Sha256, HashMethod::Sha512],
        KeyKind::P256 | KeyKind::Rsa | KeyKind::Ed25519 => &[HashMethod::Sha256],
        // cosign knows no DSA.
        KeyKind::Dsa => &[],
    };
    methods
        .iter()
        .any(|&method| key.verifies_message(method, payload, signature, Padding::Pkcs1))
}

fn shortened(text: &str) -> String {
    text.chars().take(150).collect()
}

#[cfg(test)]
#[path = "cosign_tests.rs"]
mod tests;
