//! Policies over images that real tools signed: each kind of demand met, missed and lied to.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

mod tools;

use std::fmt::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image_trust::cosign::{CosignSignature, PAYLOAD_MEDIA_TYPE, SIGNATURE_ANNOTATION, SignatureManifest};
use image_trust::policy::{Container, Evidence, SumsFile, TrustPolicy, TrustSection, read_trust_file};
use image_trust::x509::ImageSignature;
use image_trust::{DigestSet, Digests, HashMethod, Pinned, Source, x509};
use tools::Bench;

const IMAGE: &[u8] = b"the bytes of an image";
const UUID: &str = "125e6199-2de4-46e3-b091-8e2401ef0d63";

fn digests(image: &[u8]) -> DigestSet {
    let mut digests = Digests::sha256_sha512();
    digests.update(image);
    digests.finish()
}

fn policy(bench: &Bench, rule: &str) -> TrustPolicy {
    let dir = bench.path().display();
    let mut text =
        format!("certificates = \"{dir}\"\n[[rule]]\nname = \"it\"\nsources = [\"https://host/*\", \"reg.io/*\"]\n");
    writeln!(text, "{}", rule.replace("DIR", &dir.to_string())).unwrap();
    let section: TrustSection = toml::from_str(&text).unwrap();
    TrustPolicy::build(&section, read_trust_file).unwrap()
}

fn code(policy: &TrustPolicy, evidence: &Evidence<'_>) -> String {
    let source = Source::parse("https://host/disk.img").unwrap();
    let verdict = policy.judge(&source, evidence, SystemTime::now() + Duration::from_secs(60));
    verdict.into_result().map_or_else(
        |refusal| {
            let cause = std::error::Error::source(&refusal)
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(!cause.is_empty() && !refusal.to_string().contains(&cause));
            refusal.code().to_owned()
        },
        |grounds| format!("ok {}", grounds.proofs.len()),
    )
}

/// A sums file, its signature by each of two keys, the same clear-signed, and the key rings.
fn sums_files() -> Option<Bench> {
    let bench = Bench::with("gpg")?;
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(bench.at("gnupg"))
        .unwrap();
    let gpg = |line: &str| {
        bench.run(&format!(
            "gpg --batch --quiet --yes --pinentry-mode loopback --passphrase= {line}"
        ));
    };
    bench.write("disk.img", IMAGE);
    let listed = digests(IMAGE).pinned(HashMethod::Sha256).unwrap().hex();
    bench.write("sums", format!("{listed} *disk.img\n"));
    for name in ["mine", "other"] {
        gpg(&format!("--quick-generate-key {name} ed25519 sign never"));
        gpg(&format!("--output {name}.gpg --export {name}"));
    }
    gpg("--local-user mine --output sums.sig --detach-sign sums");
    gpg("--local-user mine --output sums.asc --clear-sign sums");
    gpg("--local-user other --output other.sig --detach-sign sums");
    bench.run("gpgconf --kill gpg-agent");
    Some(bench)
}

#[test]
fn signed_sums_files() {
    let Some(bench) = sums_files() else { return };
    let right = digests(IMAGE);
    let policy = policy(&bench, "demand = \"openpgp\"\nkeys = [\"DIR/mine.gpg\"]");

    let (sums, clear) = (bench.read("sums"), bench.read("sums.asc"));
    let (good, other) = (bench.read("sums.sig"), bench.read("other.sig"));
    let changed = String::from_utf8(clear.clone())
        .unwrap()
        .replace("disk.img", "disc.img")
        .into_bytes();
    let wrong = digests(b"other bytes");
    for (file, signature, bytes, expected) in [
        (&sums, Some(&good), &right, "ok 2"),
        (&clear, None, &right, "ok 2"),
        (&sums, Some(&good), &wrong, "digest_mismatch"),
        (&clear, None, &wrong, "digest_mismatch"),
        (&sums, Some(&other), &right, "openpgp_unknown_key"),
        (&sums, None, &right, "proof_missing"),
        (&changed, None, &right, "openpgp_mismatch"),
        (&changed, Some(&good), &right, "openpgp_mismatch"),
    ] {
        let signature = signature.map(Vec::as_slice);
        let sums = SumsFile {
            file,
            name: "disk.img",
            signature,
        };
        let evidence = Evidence {
            sums: Some(sums),
            ..Evidence::of(bytes)
        };
        assert_eq!(code(&policy, &evidence), expected);
    }
    let unlisted = SumsFile {
        file: &sums,
        name: "disc.img",
        signature: Some(&good),
    };
    let evidence = Evidence {
        sums: Some(unlisted),
        ..Evidence::of(&right)
    };
    assert_eq!(code(&policy, &evidence), "sums_name_missing");
    // Unsigned where a signature is demanded, and a digest is none.
    let pinned = right.pinned(HashMethod::Sha256).unwrap();
    assert_eq!(code(&policy, &Evidence::of(&right)), "proof_missing");
    assert_eq!(
        code(
            &policy,
            &Evidence {
                pinned: Some(&pinned),
                ..Evidence::of(&right)
            }
        ),
        "proof_missing"
    );
}

#[test]
fn signed_container_images() {
    let Some(bench) = Bench::with("openssl") else { return };
    for name in ["mine", "other"] {
        bench.run(&format!(
            "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {name}.key"
        ));
        bench.run(&format!("openssl pkey -in {name}.key -pubout -out {name}.pub"));
    }
    let manifest = Pinned::new(HashMethod::Sha256, HashMethod::Sha256.digest(b"a manifest")).unwrap();
    let payload = format!(
        r#"{{"critical":{{"image":{{"docker-manifest-digest":"{manifest}"}},"type":"cosign container image signature"}},"optional":{{"team":"images"}}}}"#
    );
    bench.write("payload", &payload);
    let sign = |name: &str| {
        bench.run(&format!("openssl dgst -sha256 -sign {name}.key -out signature payload"));
        let layers = serde_json::json!({ "layers": [{
            "mediaType": PAYLOAD_MEDIA_TYPE,
            "size": payload.len(),
            "digest": format!("sha256:{}", Pinned::new(HashMethod::Sha256, HashMethod::Sha256.digest(payload.as_bytes())).unwrap().hex()),
            "annotations": { SIGNATURE_ANNOTATION: STANDARD.encode(bench.read("signature")) },
        }]});
        let layer = SignatureManifest::parse(layers.to_string().as_bytes())
            .unwrap()
            .layers
            .remove(0);
        CosignSignature {
            layer,
            payload: payload.clone().into_bytes(),
        }
    };
    let (mine, other) = (sign("mine"), sign("other"));
    let demand = "demand = \"cosign\"\nkeys = [\"DIR/mine.pub\"]";
    let plain = policy(&bench, demand);
    let claiming = policy(&bench, &format!("{demand}\nclaims = {{ team = \"images\" }}"));
    let strict = policy(&bench, &format!("{demand}\nclaims = {{ team = \"others\" }}"));
    let bytes = digests(IMAGE);
    for (policy, signatures, expected) in [
        (&plain, vec![mine.clone()], "ok 1"),
        (&plain, vec![other.clone(), mine.clone()], "ok 1"),
        (&claiming, vec![mine.clone()], "ok 1"),
        (&strict, vec![mine.clone()], "cosign_claim_missing"),
        (&plain, vec![other], "cosign_untrusted_key"),
        (&plain, vec![], "cosign_unsigned"),
    ] {
        let container = Container {
            manifest: &manifest,
            asked: None,
            signatures: &signatures,
        };
        let evidence = Evidence {
            container: Some(container),
            ..Evidence::of(&bytes)
        };
        assert_eq!(code(policy, &evidence), expected);
    }
    let moved = Pinned::new(HashMethod::Sha256, HashMethod::Sha256.digest(b"another manifest")).unwrap();
    let container = Container {
        manifest: &moved,
        asked: None,
        signatures: &[mine],
    };
    let evidence = Evidence {
        container: Some(container),
        ..Evidence::of(&bytes)
    };
    assert_eq!(code(&plain, &evidence), "cosign_other_image");
    assert_eq!(code(&plain, &Evidence::of(&bytes)), "proof_missing");
}

#[test]
fn image_signatures_by_certificates() {
    let Some(bench) = Bench::with("openssl") else { return };
    bench.write("image", IMAGE);
    bench.run("openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out mine.key");
    bench.run(&format!(
        "openssl req -x509 -new -key mine.key -subj /CN=mine -days 2 -out {UUID}.pem"
    ));
    bench.run("openssl dgst -sha256 -sign mine.key -out signature image");
    let read = |uuid: &'static str| {
        let signature = STANDARD.encode(bench.read("signature"));
        let signature = ImageSignature::from_properties(|name| match name {
            x509::SIGNATURE => Some(&signature),
            x509::HASH_METHOD => Some("SHA-256"),
            x509::KEY_TYPE => Some("ECC_SECP384R1"),
            _ => Some(uuid),
        });
        signature.unwrap().unwrap()
    };
    let (known, unknown) = (read(UUID), read("00000000-0000-0000-0000-000000000001"));
    let any = policy(&bench, "demand = \"x509\"");
    let named = policy(&bench, &format!("demand = \"x509\"\nsigners = [\"{UUID}\"]"));
    let others = policy(
        &bench,
        "demand = \"x509\"\nsigners = [\"00000000-0000-0000-0000-000000000001\"]",
    );
    let nothing = policy(&bench, "demand = \"nothing\"");
    let (right, wrong) = (digests(IMAGE), digests(b"other bytes"));
    for (policy, signature, bytes, expected) in [
        (&any, Some(&known), &right, "ok 1"),
        (&named, Some(&known), &right, "ok 1"),
        (&others, Some(&known), &right, "x509_signer_not_allowed"),
        (&any, Some(&known), &wrong, "x509_mismatch"),
        (&any, Some(&unknown), &right, "x509_certificate_missing"),
        (&any, None, &right, "proof_missing"),
        // A false signature refuses an image even where none is demanded.
        (&nothing, Some(&known), &right, "ok 1"),
        (&nothing, Some(&known), &wrong, "x509_mismatch"),
        (&nothing, None, &wrong, "ok 0"),
    ] {
        let evidence = Evidence {
            x509: signature,
            ..Evidence::of(bytes)
        };
        assert_eq!(code(policy, &evidence), expected);
    }
}
