//! What a move is known by, and what its two machine processes know each other by.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use control::{Blob, LinkCredentials, MigrationKey};
use rcgen::{CertificateParams, KeyPair};
use spec::MigrationId;

use crate::failure::Failure;

/// Name in certificates of moves. Nobody looks at it: each side knows the other's certificate byte for byte.
const NAME: &str = "karat-migration";

/// A certificate and its key, made for one side of one move.
pub(super) struct Identity {
    certificate_der: Vec<u8>,
    key_der: Vec<u8>,
}

impl Identity {
    /// A new one. Takes a fraction of a millisecond (P-256).
    pub(super) fn make() -> Result<Self, Failure> {
        let made = KeyPair::generate().and_then(|key| {
            let certificate = CertificateParams::new(vec![NAME.to_owned()])?.self_signed(&key)?;
            Ok(Self {
                certificate_der: certificate.der().to_vec(),
                key_der: key.serialize_der(),
            })
        });
        made.map_err(|error| Failure::of(api_types::ErrorCode::Internal, &error))
    }

    /// The certificate, for the other side's daemon.
    pub(super) fn certificate(&self) -> String {
        STANDARD.encode(&self.certificate_der)
    }

    /// For this side's process, which knows the other side by its certificate, in base64.
    pub(super) fn credentials(self, peer: &str) -> Result<LinkCredentials, Failure> {
        let peer = STANDARD.decode(peer).map_err(|error| {
            let text = format!("the certificate of the other host's machine process is no base64: {error}");
            Failure::new(api_types::ErrorCode::InvalidRequest, text)
        })?;
        Ok(LinkCredentials {
            certificate_der: Blob(self.certificate_der),
            key_der: Blob(self.key_der),
            peer_certificate_der: Blob(peer),
        })
    }
}

/// A key that was never used: its halves are independent and random (RFC 9562 version 4: 60 bits of each).
pub(super) fn key() -> MigrationKey {
    let bytes = *MigrationId::random().as_bytes();
    let [a, b, c, d, e, f, g, h, ..] = bytes;
    MigrationKey {
        id: MigrationId::random(),
        token: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_know_each_other_and_no_key_is_used_twice() {
        let (source, target) = (Identity::make().unwrap(), Identity::make().unwrap());
        let (sources, targets) = (source.certificate(), target.certificate());
        assert_ne!(sources, targets);
        let source = source.credentials(&targets).unwrap();
        let target = target.credentials(&sources).unwrap();
        assert_eq!(source.peer_certificate_der, target.certificate_der);
        assert_eq!(target.peer_certificate_der, source.certificate_der);
        assert!(Identity::make().unwrap().credentials("no base64!").is_err());
        assert_ne!(key(), key());
    }
}
