//! The `[trust]` section of the configuration.
//!
//! ```toml
//! [trust]
//! unmatched = "nothing"                              # what is demanded where no rule is about the source; the default
//! certificates = "/etc/karat/image-certificates"     # <uuid>.pem, for img_signature_certificate_uuid
//! roots = "/etc/karat/image-roots.pem"               # certificates must lead to one of these; left out: they need not
//!
//! [trust.snapshots]                                  # signs images that are made here of disks; left out: they are not signed
//! key = "/etc/karat/snapshots.key"                   # ECDSA on P-384
//! certificate = "125e6199-2de4-46e3-b091-8e2401ef0d63"
//!
//! [[trust.rule]]                                     # the first that is about a source decides
//! name = "ubuntu"
//! sources = ["https://cloud-images.ubuntu.com/*"]
//! demand = "openpgp"
//! keys = ["/usr/share/keyrings/ubuntu-cloudimage-keyring.gpg"]
//!
//! [[trust.rule]]
//! name = "golden"
//! sources = ["registry.example.com/golden/*"]
//! demand = "cosign"
//! keys = ["/etc/karat/golden.pub"]
//! claims = { team = "images" }
//!
//! [[trust.rule]]
//! name = "uploads"
//! sources = ["upload://"]
//! demand = "x509"
//! signers = ["125e6199-2de4-46e3-b091-8e2401ef0d63"]  # left out: any certificate of the directory
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use uuid::Uuid;

use super::{Demand, Rule, TrustPolicy};
use crate::cosign::Cosign;
use crate::openpgp::{KEY_RING_MAX_BYTES, KeyRing};
use crate::public_key::PublicKey;
use crate::source::Pattern;
use crate::x509::{CertificateDirectory, Signer, TrustStore};

/// Most rules: each is compared with every source that is asked about.
const RULES_MAX: usize = 1000;

/// The section as written.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustSection {
    /// What is demanded where no rule is about the source: `nothing` (the default), `digest` or `refuse`.
    #[serde(default)]
    pub unmatched: Option<String>,
    /// Directory of certificates, absolute.
    #[serde(default)]
    pub certificates: Option<PathBuf>,
    /// File of the roots of certificates, PEM, absolute.
    #[serde(default)]
    pub roots: Option<PathBuf>,
    /// How images that are made here of disks are signed.
    #[serde(default)]
    pub snapshots: Option<SnapshotSection>,
    /// The rules in their order.
    #[serde(default)]
    pub rule: Vec<RuleSection>,
}

/// What images that are made here of disks are signed with.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotSection {
    /// File of the private key: PEM of `PRIVATE KEY`, ECDSA on P-384; absolute.
    pub key: PathBuf,
    /// UUID of its certificate in the directory.
    pub certificate: String,
}

/// One rule as written.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleSection {
    /// For messages.
    pub name: String,
    /// Patterns of sources.
    pub sources: Vec<String>,
    /// `nothing`, `refuse`, `digest`, `openpgp`, `cosign` or `x509`.
    pub demand: String,
    /// For `openpgp` files of key rings, for `cosign` files of public keys; absolute.
    #[serde(default)]
    pub keys: Vec<PathBuf>,
    /// For `cosign`: what signatures must claim.
    #[serde(default)]
    pub claims: BTreeMap<String, String>,
    /// For `x509`: UUIDs of the certificates that may have signed.
    #[serde(default)]
    pub signers: Vec<String>,
}

/// Something wrong with the section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyProblem {
    /// Where: `trust.rule[1].keys[0]`.
    pub field: String,
    /// What, and what would be right.
    pub problem: String,
}

/// All that is wrong with the section.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct PolicyProblems(pub Vec<PolicyProblem>);

impl PolicyProblems {
    /// Stable name of the failure.
    pub const fn code(&self) -> &'static str {
        "trust_policy_invalid"
    }
}

impl fmt::Display for PolicyProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, PolicyProblem { field, problem }) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{field}: {problem}")?;
        }
        Ok(())
    }
}

/// Reads a file that a section names, no further than what any of them may have.
///
/// # Errors
///
/// What the system says.
pub fn read_trust_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more than the largest kind: that kind's reader then says that it is too long.
    std::fs::File::open(path)?
        .take(KEY_RING_MAX_BYTES as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl TrustPolicy {
    /// Makes a policy of `section`, getting the files it names by `read` (see [`read_trust_file`]).
    ///
    /// # Errors
    ///
    /// All that is wrong with the section and the files.
    pub fn build(section: &TrustSection, read: impl Fn(&Path) -> io::Result<Vec<u8>>) -> Result<Self, PolicyProblems> {
        let mut builder = Builder {
            read: &read,
            problems: Vec::new(),
        };
        let policy = builder.policy(section);
        match builder.problems.is_empty() {
            true => Ok(policy),
            false => Err(PolicyProblems(builder.problems)),
        }
    }
}

struct Builder<'a> {
    read: &'a dyn Fn(&Path) -> io::Result<Vec<u8>>,
    problems: Vec<PolicyProblem>,
}

impl Builder<'_> {
    fn problem(&mut self, field: &str, problem: impl fmt::Display) {
        self.problems.push(PolicyProblem {
            field: field.to_owned(),
            problem: problem.to_string(),
        });
    }

    fn policy(&mut self, section: &TrustSection) -> TrustPolicy {
        if section.rule.len() > RULES_MAX {
            self.problem("trust.rule", format!("there are more than {RULES_MAX} rules"));
        }
        let rules: Vec<_> = section
            .rule
            .iter()
            .take(RULES_MAX)
            .enumerate()
            .map(|(index, rule)| self.rule(&format!("trust.rule[{index}]"), rule, section))
            .collect();
        self.find_shadowed(&rules);
        let certificates = section.certificates.as_ref();
        if let Some(path) = certificates
            && !path.is_absolute()
        {
            self.problem("trust.certificates", "is not an absolute path");
        }
        if section.roots.is_some() && certificates.is_none() {
            self.problem(
                "trust.roots",
                "has no use without certificates: name their directory too",
            );
        }
        let certificates = certificates.map(CertificateDirectory::new);
        let snapshots = section.snapshots.as_ref();
        TrustPolicy {
            rules,
            unmatched: self.unmatched(section.unmatched.as_deref()),
            snapshots: snapshots.and_then(|snapshots| self.signer(snapshots, certificates.as_ref())),
            certificates,
            roots: section.roots.as_ref().and_then(|path| {
                let bytes = self.file("trust.roots", path)?;
                TrustStore::parse(&bytes)
                    .map_err(|error| self.problem("trust.roots", error))
                    .ok()
            }),
        }
    }

    fn signer(&mut self, section: &SnapshotSection, directory: Option<&CertificateDirectory>) -> Option<Signer> {
        const CERTIFICATE: &str = "trust.snapshots.certificate";
        let pem = self.file("trust.snapshots.key", &section.key)?;
        let Ok(uuid) = Uuid::parse_str(&section.certificate) else {
            self.problem(CERTIFICATE, format!("{:?} is no UUID", section.certificate));
            return None;
        };
        let Some(directory) = directory else {
            self.problem(CERTIFICATE, "needs the directory trust.certificates");
            return None;
        };
        let certificate = directory.get(uuid).map_err(|error| self.problem(CERTIFICATE, error));
        Signer::new(&pem, uuid, certificate.ok()?)
            .map_err(|error| self.problem("trust.snapshots.key", error))
            .ok()
    }

    fn unmatched(&mut self, word: Option<&str>) -> Demand {
        match word {
            None | Some("nothing") => Demand::Nothing,
            Some("digest") => Demand::Digest,
            Some("refuse") => Demand::Refuse,
            Some(other) => {
                self.problem(
                    "trust.unmatched",
                    format!("{other:?} is none of nothing, digest, refuse"),
                );
                Demand::Refuse
            }
        }
    }

    fn rule(&mut self, field: &str, rule: &RuleSection, section: &TrustSection) -> Rule {
        if rule.name.is_empty() {
            self.problem(&format!("{field}.name"), "is empty: messages name the rule by it");
        }
        if rule.sources.is_empty() {
            self.problem(&format!("{field}.sources"), "is empty: the rule would be about nothing");
        }
        let mut sources = Vec::new();
        for (index, text) in rule.sources.iter().enumerate() {
            match Pattern::parse(text) {
                Ok(pattern) => sources.push(pattern),
                Err(error) => self.problem(&format!("{field}.sources[{index}]"), error),
            }
        }
        Rule {
            name: rule.name.clone(),
            sources,
            demand: self.demand(field, rule, section),
        }
    }

    fn demand(&mut self, field: &str, rule: &RuleSection, section: &TrustSection) -> Demand {
        let demand = rule.demand.as_str();
        for (name, given, used) in [
            ("keys", !rule.keys.is_empty(), matches!(demand, "openpgp" | "cosign")),
            ("claims", !rule.claims.is_empty(), demand == "cosign"),
            ("signers", !rule.signers.is_empty(), demand == "x509"),
        ] {
            if given && !used {
                self.problem(
                    &format!("{field}.{name}"),
                    format!("has no meaning for demand {demand:?}: leave it out"),
                );
            }
        }
        match demand {
            "nothing" => Demand::Nothing,
            "refuse" => Demand::Refuse,
            "digest" => Demand::Digest,
            "openpgp" => self.key_ring(field, &rule.keys).map_or(Demand::Refuse, Demand::OpenPgp),
            "cosign" => Demand::Cosign(Cosign {
                keys: self.public_keys(field, &rule.keys),
                claims: rule.claims.clone(),
            }),
            "x509" => {
                if section.certificates.is_none() {
                    self.problem(
                        &format!("{field}.demand"),
                        "x509 needs the directory trust.certificates",
                    );
                }
                Demand::X509(self.signers(field, &rule.signers))
            }
            other => {
                let problem = format!("{other:?} is none of nothing, refuse, digest, openpgp, cosign, x509");
                self.problem(&format!("{field}.demand"), problem);
                Demand::Refuse
            }
        }
    }

    fn key_ring(&mut self, field: &str, paths: &[PathBuf]) -> Option<KeyRing> {
        let mut ring: Option<KeyRing> = None;
        for (bytes, field) in self.key_files(field, paths) {
            match (KeyRing::parse(&bytes), &mut ring) {
                (Ok(read), None) => ring = Some(read),
                (Ok(read), Some(ring)) => ring.extend(read),
                (Err(error), _) => self.problem(&field, error),
            }
        }
        ring
    }

    fn public_keys(&mut self, field: &str, paths: &[PathBuf]) -> Vec<PublicKey> {
        let mut keys = Vec::new();
        for (bytes, field) in self.key_files(field, paths) {
            match PublicKey::from_pem(&bytes) {
                Ok(key) => keys.push(key),
                Err(error) => self.problem(&field, error),
            }
        }
        keys
    }

    fn key_files(&mut self, field: &str, paths: &[PathBuf]) -> Vec<(Vec<u8>, String)> {
        if paths.is_empty() {
            self.problem(&format!("{field}.keys"), "is missing: nobody's signature would count");
        }
        let mut files = Vec::new();
        for (index, path) in paths.iter().enumerate() {
            let field = format!("{field}.keys[{index}]");
            if let Some(bytes) = self.file(&field, path) {
                files.push((bytes, field));
            }
        }
        files
    }

    fn file(&mut self, field: &str, path: &Path) -> Option<Vec<u8>> {
        if !path.is_absolute() {
            self.problem(field, "is not an absolute path");
            return None;
        }
        (self.read)(path)
            .map_err(|error| self.problem(field, format!("{} cannot be read: {error}", path.display())))
            .ok()
    }

    fn signers(&mut self, field: &str, texts: &[String]) -> Vec<Uuid> {
        let mut signers = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            match Uuid::parse_str(text) {
                Ok(uuid) => signers.push(uuid),
                Err(_) => self.problem(&format!("{field}.signers[{index}]"), format!("{text:?} is no UUID")),
            }
        }
        signers
    }

    /// Tells of patterns that an earlier rule leaves nothing for, and of names given twice.
    fn find_shadowed(&mut self, rules: &[Rule]) {
        for (later, rule) in rules.iter().enumerate() {
            for earlier in rules.iter().take(later) {
                if earlier.name == rule.name && !rule.name.is_empty() {
                    self.problem(
                        &format!("trust.rule[{later}].name"),
                        format!("{:?} is there twice", rule.name),
                    );
                }
                for (index, pattern) in rule.sources.iter().enumerate() {
                    if earlier.sources.iter().any(|wider| wider.covers(pattern)) {
                        let problem = format!("never counts, since rule {:?} before it covers {pattern}", earlier.name);
                        self.problem(&format!("trust.rule[{later}].sources[{index}]"), problem);
                    }
                }
            }
        }
    }
}
