//! Signatures of container images in cosign's form. cosign itself is in no distribution, so the payload is written as it writes
//! it (Go's JSON of its `payload.SimpleContainerImage`) and signed by openssl with the scheme cosign takes for the kind of key.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

mod tools;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image_trust::cosign::{
    Cosign, CosignError, CosignSignature, PAYLOAD_MEDIA_TYPE, SIGNATURE_ANNOTATION, SignatureManifest,
};
use image_trust::{HashMethod, Pinned, PublicKey};
use tools::Bench;

const IMAGE: &str = "sha256:87ef60f558bad79beea6425a3b28989f01dd417164150ab3baab98dcbf04def8";
const P256: &str = "-algorithm EC -pkeyopt ec_paramgen_curve:P-256";

fn payload(digest: &str) -> String {
    format!(
        r#"{{"critical":{{"identity":{{"docker-reference":"registry.example.com/golden/debian"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":{{"team":"images","count":3}}}}"#
    )
}

fn openssl() -> Option<Bench> {
    Bench::with("openssl")
}

impl Bench {
    fn key(&self, name: &str, options: &str) -> PublicKey {
        self.run(&format!("openssl genpkey {options} -out {name}.key"));
        self.run(&format!("openssl pkey -in {name}.key -pubout -out {name}.pub"));
        PublicKey::from_pem(&self.read(&format!("{name}.pub"))).unwrap()
    }

    /// The payload signed by `name.key`, as it would come out of a registry: from a manifest and a blob.
    fn signed(&self, name: &str, hash: &str, payload: &str) -> CosignSignature {
        self.write("payload", payload);
        match hash {
            "" => self.run(&format!(
                "openssl pkeyutl -sign -rawin -inkey {name}.key -in payload -out signature"
            )),
            hash => self.run(&format!("openssl dgst -{hash} -sign {name}.key -out signature payload")),
        }
        let blob = Pinned::new(HashMethod::Sha256, HashMethod::Sha256.digest(payload.as_bytes())).unwrap();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "size": 233, "digest": IMAGE },
            "layers": [{
                "mediaType": PAYLOAD_MEDIA_TYPE,
                "size": payload.len(),
                "digest": blob,
                "annotations": { SIGNATURE_ANNOTATION: STANDARD.encode(self.read("signature")) },
            }],
        });
        let manifest = SignatureManifest::parse(manifest.to_string().as_bytes()).unwrap();
        CosignSignature {
            layer: manifest.layers.into_iter().next().unwrap(),
            payload: payload.as_bytes().to_vec(),
        }
    }
}

fn code(keys: &[&PublicKey], signatures: &[CosignSignature]) -> &'static str {
    let cosign = Cosign {
        keys: keys.iter().copied().cloned().collect(),
        ..Cosign::default()
    };
    let outcome = cosign.verify(&IMAGE.parse().unwrap(), signatures);
    outcome.map_or_else(|error| error.code(), |_| "ok")
}

#[test]
fn every_kind_of_key() {
    let Some(bench) = openssl() else { return };
    for (name, options, hashes) in [
        ("p256", P256, &["sha256"][..]),
        (
            "p384",
            "-algorithm EC -pkeyopt ec_paramgen_curve:P-384",
            &["sha256", "sha384"],
        ),
        (
            "p521",
            "-algorithm EC -pkeyopt ec_paramgen_curve:P-521",
            &["sha256", "sha512"],
        ),
        ("rsa", "-algorithm RSA -pkeyopt rsa_keygen_bits:3072", &["sha256"]),
        ("ed25519", "-algorithm ED25519", &[""]),
    ] {
        let key = bench.key(name, options);
        for hash in hashes {
            let good = bench.signed(name, hash, &payload(IMAGE));
            assert_eq!(code(&[&key], std::slice::from_ref(&good)), "ok", "{name} {hash}");
            let mut other = good.clone();
            let last = other.payload.len() - 3;
            other.payload[last] ^= 1;
            assert_eq!(code(&[&key], &[other]), "cosign_payload_digest");
        }
        let weak = if hashes == [""] { "" } else { "sha1" };
        if !weak.is_empty() {
            let weak = bench.signed(name, weak, &payload(IMAGE));
            assert_eq!(code(&[&key], &[weak]), "cosign_untrusted_key", "{name}");
        }
    }
}

#[test]
fn one_trusted_signature_suffices() {
    let Some(bench) = openssl() else { return };
    let trusted = bench.key("trusted", P256);
    let second = bench.key("second", "-algorithm ED25519");
    let stranger = bench.key("stranger", P256);
    let good = bench.signed("trusted", "sha256", &payload(IMAGE));
    let strange = bench.signed("stranger", "sha256", &payload(IMAGE));
    assert_eq!(
        code(&[&trusted], &[strange.clone(), good.clone(), strange.clone()]),
        "ok"
    );
    assert_eq!(code(&[&second, &trusted], std::slice::from_ref(&good)), "ok");
    assert_eq!(
        code(&[&second], &[good.clone(), strange.clone()]),
        "cosign_untrusted_key"
    );
    assert_eq!(code(&[], std::slice::from_ref(&good)), "cosign_untrusted_key");
    assert_eq!(code(&[&stranger], &[]), "cosign_unsigned");
}

#[test]
fn what_a_trusted_key_signed_must_be_about_this_image() {
    let Some(bench) = openssl() else { return };
    let key = bench.key("trusted", P256);
    let other = format!("sha256:{}", "0".repeat(64));
    let right = payload(IMAGE);
    for (text, expected) in [
        (right.replace("docker-manifest", "Docker-manifest"), "ok"),
        (
            right.replace(",\"optional\":{\"team\":\"images\",\"count\":3}", ""),
            "ok",
        ),
        (right.replace("{\"team\":\"images\",\"count\":3}", "null"), "ok"),
        (payload(&other), "cosign_other_image"),
        (payload(""), "cosign_other_image"),
        (payload(&IMAGE.to_uppercase()), "cosign_other_image"),
        (
            right.replace("cosign container image signature", "atomic container signature"),
            "cosign_payload_malformed",
        ),
        (
            right.replace(
                "\"docker-manifest-digest\":",
                "\"docker-manifest-digest\":\"x\",\"docker-manifest-digest\":",
            ),
            "cosign_payload_malformed",
        ),
        ("{}".to_owned(), "cosign_payload_malformed"),
        ("not json".to_owned(), "cosign_payload_malformed"),
        (format!("{right}x"), "cosign_payload_malformed"),
        ("[".repeat(10_000), "cosign_payload_malformed"),
    ] {
        let signed = bench.signed("trusted", "sha256", &text);
        assert_eq!(code(&[&key], std::slice::from_ref(&signed)), expected, "{text}");
        // A good one beside it counts all the same.
        let good = bench.signed("trusted", "sha256", &right);
        assert_eq!(code(&[&key], &[signed, good]), "ok");
    }
    // The signature of one payload with another that was never signed.
    let mut swapped = bench.signed("trusted", "sha256", &payload(&other));
    swapped.payload = right.clone().into_bytes();
    assert_eq!(code(&[&key], &[swapped]), "cosign_payload_digest");
}

#[test]
fn claims_that_are_demanded() {
    let Some(bench) = openssl() else { return };
    let key = bench.key("trusted", P256);
    let signed = [bench.signed("trusted", "sha256", &payload(IMAGE))];
    for (name, value, expected) in [
        ("team", "images", Ok(())),
        ("team", "others", Err("cosign_claim_missing")),
        ("absent", "x", Err("cosign_claim_missing")),
        ("count", "3", Err("cosign_claim_missing")),
    ] {
        let cosign = Cosign {
            keys: vec![key.clone()],
            claims: [(name.to_owned(), value.to_owned())].into(),
        };
        let outcome = cosign.verify(&IMAGE.parse().unwrap(), &signed);
        assert_eq!(
            outcome.map(|_| ()).map_err(|error: CosignError| error.code()),
            expected,
            "{name}={value}"
        );
    }
}

#[test]
fn key_files() {
    let Some(bench) = openssl() else { return };
    bench.key("good", P256);
    bench.run("openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out short.key");
    bench.run("openssl pkey -in short.key -pubout -out short.pub");
    bench.run("openssl genpkey -algorithm X25519 -out exchange.key");
    bench.run("openssl pkey -in exchange.key -pubout -out exchange.pub");
    bench.run("openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:secp256k1 -out koblitz.key");
    bench.run("openssl pkey -in koblitz.key -pubout -out koblitz.pub");
    for (file, expected) in [
        ("good.key", "key_malformed"),
        ("short.pub", "key_weak"),
        ("exchange.pub", "key_unsupported"),
        ("koblitz.pub", "key_unsupported"),
    ] {
        assert_eq!(
            PublicKey::from_pem(&bench.read(file)).unwrap_err().code(),
            expected,
            "{file}"
        );
    }
    let good = bench.read("good.pub");
    for at in 0..good.len() {
        assert!(PublicKey::from_pem(&good[..at]).is_err() || at + 1 == good.len());
    }
    for bad in [&b""[..], b"x", &[b'x'; 70_000]] {
        assert!(PublicKey::from_pem(bad).is_err());
    }
}
