//! A signature manifest, a referrers index, and a payload that a trusted key signed: the first byte says which.
#![no_main]

use image_trust::cosign::{Cosign, CosignSignature, SignatureManifest, referrers};
use image_trust::{HashMethod, Pinned, PublicKey};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, bytes)) = bytes.split_first() else {
        return;
    };
    match choice % 3 {
        0 => {
            let _ = referrers(bytes);
        }
        1 => {
            let Ok(manifest) = SignatureManifest::parse(bytes) else {
                return;
            };
            let cosign = Cosign::default();
            let image = Pinned::new(HashMethod::Sha256, vec![0; 32]).expect("32 bytes");
            for layer in manifest.layers {
                let payload = bytes.to_vec();
                assert!(cosign.verify(&image, &[CosignSignature { layer, payload }]).is_err());
            }
        }
        _ => {
            let Ok(key) = PublicKey::from_pem(bytes) else { return };
            for method in HashMethod::ALL {
                let _ = key.verifies_message(method, b"x", bytes, image_trust::Padding::Pkcs1);
            }
        }
    }
});
