//! Digests, sums files and their signatures, and what a policy demands.

use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image_sources::{Source, WebSource};
use image_trust::policy::{Proof, RuleSection, TrustPolicy, TrustSection, Verdict};
use image_trust::x509::{self, ImageSignature};
use image_trust::{HashMethod, Pinned};
use images::{ImportRequest, ImportSource, SumsRequest};

use crate::nginx::Nginx;
use crate::registry_stub::gzip;
use crate::{agent, disk, have, import, open, refused, request, run, web};

fn pin(method: HashMethod, bytes: &[u8]) -> Pinned {
    Pinned::new(method, method.digest(bytes)).unwrap()
}

fn proofs(verdict: Verdict) -> Vec<Proof> {
    match verdict {
        Verdict::Accepted(grounds) => grounds.proofs,
        Verdict::Refused(refusal) => panic!("{refusal}"),
    }
}

#[tokio::test]
async fn pinned_digests_must_hold_packed_or_unpacked() {
    let Some(nginx) = Nginx::start() else { return };
    let packed = gzip(&disk());
    let url = nginx.put("disk.gz", &packed);
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let pinned = |pins: &[Pinned]| {
        let mut request = request(web(&url));
        request.evidence.pinned = pins.to_vec();
        request
    };
    let wrong = pin(HashMethod::Sha256, b"something else");
    assert_eq!(
        refused(&store, pinned(std::slice::from_ref(&wrong))).await,
        "digest_mismatch"
    );
    let right = pin(HashMethod::Sha512, &disk());
    assert_eq!(
        refused(&store, pinned(&[right.clone(), wrong])).await,
        "digest_mismatch"
    );
    assert!(store.list().unwrap().is_empty());
    for pin in [
        right,
        pin(HashMethod::Sha256, &packed),
        pin(HashMethod::Sha256, &disk()),
    ] {
        let imported = import(&store, pinned(std::slice::from_ref(&pin))).await.unwrap();
        assert_eq!(proofs(imported.verdict), [Proof::Digest(pin)]);
    }
}

#[tokio::test]
async fn a_policy_may_demand_a_digest_or_refuse_a_source_before_a_byte_is_fetched() {
    let Some(nginx) = Nginx::start() else { return };
    let url = nginx.put("disk.raw", &disk());
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let by = |unmatched: &str| {
        let section = TrustSection {
            unmatched: Some(unmatched.to_owned()),
            ..TrustSection::default()
        };
        let mut request = request(web(&url));
        request.trust = Arc::new(TrustPolicy::build(&section, |path| std::fs::read(path)).unwrap());
        request
    };
    assert_eq!(refused(&store, by("refuse")).await, "source_refused");
    assert_eq!(refused(&store, by("digest")).await, "proof_missing");
    assert_eq!(nginx.log(), Vec::<String>::new());
    let mut pinned = by("digest");
    pinned.evidence.pinned = vec![pin(HashMethod::Sha256, &disk())];
    assert!(import(&store, pinned).await.is_ok());
}

#[tokio::test]
async fn a_signed_sums_file_vouches_for_an_image() {
    let Some(nginx) = Nginx::start() else { return };
    if !have("gpg") {
        return;
    }
    let (keys, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let home = keys.path().join("home");
    std::fs::create_dir(&home).unwrap();
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o700)).unwrap();
    }
    let gpg = |line: &str| {
        let options = format!(
            "gpg --homedir {} --batch --quiet --yes --pinentry-mode loopback --passphrase=",
            home.display()
        );
        run(keys.path(), &format!("{options} {line}"))
    };
    gpg("--quick-generate-key publisher ed25519 sign never");
    gpg("--output ring --export publisher");
    let url = nginx.put("disk.raw", &disk());
    let list = format!("{}  disk.raw\n", pin(HashMethod::Sha256, &disk()).hex());
    std::fs::write(keys.path().join("SHA256SUMS"), &list).unwrap();
    gpg("--output SHA256SUMS.gpg --detach-sign SHA256SUMS");
    run(
        keys.path(),
        &format!("gpgconf --homedir {} --kill gpg-agent", home.display()),
    );
    let section = TrustSection {
        rule: vec![RuleSection {
            name: "mirror".to_owned(),
            sources: vec![format!("{}*", nginx.url(""))],
            demand: "openpgp".to_owned(),
            keys: vec![keys.path().join("ring")],
            ..RuleSection::default()
        }],
        ..TrustSection::default()
    };
    let policy = Arc::new(TrustPolicy::build(&section, |path| std::fs::read(path)).unwrap());
    let source = |url: &str| Source::Web(WebSource::new(&agent(), url, None).unwrap());
    let sums_url = nginx.put("SHA256SUMS", list.as_bytes());
    let signature = std::fs::read(keys.path().join("SHA256SUMS.gpg")).unwrap();
    let signature_url = nginx.put("SHA256SUMS.gpg", &signature);
    let signed = |sums: &str| -> ImportRequest {
        let mut request = request(web(&url));
        request.trust = Arc::clone(&policy);
        request.evidence.sums = Some(SumsRequest {
            file: source(sums),
            signature: Some(source(&signature_url)),
            name: "disk.raw".to_owned(),
        });
        request
    };
    let store = open(root.path());
    let mut without = signed(&sums_url);
    without.evidence.sums = None;
    assert_eq!(refused(&store, without).await, "proof_missing");
    let other = nginx.put("OTHER", list.replace("disk", "risk").as_bytes());
    assert_eq!(refused(&store, signed(&other)).await, "openpgp_mismatch");
    assert_eq!(refused(&store, signed(&nginx.url("none"))).await, "not_found");
    let imported = import(&store, signed(&sums_url)).await.unwrap();
    let proofs = proofs(imported.verdict);
    assert!(
        matches!(proofs.as_slice(), [Proof::OpenPgp(_), Proof::Listed(_)]),
        "{proofs:?}"
    );
    // The list is right, the image has changed.
    nginx.put("disk.raw", &disk()[..4 << 20]);
    assert_eq!(refused(&store, signed(&sums_url)).await, "digest_mismatch");
}

/// Properties of an image of [`disk`] that the key of `name` in `dir` signed, over `signed`.
fn signature(dir: &Path, name: &str, uuid: &str, signed: &[u8]) -> ImageSignature {
    std::fs::write(dir.join("signed"), signed).unwrap();
    run(
        dir,
        &format!("openssl dgst -sha512 -sign {name}.key -out signature signed"),
    );
    let signature = STANDARD.encode(std::fs::read(dir.join("signature")).unwrap());
    let read = ImageSignature::from_properties(|name| match name {
        x509::SIGNATURE => Some(&signature),
        x509::HASH_METHOD => Some("SHA-512"),
        x509::KEY_TYPE => Some("ECC_SECP384R1"),
        x509::CERTIFICATE_UUID => Some(uuid),
        _ => None,
    });
    read.unwrap().unwrap()
}

#[tokio::test]
async fn signature_properties_are_judged_by_the_bytes_of_the_whole_import() {
    if !have("openssl") {
        return;
    }
    const SIGNER: &str = "125e6199-2de4-46e3-b091-8e2401ef0d63";
    const EXPIRED: &str = "225e6199-2de4-46e3-b091-8e2401ef0d63";
    const OTHER: &str = "325e6199-2de4-46e3-b091-8e2401ef0d63";
    const MISSING: &str = "425e6199-2de4-46e3-b091-8e2401ef0d63";
    let work = tempfile::tempdir().unwrap();
    let dir = work.path();
    for (uuid, until) in [(SIGNER, 2100), (EXPIRED, 2021), (OTHER, 2100)] {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(dir.join(format!("{uuid}.pem")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{uuid}.key")), key.serialize_pem()).unwrap();
    }
    std::fs::copy(dir.join(format!("{SIGNER}.key")), dir.join(format!("{MISSING}.key"))).unwrap();
    let section = TrustSection {
        certificates: Some(dir.to_path_buf()),
        rule: vec![RuleSection {
            name: "signed".to_owned(),
            sources: vec!["upload://".to_owned()],
            demand: "x509".to_owned(),
            signers: [SIGNER, EXPIRED, MISSING].map(str::to_owned).to_vec(),
            ..RuleSection::default()
        }],
        ..TrustSection::default()
    };
    let policy = Arc::new(TrustPolicy::build(&section, |path| std::fs::read(path)).unwrap());
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let sent = |bytes: Vec<u8>, x509: Option<ImageSignature>| {
        let mut request = request(ImportSource::Upload(Box::new(std::io::Cursor::new(bytes))));
        request.trust = Arc::clone(&policy);
        request.evidence.x509 = x509;
        request
    };
    let signed = |uuid| Some(signature(dir, uuid, uuid, &disk()));
    let mut changed = disk();
    changed[5000] ^= 1;
    for (bytes, x509, code) in [
        (disk(), None, "proof_missing"),
        (changed, signed(SIGNER), "x509_mismatch"),
        (
            disk(),
            Some(signature(dir, SIGNER, SIGNER, b"other bytes")),
            "x509_mismatch",
        ),
        // Somebody else's key under the signer's name.
        (disk(), Some(signature(dir, OTHER, SIGNER, &disk())), "x509_mismatch"),
        (disk(), signed(EXPIRED), "x509_certificate_expired"),
        (disk(), signed(OTHER), "x509_signer_not_allowed"),
        (disk(), signed(MISSING), "x509_certificate_missing"),
    ] {
        assert_eq!(refused(&store, sent(bytes, x509)).await, code);
        assert!(store.list().unwrap().is_empty(), "{code}");
    }
    // As it is sent and as it is unpacked: both are the image.
    for bytes in [disk(), gzip(&disk())] {
        let imported = import(&store, sent(bytes, signed(SIGNER))).await.unwrap();
        assert_eq!(proofs(imported.verdict), [Proof::X509(SIGNER.parse().unwrap())]);
    }
    // Also where no rule asks for it, a signature that is there has to hold.
    let mut unasked = sent(disk(), Some(signature(dir, SIGNER, SIGNER, b"other bytes")));
    unasked.source = ImportSource::Upload(Box::new(std::io::Cursor::new(disk())));
    let section = TrustSection {
        certificates: Some(dir.to_path_buf()),
        ..TrustSection::default()
    };
    unasked.trust = Arc::new(TrustPolicy::build(&section, |path| std::fs::read(path)).unwrap());
    assert_eq!(refused(&store, unasked).await, "x509_mismatch");
}
