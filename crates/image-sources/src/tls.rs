//! Trust: certificate authorities, and what is wrong when there is none.

use std::error::Error;
use std::fmt;
use std::sync::Once;

use reqwest::Certificate;
use rustls::{CertificateError, InvalidMessage};

use crate::error::{SourceError, find};

/// Largest bundle of certificate authorities read, bytes: Mozilla's whole programme is a quarter of it.
const BUNDLE_MAX: usize = 1 << 20;

/// What is wrong with a TLS connection, as far as an operator can do something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsFault {
    /// The certificate, or one above it, is past its end.
    Expired,
    /// The certificate, or one above it, begins in the future.
    NotYetValid,
    /// No authority trusted here vouches for it.
    UnknownIssuer,
    /// It is for other names.
    WrongName,
    /// It was withdrawn.
    Revoked,
    /// The peer speaks no TLS on that port.
    NoTls,
    /// Anything else.
    Other,
}

impl TlsFault {
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Expired => "tls_expired",
            Self::NotYetValid => "tls_not_yet_valid",
            Self::UnknownIssuer => "tls_unknown_issuer",
            Self::WrongName => "tls_wrong_name",
            Self::Revoked => "tls_revoked",
            Self::NoTls => "tls_not_spoken",
            Self::Other => "tls_failed",
        }
    }

    /// The fault that `error` tells of; none if it has nothing to do with TLS.
    pub(crate) fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let error = find::<rustls::Error>(error)?;
        Some(match error {
            rustls::Error::InvalidCertificate(error) => match error {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYetValid,
                CertificateError::UnknownIssuer => Self::UnknownIssuer,
                // A certificate that signs itself and is no trust anchor; the type behind is not ours to name.
                CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
                    Self::UnknownIssuer
                }
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Self::WrongName,
                CertificateError::Revoked => Self::Revoked,
                _ => Self::Other,
            },
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => Self::NoTls,
            _ => Self::Other,
        })
    }
}

impl fmt::Display for TlsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => {
                "its certificate has expired; its operator has to renew it (or this host's clock is wrong)"
            }
            Self::NotYetValid => "its certificate is not valid yet; check this host's clock",
            Self::UnknownIssuer => {
                "its certificate is from no authority trusted here; if it is the right server, give the source its \
                 authority's certificate"
            }
            Self::WrongName => "its certificate is for another name; check the host in the URL",
            Self::Revoked => "its certificate was revoked",
            Self::NoTls => "it does not speak TLS on this port; perhaps the URL has to begin with http://",
            Self::Other => "the TLS handshake failed",
        })
    }
}

/// The certificate authorities of a PEM bundle.
pub(crate) fn authorities(pem: &[u8]) -> Result<Vec<Certificate>, SourceError> {
    let wrong = |problem: &str, source| SourceError::Trust {
        problem: format!("the source's bundle of certificate authorities {problem}"),
        source,
    };
    if pem.len() > BUNDLE_MAX {
        return Err(wrong(&format!("is longer than {BUNDLE_MAX} bytes"), None));
    }
    let authorities =
        Certificate::from_pem_bundle(pem).map_err(|error| wrong("is not in PEM form", Some(Box::new(error))))?;
    if authorities.is_empty() {
        return Err(wrong("has no certificate in it; it has to be in PEM form", None));
    }
    Ok(authorities)
}

/// The HTTPS stack is built without a provider of its own; the first one installed in the process serves all.
pub(crate) fn install_cryptography() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // An error means that the program installed one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}
