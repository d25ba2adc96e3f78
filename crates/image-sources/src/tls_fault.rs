//! What is wrong when there is no trusted connection.

use std::error::Error;
use std::fmt;

use rustls::{CertificateError, InvalidMessage};

use crate::chain::find;

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
