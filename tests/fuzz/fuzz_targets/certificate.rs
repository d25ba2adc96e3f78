//! A certificate, as a signer's and as a root.
#![no_main]

use std::time::{Duration, SystemTime};

use image_trust::x509::{Certificate, ImageSignature, TrustStore};
use image_trust::{Digests, HashMethod};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let Ok(certificate) = Certificate::parse(bytes) else {
        return;
    };
    for key_type in ["RSA-PSS", "DSA", "ECC_SECP384R1", "ECC_SECP521R1"] {
        let signature = ImageSignature::from_properties(|name| match name {
            "img_signature" => Some("MAYCAQECAQE="),
            "img_signature_hash_method" => Some("SHA-256"),
            "img_signature_key_type" => Some(key_type),
            _ => Some("125e6199-2de4-46e3-b091-8e2401ef0d63"),
        });
        let signature = signature.expect("documented values").expect("all four");
        let digests = Digests::new(HashMethod::ALL).finish();
        assert!(
            signature.verify(&digests, &certificate, None, now).is_err(),
            "nobody signed this"
        );
    }
    if let Ok(roots) = TrustStore::parse(bytes) {
        let _ = roots.check(&certificate, now);
    }
});
