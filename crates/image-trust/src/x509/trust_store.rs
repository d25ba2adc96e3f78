//! The roots that certificates of signers must lead to.
//!
//! All certificates of a chain but the signer's own come from here, as the image service wants it: nothing that an image brings
//! along is believed. A chain ends at a root (its own issuer), and every certificate on the way must be a CA whose length
//! constraint allows for what is below it. A signer's certificate that is itself here needs no chain.

use std::time::SystemTime;

use super::{Certificate, X509Error};

/// Longest chain, certificates above the signer's.
const DEPTH_MAX: usize = 8;
/// Most certificates in a store.
const CERTIFICATES_MAX: usize = 1000;
/// Most signatures verified for one chain: cross-signed stores have several ways up, each bounded by [`DEPTH_MAX`].
const ATTEMPTS_MAX: usize = 100;
/// Longest file, bytes.
const STORE_MAX_BYTES: usize = 4 << 20;
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Trusted roots, and the CAs between them and the signers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustStore {
    certificates: Vec<Certificate>,
}

impl TrustStore {
    /// Reads any number of PEM certificates one behind the other, with text between them, or one in DER.
    ///
    /// # Errors
    ///
    /// When there is none, or one of them cannot be read.
    pub fn parse(bytes: &[u8]) -> Result<Self, X509Error> {
        if bytes.len() > STORE_MAX_BYTES {
            return Err(X509Error::CertificateMalformed);
        }
        if bytes.first() == Some(&0x30) {
            return Certificate::parse(bytes).map(|certificate| Self {
                certificates: vec![certificate],
            });
        }
        let text = std::str::from_utf8(bytes).map_err(|_| X509Error::CertificateMalformed)?;
        let mut certificates = Vec::new();
        let mut rest = text;
        while let Some((_, block)) = rest.split_once(BEGIN) {
            let (body, after) = block.split_once(END).ok_or(X509Error::CertificateMalformed)?;
            if certificates.len() == CERTIFICATES_MAX {
                return Err(X509Error::CertificateMalformed);
            }
            certificates.push(Certificate::parse(format!("{BEGIN}{body}{END}\n").as_bytes())?);
            rest = after;
        }
        if certificates.is_empty() {
            return Err(X509Error::CertificateMalformed);
        }
        Ok(Self { certificates })
    }

    /// Whether `certificate` leads to a root here at the time `now`. Its own dates and uses are not looked at.
    ///
    /// # Errors
    ///
    /// When no chain holds.
    pub fn check(&self, certificate: &Certificate, now: SystemTime) -> Result<(), X509Error> {
        let mut attempts = ATTEMPTS_MAX;
        if self.certificates.contains(certificate) || self.leads_up(certificate, 0, now, &mut attempts) {
            return Ok(());
        }
        Err(X509Error::Untrusted)
    }

    /// Whether a chain goes on from `below`, which has `depth` CAs beneath it, up to a root.
    fn leads_up(&self, below: &Certificate, depth: usize, now: SystemTime, attempts: &mut usize) -> bool {
        if depth == DEPTH_MAX {
            return false;
        }
        for issuer in &self.certificates {
            let may = issuer.subject() == below.issuer()
                && issuer != below
                && issuer.issuing_depth(now).is_some_and(|most| most >= depth);
            if !may {
                continue;
            }
            let Some(left) = attempts.checked_sub(1) else {
                return false;
            };
            *attempts = left;
            if !below.is_signed_by(issuer) {
                continue;
            }
            // It is trusted for being here, so its own signature, often SHA-1 still, is nothing to look at.
            if issuer.subject() == issuer.issuer() || self.leads_up(issuer, depth + 1, now, attempts) {
                return true;
            }
        }
        false
    }
}
