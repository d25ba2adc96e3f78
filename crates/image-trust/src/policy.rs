//! What is demanded of images, by where they come from, and whether one meets it.
//!
//! The first rule with a pattern that means the source decides; where none does, `unmatched` does. Whatever a rule demands, what
//! an image *claims* must be true: a digest pinned in the request, an entry in a sums file that was given, and the image
//! service's signature properties are verified for every image, and a false one refuses it.
//!
//! | demand | met by |
//! |---|---|
//! | `nothing` | everything |
//! | `refuse` | nothing: images from there are not taken |
//! | `digest` | a digest pinned in the request, of the image's bytes or of its manifest in a registry |
//! | `openpgp` | a sums file that lists the image, signed (detached or clear) by a key of the rule's rings |
//! | `cosign` | a signature of the image's manifest by one of the rule's keys, with the rule's claims |
//! | `x509` | the image service's signature properties, by a certificate of the directory, of the rule's signers if it names any |

mod section;
mod verdict;

use std::time::SystemTime;

use uuid::Uuid;

pub use section::{PolicyProblem, PolicyProblems, RuleSection, SnapshotSection, TrustSection, read_trust_file};
pub use verdict::{Container, Evidence, Grounds, Proof, Refusal, RefusalCause, SumsFile, Verdict};

use crate::cosign::Cosign;
use crate::digests::{HashMethod, Pinned};
use crate::openpgp::{ClearSigned, KeyRing};
use crate::source::{Pattern, Source};
use crate::sums::Sums;
use crate::x509::{CertificateDirectory, ImageSignature, Signer, TrustStore, X509Error};

/// What is demanded of images from a source.
#[derive(Debug, Clone, PartialEq)]
pub enum Demand {
    /// Whatever comes is taken.
    Nothing,
    /// Whatever comes is refused.
    Refuse,
    /// A digest in the request.
    Digest,
    /// A sums file signed by a key of this ring.
    OpenPgp(KeyRing),
    /// A signature of a container image.
    Cosign(Cosign),
    /// The image service's signature properties, by one of these certificates; by any in the directory when none is named.
    X509(Vec<Uuid>),
}

impl Demand {
    /// The word for it in the file.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Refuse => "refuse",
            Self::Digest => "digest",
            Self::OpenPgp(_) => "openpgp",
            Self::Cosign(_) => "cosign",
            Self::X509(_) => "x509",
        }
    }
}

/// What is demanded of the sources that some patterns mean.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// For messages.
    pub name: String,
    /// The sources meant.
    pub sources: Vec<Pattern>,
    /// What is demanded of them.
    pub demand: Demand,
}

/// All that is demanded. Made from a [`TrustSection`]; the default demands nothing of anything.
#[derive(Debug, Clone, PartialEq)]
pub struct TrustPolicy {
    rules: Vec<Rule>,
    unmatched: Demand,
    certificates: Option<CertificateDirectory>,
    roots: Option<TrustStore>,
    snapshots: Option<Signer>,
}

impl Default for TrustPolicy {
    fn default() -> Self {
        Self {
            rules: Vec::new(),
            unmatched: Demand::Nothing,
            certificates: None,
            roots: None,
            snapshots: None,
        }
    }
}

impl TrustPolicy {
    /// What images that this host makes of its disks are signed with, if they are.
    pub const fn snapshot_signer(&self) -> Option<&Signer> {
        self.snapshots.as_ref()
    }

    /// The rule that decides about `source`, if one does, and what is demanded: to get signatures before the image itself, and
    /// to refuse what will be refused anyway.
    pub fn demand_for(&self, source: &Source) -> (Option<&Rule>, &Demand) {
        let rule = self
            .rules
            .iter()
            .find(|rule| rule.sources.iter().any(|pattern| pattern.matches(source)));
        (rule, rule.map_or(&self.unmatched, |rule| &rule.demand))
    }

    /// Which digests have to be computed while the image's bytes go by.
    pub fn methods_needed(evidence: &Evidence<'_>) -> Vec<HashMethod> {
        let mut methods = vec![HashMethod::Sha256];
        methods.extend(evidence.pinned.map(Pinned::method));
        methods.extend(evidence.x509.map(ImageSignature::hash_method));
        if evidence.sums.is_some() {
            methods.push(HashMethod::Sha512);
        }
        methods.sort_unstable();
        methods.dedup();
        methods
    }

    /// Whether an image from `source`, of which `evidence` is known, is taken at the time `now`.
    pub fn judge(&self, source: &Source, evidence: &Evidence<'_>, now: SystemTime) -> Verdict {
        let (rule, demand) = self.demand_for(source);
        let rule = rule.map(|rule| rule.name.clone());
        match self.proofs(demand, evidence, now) {
            Ok(proofs) => Verdict::Accepted(Grounds { rule, proofs }),
            Err(cause) => Verdict::Refused(Refusal {
                image: source.to_string(),
                rule,
                cause,
            }),
        }
    }

    fn proofs(&self, demand: &Demand, evidence: &Evidence<'_>, now: SystemTime) -> Result<Vec<Proof>, RefusalCause> {
        if *demand == Demand::Refuse {
            return Err(RefusalCause::Source);
        }
        let mut proofs = claims_of_request(evidence)?;
        proofs.extend(self.image_signature(evidence, now)?);
        if let Some(sums) = &evidence.sums {
            proofs.extend(sums_file(sums, demand, evidence, now)?);
        }
        let missing = || RefusalCause::Missing { demand: demand.name() };
        match demand {
            Demand::Nothing | Demand::Refuse => {}
            Demand::Digest => {
                if !proofs
                    .iter()
                    .any(|proof| matches!(proof, Proof::Digest(_) | Proof::Manifest(_)))
                {
                    return Err(missing());
                }
            }
            // Both were verified above, if they are there at all.
            Demand::OpenPgp(_) => {
                if !proofs.iter().any(|proof| matches!(proof, Proof::OpenPgp(_))) {
                    return Err(missing());
                }
            }
            Demand::X509(signers) => {
                let signer = proofs.iter().find_map(|proof| match proof {
                    Proof::X509(certificate) => Some(*certificate),
                    _ => None,
                });
                let signer = signer.ok_or_else(missing)?;
                if !signers.is_empty() && !signers.contains(&signer) {
                    return Err(RefusalCause::Signer { certificate: signer });
                }
            }
            Demand::Cosign(cosign) => {
                let container = evidence.container.as_ref().ok_or_else(missing)?;
                cosign
                    .verify(container.manifest, container.signatures)
                    .map_err(RefusalCause::Cosign)?;
                proofs.push(Proof::Cosign(container.manifest.clone()));
            }
        }
        Ok(proofs)
    }

    fn image_signature(&self, evidence: &Evidence<'_>, now: SystemTime) -> Result<Option<Proof>, RefusalCause> {
        let Some(signature) = evidence.x509 else {
            return Ok(None);
        };
        let verify = || {
            let directory = self.certificates.as_ref().ok_or(X509Error::NoDirectory)?;
            let certificate = directory.get(signature.certificate())?;
            signature.verify(evidence.digests, &certificate, self.roots.as_ref(), now)
        };
        verify().map_err(RefusalCause::X509)?;
        Ok(Some(Proof::X509(signature.certificate())))
    }
}

fn claims_of_request(evidence: &Evidence<'_>) -> Result<Vec<Proof>, RefusalCause> {
    let mut proofs = Vec::new();
    if let Some(pinned) = evidence.pinned {
        evidence.digests.check(pinned).map_err(RefusalCause::Digest)?;
        proofs.push(Proof::Digest(pinned.clone()));
    }
    if let Some(Container {
        manifest,
        asked: Some(asked),
        ..
    }) = &evidence.container
    {
        if manifest != asked {
            return Err(RefusalCause::Manifest {
                asked: (*asked).clone(),
                found: (*manifest).clone(),
            });
        }
        proofs.push(Proof::Manifest((*asked).clone()));
    }
    Ok(proofs)
}

/// The digest in a sums file, whose signature is verified first when the rule demands one.
fn sums_file(
    sums: &SumsFile<'_>,
    demand: &Demand,
    evidence: &Evidence<'_>,
    now: SystemTime,
) -> Result<Vec<Proof>, RefusalCause> {
    let mut proofs = Vec::new();
    let clear = sums.signature.is_none() && ClearSigned::is_claimed_by(sums.file);
    let mut signed_text = None;
    if let Demand::OpenPgp(ring) = demand {
        let signer = match sums.signature {
            Some(signature) => ring.verify_detached(sums.file, signature, now),
            None if clear => ring.verify_clear_signed(sums.file, now).map(|(text, signer)| {
                signed_text = Some(text);
                signer
            }),
            None => return Err(RefusalCause::Missing { demand: demand.name() }),
        };
        proofs.push(Proof::OpenPgp(signer.map_err(RefusalCause::OpenPgp)?));
    }
    let list = Sums::parse(signed_text.as_deref().unwrap_or(sums.file)).map_err(RefusalCause::Sums)?;
    let listed = list.find(sums.name).map_err(RefusalCause::Sums)?;
    evidence.digests.check(listed).map_err(RefusalCause::Digest)?;
    proofs.push(Proof::Listed(listed.clone()));
    Ok(proofs)
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
