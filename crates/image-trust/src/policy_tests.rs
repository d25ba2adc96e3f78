//! The section's problems, which rule decides, and the demands that need no signature. Those that do: `tests/policy.rs`.

use std::io;
use std::path::Path;

use super::*;
use crate::{DigestSet, Digests};

#[derive(serde::Deserialize)]
struct File {
    trust: TrustSection,
}

fn no_files(path: &Path) -> io::Result<Vec<u8>> {
    match path.to_str() {
        Some("/etc/garbage") => Ok(b"garbage".to_vec()),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

fn build(text: &str) -> Result<TrustPolicy, PolicyProblems> {
    TrustPolicy::build(&toml::from_str::<File>(text).unwrap().trust, no_files)
}

fn problems(text: &str) -> Vec<String> {
    build(text)
        .unwrap_err()
        .0
        .into_iter()
        .map(|problem| problem.field)
        .collect()
}

fn digests() -> DigestSet {
    let mut digests = Digests::sha256_sha512();
    digests.update(b"abc");
    digests.finish()
}

const ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const ZERO: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

fn judge(policy: &TrustPolicy, source: &str, evidence: &Evidence<'_>) -> &'static str {
    let source = if source.is_empty() {
        Source::upload()
    } else {
        Source::parse(source).unwrap()
    };
    match policy.judge(&source, evidence, SystemTime::now()).into_result() {
        Ok(_) => "ok",
        Err(refusal) => refusal.code(),
    }
}

#[test]
fn the_first_rule_that_is_about_a_source_decides() {
    let policy = build(
        r#"
        [trust]
        unmatched = "refuse"
        [[trust.rule]]
        name = "exception"
        sources = ["https://host/signed/free.img"]
        demand = "nothing"
        [[trust.rule]]
        name = "pinned"
        sources = ["https://host/*", "reg.io/golden/*"]
        demand = "digest"
        [[trust.rule]]
        name = "closed"
        sources = ["upload://"]
        demand = "refuse"
        "#,
    )
    .unwrap();
    let digests = digests();
    let bare = Evidence::of(&digests);
    let (right, wrong) = (ABC.parse().unwrap(), ZERO.parse().unwrap());
    let pinned = Evidence {
        pinned: Some(&right),
        ..bare
    };
    let mistaken = Evidence {
        pinned: Some(&wrong),
        ..bare
    };
    for (source, evidence, expected) in [
        ("https://host/signed/free.img", bare, "ok"),
        ("https://host/signed/free.img", pinned, "ok"),
        ("https://host/signed/free.img", mistaken, "digest_mismatch"),
        ("https://host/signed/../signed/%66ree.img?x", bare, "ok"),
        ("https://host/other.img", bare, "proof_missing"),
        ("https://host/other.img", pinned, "ok"),
        ("https://host/other.img", mistaken, "digest_mismatch"),
        ("reg.io/golden/debian:12", bare, "proof_missing"),
        ("http://host/other.img", pinned, "source_refused"),
        ("debian", pinned, "source_refused"),
        ("", pinned, "source_refused"),
    ] {
        assert_eq!(judge(&policy, source, &evidence), expected, "{source}");
    }
    let verdict = policy.judge(&Source::upload(), &bare, SystemTime::now());
    let refusal = verdict.into_result().unwrap_err();
    assert_eq!(refusal.rule.as_deref(), Some("closed"));
    assert_eq!(
        refusal.to_string(),
        "image from upload:// is not trusted (trust rule \"closed\")"
    );
    let (rule, demand) = policy.demand_for(&Source::parse("https://host/x").unwrap());
    assert_eq!((rule.unwrap().name.as_str(), demand.name()), ("pinned", "digest"));
}

#[test]
fn a_default_policy_demands_nothing_but_claims_must_be_true() {
    let policy = TrustPolicy::default();
    assert_eq!(
        TrustPolicy::build(&TrustSection::default(), no_files).as_ref(),
        Ok(&policy)
    );
    let digests = digests();
    let bare = Evidence::of(&digests);
    assert_eq!(judge(&policy, "debian", &bare), "ok");
    let list = format!("{}  disk.img\n{}  other.img\n", &ABC[7..], &ZERO[7..]);
    let sums = |file: &'static str, name: &'static str| SumsFile {
        file: file.as_bytes(),
        name,
        signature: None,
    };
    let list: &'static str = list.leak();
    for (file, name, expected) in [
        (list, "disk.img", "ok"),
        (list, "other.img", "digest_mismatch"),
        (list, "third.img", "sums_name_missing"),
        ("<html>", "disk.img", "sums_malformed"),
    ] {
        let evidence = Evidence {
            sums: Some(sums(file, name)),
            ..bare
        };
        assert_eq!(judge(&policy, "https://host/disk.img", &evidence), expected);
    }
    let (manifest, other): (Pinned, Pinned) = (ABC.parse().unwrap(), ZERO.parse().unwrap());
    for (asked, expected) in [
        (None, "ok"),
        (Some(&manifest), "ok"),
        (Some(&other), "manifest_digest_mismatch"),
    ] {
        let container = Container {
            manifest: &manifest,
            asked,
            signatures: &[],
        };
        let evidence = Evidence {
            container: Some(container),
            ..bare
        };
        assert_eq!(judge(&policy, "debian", &evidence), expected);
    }
    // A signature that nobody can verify is not the same as none.
    let signature = ImageSignature::from_properties(|name| match name {
        crate::x509::SIGNATURE => Some("AAAA"),
        crate::x509::HASH_METHOD => Some("SHA-384"),
        crate::x509::KEY_TYPE => Some("RSA-PSS"),
        _ => Some("125e6199-2de4-46e3-b091-8e2401ef0d63"),
    });
    let signature = signature.unwrap().unwrap();
    let evidence = Evidence {
        x509: Some(&signature),
        ..bare
    };
    assert_eq!(judge(&policy, "debian", &evidence), "x509_no_directory");
    assert_eq!(TrustPolicy::methods_needed(&bare), [HashMethod::Sha256]);
    let all = Evidence {
        sums: Some(sums("", "")),
        pinned: Some(&manifest),
        ..evidence
    };
    assert_eq!(
        TrustPolicy::methods_needed(&all),
        [HashMethod::Sha256, HashMethod::Sha384, HashMethod::Sha512]
    );
}

#[test]
fn all_problems_are_told_at_once() {
    let fields = problems(
        r#"
        [trust]
        unmatched = "everything"
        certificates = "certs"
        roots = "/etc/missing.pem"
        [[trust.rule]]
        name = ""
        sources = []
        demand = "magic"
        [[trust.rule]]
        name = "gpg"
        sources = ["*"]
        demand = "openpgp"
        keys = ["relative.gpg", "/etc/missing.gpg", "/etc/garbage"]
        claims = { a = "b" }
        signers = ["x"]
        [[trust.rule]]
        name = "gpg"
        sources = ["https://host/*", "https://host", "debian"]
        demand = "cosign"
        [[trust.rule]]
        name = "x"
        sources = ["upload://"]
        demand = "x509"
        signers = ["no uuid"]
        keys = ["/etc/garbage"]
        "#,
    );
    let expected = [
        "trust.rule[0].name",
        "trust.rule[0].sources",
        "trust.rule[0].demand",
        "trust.rule[1].claims",
        "trust.rule[1].signers",
        "trust.rule[1].keys[0]",
        "trust.rule[1].keys[1]",
        "trust.rule[1].keys[2]",
        "trust.rule[2].sources[1]",
        "trust.rule[2].sources[2]",
        "trust.rule[2].keys",
        "trust.rule[3].keys",
        "trust.rule[3].signers[0]",
        "trust.rule[2].name",
        "trust.rule[2].sources[0]",
        "trust.rule[3].sources[0]",
        "trust.certificates",
        "trust.unmatched",
        "trust.roots",
    ];
    assert_eq!(fields, expected);
    assert_eq!(
        problems("[trust]\nroots = \"/etc/garbage\""),
        ["trust.roots", "trust.roots"]
    );
    let snapshots = |certificate: &str| {
        let key = "[trust]\n[trust.snapshots]\nkey = \"/etc/garbage\"";
        problems(&format!("{key}\ncertificate = \"{certificate}\""))
    };
    for wrong in ["../other", "125e6199-2de4-46e3-b091-8e2401ef0d63"] {
        assert_eq!(snapshots(wrong), ["trust.snapshots.certificate"], "{wrong}");
    }
    let x509 = "[trust]\n[[trust.rule]]\nname = \"x\"\nsources = [\"*\"]\ndemand = \"x509\"";
    assert_eq!(problems(x509), ["trust.rule[0].demand"]);
    let error = build(x509).unwrap_err();
    assert_eq!(error.code(), "trust_policy_invalid");
    assert!(error.to_string().starts_with("trust.rule[0].demand: "), "{error}");
}

#[test]
fn unknown_keys_are_errors() {
    for text in [
        "[trust]\nunmached = \"refuse\"",
        "[trust]\n[[trust.rules]]\nname = \"x\"",
        "[trust]\n[[trust.rule]]\nname = \"x\"\nsources = []\ndemand = \"nothing\"\nkey = []",
        "[trust]\n[[trust.rule]]\nname = \"x\"\nsources = []",
    ] {
        assert!(toml::from_str::<File>(text).is_err(), "{text}");
    }
}

#[test]
fn the_documented_section_is_one() {
    let page = include_str!("policy/section.rs");
    let lines = page
        .lines()
        .skip_while(|line| *line != "//! ```toml")
        .skip(1)
        .take_while(|line| *line != "//! ```");
    let text: String = lines
        .map(|line| format!("{}\n", line.trim_start_matches("//!")))
        .collect();
    let section = toml::from_str::<File>(&text).unwrap().trust;
    assert_eq!(section.rule.len(), 3);
    // Only the files are missing here.
    let problems = TrustPolicy::build(&section, no_files).unwrap_err().0;
    let fields: Vec<_> = problems.iter().map(|problem| problem.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "trust.rule[0].keys[0]",
            "trust.rule[1].keys[0]",
            "trust.snapshots.key",
            "trust.roots"
        ]
    );
}
