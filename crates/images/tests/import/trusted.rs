//! Digests, sums files and their signatures, and what a policy demands.

use std::sync::Arc;

use image_sources::{Source, WebSource};
use image_trust::policy::{Proof, RuleSection, TrustPolicy, TrustSection, Verdict};
use image_trust::{HashMethod, Pinned};
use images::{ImportRequest, SumsRequest};

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
