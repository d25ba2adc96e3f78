//! Whether a key of a ring may be used now: what its own signatures, and its primary key's, say of it.

use std::time::SystemTime;

use pgp::composed::SignedPublicKey;
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{KeyFlags, PublicSubkey, Signature, SignatureType, SubpacketData};
use pgp::types::{EcdsaPublicParams, EddsaLegacyPublicParams, KeyDetails, PublicParams, Tag};
use rsa::traits::PublicKeyParts as _;

use super::key_ring::Candidate;
use super::{CLOCK_SKEW, OpenPgpError, expired, is_strong, unknown_critical};

/// Fewest bits where bits count (NIST SP 800-131A revision 2).
const BITS_MIN: usize = 2048;

/// Whether `key` of `certificate` may sign documents now.
pub(super) fn check(certificate: &SignedPublicKey, key: &Candidate<'_>, now: SystemTime) -> Result<(), OpenPgpError> {
    let primary_may_sign = check_primary(certificate, now)?;
    match key {
        Candidate::Primary(primary) if !primary_may_sign => Err(unfit(*primary, "it is not for signing")),
        Candidate::Primary(_) => Ok(()),
        Candidate::Subkey(subkey, signatures) => check_subkey(certificate, subkey, signatures, now),
    }
}

/// Whether the primary key holds now; tells whether it may sign documents itself.
fn check_primary(certificate: &SignedPublicKey, now: SystemTime) -> Result<bool, OpenPgpError> {
    let primary = &certificate.primary_key;
    let details = &certificate.details;
    if details
        .revocation_signatures
        .iter()
        .any(|signature| signature.verify_key(primary).is_ok())
    {
        return Err(OpenPgpError::KeyRevoked { key: name(primary) });
    }
    check_strength(primary)?;
    let direct = latest(details.direct_signatures.iter().filter(|signature| {
        signature.typ() == Some(SignatureType::Key) && usable(signature, now) && signature.verify_key(primary).is_ok()
    }));
    let of_users = latest(details.users.iter().filter_map(|user| {
        let by_itself = |signature: &&Signature| signature.verify_certification(primary, Tag::UserId, &user.id).is_ok();
        let is_revocation = |signature: &&Signature| signature.typ() == Some(SignatureType::CertRevocation);
        if user
            .signatures
            .iter()
            .filter(is_revocation)
            .any(|signature| by_itself(&signature))
        {
            return None;
        }
        let own = user.signatures.iter().filter(|signature| !is_revocation(signature));
        latest(own.filter(|signature| usable(signature, now)).filter(by_itself))
    }));
    let statements: Vec<_> = direct.into_iter().chain(of_users).collect();
    if statements.is_empty() {
        return Err(unfit(primary, "it has no signature of its own that holds"));
    }
    let created = SystemTime::from(primary.created_at());
    // The strictest of the two kinds holds.
    if statements
        .iter()
        .any(|statement| expired(created, statement.key_expiration_time(), now))
    {
        return Err(OpenPgpError::KeyExpired { key: name(primary) });
    }
    Ok(statements
        .iter()
        .all(|statement| flags(statement).is_none_or(KeyFlags::sign)))
}

fn check_subkey(
    certificate: &SignedPublicKey,
    subkey: &PublicSubkey,
    signatures: &[Signature],
    now: SystemTime,
) -> Result<(), OpenPgpError> {
    let primary = &certificate.primary_key;
    let binds = |signature: &&Signature| signature.verify_subkey_binding(primary, subkey).is_ok();
    let of_type = |kind| signatures.iter().filter(move |signature| signature.typ() == Some(kind));
    if of_type(SignatureType::SubkeyRevocation).any(|signature| binds(&signature)) {
        return Err(OpenPgpError::KeyRevoked { key: name(subkey) });
    }
    check_strength(subkey)?;
    let strong = |signature: &&Signature| usable(signature, now) && signature.hash_alg().is_some_and(is_strong);
    let Some(binding) = latest(of_type(SignatureType::SubkeyBinding).filter(strong).filter(binds)) else {
        return Err(unfit(subkey, "its primary key does not bind it"));
    };
    if !flags(binding).is_some_and(KeyFlags::sign) {
        return Err(unfit(subkey, "it is not for signing"));
    }
    // RFC 9580 §5.2.1.9: else anybody could take another's subkey, and its signatures, for his own.
    let back = binding
        .embedded_signature()
        .filter(|back| back.hash_alg().is_some_and(is_strong));
    if back.is_none_or(|back| back.verify_primary_key_binding(subkey, primary).is_err()) {
        return Err(unfit(subkey, "it does not say that it belongs to its primary key"));
    }
    let created = SystemTime::from(subkey.created_at());
    if expired(created, binding.key_expiration_time(), now) {
        return Err(OpenPgpError::KeyExpired { key: name(subkey) });
    }
    Ok(())
}

/// Whether what a key says of itself can be taken: not MD5, not expired, not from the future, nothing critical unknown.
fn usable(signature: &Signature, now: SystemTime) -> bool {
    let Some(created) = signature.created().map(SystemTime::from) else {
        return false;
    };
    signature
        .hash_alg()
        .is_some_and(|hash| is_strong(hash) || hash == HashAlgorithm::Sha1)
        && unknown_critical(signature).is_none()
        && created <= now + CLOCK_SKEW
        && !expired(created, signature.signature_expiration_time(), now)
}

fn latest<'a>(signatures: impl Iterator<Item = &'a Signature>) -> Option<&'a Signature> {
    signatures.max_by_key(|signature| signature.created())
}

fn flags(signature: &Signature) -> Option<&KeyFlags> {
    signature
        .config()?
        .hashed_subpackets()
        .find_map(|subpacket| match &subpacket.data {
            SubpacketData::KeyFlags(flags) => Some(flags),
            _ => None,
        })
}

fn check_strength(key: &impl KeyDetails) -> Result<(), OpenPgpError> {
    let strong = match key.public_params() {
        PublicParams::RSA(parameters) => parameters.key.n().bits() >= BITS_MIN,
        PublicParams::DSA(parameters) => parameters.key.components().p().bits() >= BITS_MIN,
        PublicParams::ECDSA(EcdsaPublicParams::Unsupported { .. })
        | PublicParams::EdDSALegacy(EddsaLegacyPublicParams::Unsupported { .. })
        | PublicParams::Unknown { .. } => false,
        _ => true,
    };
    if strong {
        return Ok(());
    }
    Err(OpenPgpError::KeyWeak { key: name(key) })
}

fn name(key: &impl KeyDetails) -> String {
    format!("{:X}", key.fingerprint())
}

fn unfit(key: &impl KeyDetails, problem: &'static str) -> OpenPgpError {
    OpenPgpError::KeyUnfit {
        key: name(key),
        problem,
    }
}
