//! Whether the bytes of an image are right.
//!
//! ```text
//!            bytes ──► Digests ──► DigestSet ─┐
//!  request: Pinned, ImageSignature ───────────┤
//!  fetched: sums file and its signature ──────┼─► Evidence ──► TrustPolicy::judge ──► Verdict
//!  registry: manifest digest, signatures ─────┘       ▲
//!                                  Source ────────────┘
//! ```
//!
//! Nothing here touches the network, and no file but those a policy and a certificate directory name. What a publisher, a
//! registry or a client sends is bounded in size before it is parsed, and the arithmetic done for it is bounded in number. No
//! secret is ever held: only public keys, signatures and digests, so nothing has to take the same time for every input. (That
//! is also why RUSTSEC-2023-0071, a leak of *private* RSA keys through timing in the `rsa` crate, does not apply.)
//!
//! An image is taken when [`policy::TrustPolicy::judge`] says so, and never for want of evidence. Every failure has a stable
//! code; these are all of them:
//!
//! | code | what failed |
//! |---|---|
//! | `bad_digest` `bad_source` | a digest or an address in the request cannot be read |
//! | `digest_mismatch` `digest_not_computed` | the bytes are others; the caller forgot a method |
//! | `manifest_digest_mismatch` | the registry gave another manifest than the reference pins |
//! | `source_refused` | the policy takes nothing from there |
//! | `proof_missing` | no digest or signature where one is demanded |
//! | `sums_too_long` `sums_malformed` `sums_name_missing` `sums_name_ambiguous` `sums_no_name` | the sums file does not tell |
//! | `openpgp_too_long` `openpgp_malformed` `openpgp_not_clear_signed` | there is no signature that can be read |
//! | `openpgp_unknown_key` `openpgp_key_expired` `openpgp_key_revoked` `openpgp_key_weak` `openpgp_key_unfit` | its key does not count |
//! | `openpgp_mismatch` `openpgp_weak_hash` `openpgp_wrong_kind` `openpgp_signature_expired` `openpgp_signature_in_future` | it does not count itself |
//! | `cosign_unsigned` `cosign_manifest_malformed` `cosign_untrusted_key` | no signature by a trusted key |
//! | `cosign_payload_digest` `cosign_payload_malformed` `cosign_other_image` `cosign_claim_missing` | it is about something else |
//! | `x509_incomplete` `x509_property` `x509_key_type_unsupported` | the image's signature properties |
//! | `x509_no_directory` `x509_certificate_missing` `x509_certificate_unreadable` `x509_certificate_malformed` | no certificate |
//! | `x509_certificate_not_yet_valid` `x509_certificate_expired` `x509_certificate_usage` `x509_certificate_extension` `x509_certificate_untrusted` `x509_signer_not_allowed` | the certificate does not count |
//! | `x509_key` `x509_key_type_mismatch` `x509_not_hashed` `x509_mismatch` | the signature does not hold |
//! | `key_malformed` `key_unsupported` `key_weak` | a public key's file |
//! | `key_ring_too_long` `key_ring_malformed` `key_ring_empty` | a key ring's file |
//! | `trust_policy_invalid` | the configuration, with all its problems |
//!
//! Not here: Sigstore without keys (certificates of Fulcio, the log Rekor) and its bundles, revocation lists of X.509,
//! designated revokers of OpenPGP, and signing: only verification.

pub mod cosign;
mod digests;
pub mod openpgp;
pub mod policy;
mod public_key;
mod source;
mod sums;
pub mod x509;

pub use digests::{BadPinned, DigestError, DigestSet, Digests, HashMethod, Pinned};
pub use public_key::{KEY_MAX_BYTES, KeyError, KeyKind, Padding, PublicKey};
pub use source::{BadSource, Pattern, Source};
pub use sums::{SUMS_MAX_BYTES, Sums, SumsEntry, SumsError, name_of_url};
