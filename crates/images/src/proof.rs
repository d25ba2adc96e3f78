//! What proves an image: fetched before its bytes, judged after.

use std::time::SystemTime;

use image_sources::Source;
use image_trust::cosign::{CosignSignature, SignatureManifest, referrers, tag_for};
use image_trust::openpgp::SIGNATURE_MAX_BYTES;
use image_trust::policy::{Container, Demand, Evidence, Refusal, RefusalCause, SumsFile, TrustPolicy, Verdict};
use image_trust::x509::{ImageSignature, Signer};
use image_trust::{DigestSet, HashMethod, Pinned, SUMS_MAX_BYTES};

use crate::registry::Registry;
use crate::request::ImportSource;
use crate::{ImageDigest, ImportError, PullError, RequestedProof};

/// All that is known of an image but its bytes.
pub(crate) struct Proofs {
    pinned: Vec<Pinned>,
    sums: Option<Sums>,
    x509: Option<ImageSignature>,
    container: Option<Found>,
    /// Signs it, where it is made here and nobody else has.
    signer: Option<Signer>,
}

struct Sums {
    file: Vec<u8>,
    signature: Option<Vec<u8>>,
    name: String,
}

/// What a registry says.
struct Found {
    manifest: Pinned,
    asked: Option<Pinned>,
    signatures: Vec<CosignSignature>,
}

impl Proofs {
    /// Fetches what the request names.
    pub(crate) async fn fetch(request: RequestedProof) -> Result<Self, ImportError> {
        let sums = match request.sums {
            None => None,
            Some(wanted) => Some(Sums {
                file: fetch_small(&wanted.file, "sums file", SUMS_MAX_BYTES).await?,
                signature: match &wanted.signature {
                    None => None,
                    Some(source) => Some(fetch_small(source, "signature of the sums file", SIGNATURE_MAX_BYTES).await?),
                },
                name: wanted.name,
            }),
        };
        Ok(Self {
            pinned: request.pinned,
            sums,
            x509: request.x509,
            container: None,
            signer: None,
        })
    }

    /// Takes in what a registry says of the image: `manifest` is the digest that the reference led to.
    pub(crate) async fn of_registry(
        &mut self,
        registry: &Registry,
        manifest: &ImageDigest,
        asked: Option<&ImageDigest>,
        wants_signatures: bool,
    ) -> Result<(), ImportError> {
        let manifest = pinned(manifest);
        let signatures = match wants_signatures {
            true => signatures(registry, &manifest).await?,
            false => Vec::new(),
        };
        self.container = Some(Found {
            manifest,
            asked: asked.map(pinned),
            signatures,
        });
        Ok(())
    }

    /// The image is made here: by this policy's key it is signed, unless there is a signature.
    pub(crate) fn sign(&mut self, policy: &TrustPolicy) {
        let signer = policy.snapshot_signer().filter(|_| self.x509.is_none());
        self.signer = signer.cloned();
    }

    /// Whether nothing here is about the bytes themselves.
    pub(crate) fn need_no_bytes(&self) -> bool {
        self.pinned.is_empty() && self.sums.is_none() && self.x509.is_none()
    }

    /// Digests to be computed while the bytes pass.
    pub(crate) fn methods(&self) -> Vec<HashMethod> {
        let mut methods = vec![HashMethod::Sha256];
        methods.extend(self.pinned.iter().map(Pinned::method));
        methods.extend(self.x509.as_ref().map(ImageSignature::hash_method));
        if self.sums.is_some() {
            methods.push(HashMethod::Sha512);
        }
        methods.sort_unstable();
        methods.dedup();
        methods
    }

    /// Refuses an image that would be refused whatever its bytes are.
    pub(crate) fn foresee(&self, policy: &TrustPolicy, source: &image_trust::Source) -> Result<(), ImportError> {
        let (rule, demand) = policy.demand_for(source);
        let is_there = match demand {
            Demand::Nothing => true,
            Demand::Refuse => false,
            Demand::Digest => {
                let asked = self.container.as_ref().is_some_and(|found| found.asked.is_some());
                !self.pinned.is_empty() || asked
            }
            Demand::OpenPgp(_) => self.sums.is_some(),
            Demand::Cosign(_) => self.container.is_some(),
            Demand::X509(_) => self.x509.is_some() || self.signer.is_some(),
        };
        if is_there {
            return Ok(());
        }
        let cause = match demand {
            Demand::Refuse => RefusalCause::Source,
            demand => RefusalCause::Missing { demand: demand.name() },
        };
        Err(untrusted(Refusal {
            image: source.to_string(),
            rule: rule.map(|rule| rule.name.clone()),
            cause,
        }))
    }

    /// Judges the image: by its bytes as they were unpacked and, where that does not do, as they were sent.
    pub(crate) fn judge(
        &self,
        policy: &TrustPolicy,
        source: &image_trust::Source,
        unpacked: &DigestSet,
        packed: Option<&DigestSet>,
    ) -> Result<Verdict, ImportError> {
        match (self.judge_by(policy, source, unpacked), packed) {
            (Ok(verdict), _) => Ok(verdict),
            (Err(refusal), None) => Err(untrusted(refusal)),
            (Err(refusal), Some(packed)) => {
                let second = self.judge_by(policy, source, packed);
                second.map_err(|_| untrusted(refusal))
            }
        }
    }

    fn judge_by(
        &self,
        policy: &TrustPolicy,
        source: &image_trust::Source,
        digests: &DigestSet,
    ) -> Result<Verdict, Refusal> {
        let container = self.container.as_ref().map(|found| Container {
            manifest: &found.manifest,
            asked: found.asked.as_ref(),
            signatures: &found.signatures,
        });
        let own = self.signer.as_ref().and_then(|signer| signer.image_signature(digests));
        let evidence = Evidence {
            digests,
            pinned: self.pinned.first(),
            sums: self.sums.as_ref().map(|sums| SumsFile {
                file: &sums.file,
                name: &sums.name,
                signature: sums.signature.as_deref(),
            }),
            container,
            x509: self.x509.as_ref().or(own.as_ref()),
        };
        for pinned in self.pinned.iter().skip(1) {
            digests.check(pinned).map_err(|error| Refusal {
                image: source.to_string(),
                rule: policy.demand_for(source).0.map(|rule| rule.name.clone()),
                cause: RefusalCause::Digest(error),
            })?;
        }
        match policy.judge(source, &evidence, SystemTime::now()) {
            Verdict::Refused(refusal) => Err(refusal),
            accepted @ Verdict::Accepted(_) => Ok(accepted),
        }
    }
}

fn untrusted(refusal: Refusal) -> ImportError {
    ImportError::Untrusted(Box::new(refusal))
}

/// The digest as `image-trust` has it.
fn pinned(digest: &ImageDigest) -> Pinned {
    digest.to_pinned()
}

/// A source in the spelling that trust policies are written in.
pub(crate) fn trusted_source(source: &ImportSource) -> Result<image_trust::Source, ImportError> {
    let text = match source {
        // What guests write is as trusted as what clients send.
        ImportSource::Upload(_) | ImportSource::LocalDisk(_) => return Ok(image_trust::Source::upload()),
        ImportSource::Registry { reference } => reference.to_string(),
        ImportSource::Web(source) => source.location(),
        ImportSource::S3(source) => s3_address(&source.location(), source.server()),
        ImportSource::File(source) => format!("file://{}", encoded(&source.path().to_string_lossy())),
        ImportSource::Stored { digest, .. } => format!("file:///{}", digest.hex()),
    };
    image_trust::Source::parse(&text).map_err(ImportError::Location)
}

/// `s3://bucket@server/key` of a location, which has the endpoint's host behind it: a bucket of the same name on another server is
/// another one.
fn s3_address(location: &str, server: &str) -> String {
    let place = location.rsplit_once(" (").map_or(location, |(place, _)| place);
    let place = place.strip_prefix("s3://").unwrap_or(place);
    let (bucket, key) = place.split_once('/').unwrap_or((place, ""));
    format!("s3://{bucket}@{server}/{}", encoded(key))
}

/// A plain path as it is written in a URL.
fn encoded(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' | b':' => {
                text.push(char::from(byte));
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

async fn fetch_small(source: &Source, what: &'static str, limit_bytes: usize) -> Result<Vec<u8>, ImportError> {
    let failed = |error| ImportError::Proof {
        what,
        source: Box::new(error),
    };
    let mut opened = source.open().await.map_err(failed)?;
    let mut bytes = Vec::new();
    while let Some(piece) = opened.next_piece().await.map_err(failed)? {
        if bytes.len() + piece.len() > limit_bytes {
            return Err(ImportError::ProofTooLong { what, limit_bytes });
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// Signatures of a manifest, where cosign puts them: under a tag, or among the referrers.
async fn signatures(registry: &Registry, manifest: &Pinned) -> Result<Vec<CosignSignature>, ImportError> {
    let mut found = Vec::new();
    match registry.manifest(&tag_for(manifest)).await {
        Ok((body, _)) => payloads(registry, &body, &mut found).await?,
        Err(PullError::NotFound(_)) => {}
        Err(error) => return Err(error.into()),
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let index = match registry.referrers(&manifest.to_string()).await {
        Ok(index) => index,
        // Registries before version 1.1 of the specification know no referrers.
        Err(PullError::NotFound(_) | PullError::Manifest { .. } | PullError::Status { .. }) => return Ok(found),
        Err(error) => return Err(error.into()),
    };
    // What is no index says nothing.
    for digest in referrers(&index).unwrap_or_default() {
        let (body, _) = registry.manifest(&digest.to_string()).await?;
        payloads(registry, &body, &mut found).await?;
    }
    Ok(found)
}

async fn payloads(registry: &Registry, body: &[u8], found: &mut Vec<CosignSignature>) -> Result<(), ImportError> {
    // A manifest of something else holds no signatures; the verdict then says that there are none.
    let Ok(manifest) = SignatureManifest::parse(body) else {
        return Ok(());
    };
    for layer in manifest.layers {
        if found.len() >= image_trust::cosign::SIGNATURES_MAX {
            return Ok(());
        }
        let Ok(digest) = layer.payload.to_string().parse::<ImageDigest>() else {
            continue;
        };
        let payload = registry.small_blob(&digest, layer.payload_bytes).await?;
        found.push(CosignSignature { layer, payload });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_named_with_their_servers() {
        let address = s3_address("s3://images/a b (1).raw (s3.test)", "s3.test:9000");
        assert_eq!(address, "s3://images@s3.test:9000/a%20b%20%281%29.raw");
        let source = image_trust::Source::parse(&address).unwrap();
        assert_eq!(source.to_string(), "s3://images@s3.test:9000/a b (1).raw");
    }

    #[test]
    fn plain_paths_come_through_the_policys_spelling() {
        for path in ["/images/debian 12.qcow2", "/a%20b/ü#?.raw", "/plain/a.img"] {
            let text = format!("file://{}", encoded(path));
            let source = image_trust::Source::parse(&text).unwrap();
            assert_eq!(source.to_string(), format!("file://{path}"));
        }
    }
}
