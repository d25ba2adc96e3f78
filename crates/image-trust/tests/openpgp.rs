//! Signatures that gpg made, by keys of every state, over documents true and false.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

mod tools;

use std::os::unix::fs::DirBuilderExt as _;
use std::time::{Duration, SystemTime};

use image_trust::openpgp::{KeyRing, OpenPgpError, Signer};
use pgp::composed::{Deserializable as _, DetachedSignature, SignedPublicKey, SignedPublicSubKey, SignedSecretKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{KeyFlags, Signature, SignatureConfig, SignatureType, Subpacket, SubpacketData};
use pgp::ser::Serialize as _;
use pgp::types::{KeyDetails as _, Password, Timestamp};
use tools::Bench;

const LIST: &[u8] = b"0000000000000000000000000000000000000000000000000000000000000001  disk.img\n- dashed \t\nlast\n";

/// gpg with a home of its own, whose agent ends with the test.
struct Gpg(Bench);

impl Gpg {
    fn new() -> Option<Self> {
        let bench = Bench::with("gpg")?;
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(bench.at("gnupg"))
            .unwrap();
        bench.write("list", LIST);
        Some(Self(bench))
    }

    fn gpg(&self, line: &str) {
        self.0.run(&format!(
            "gpg --batch --quiet --yes --pinentry-mode loopback --passphrase= {line}"
        ));
    }

    /// Makes a key that signs with its primary; `expire` as gpg writes it.
    fn key(&self, name: &str, algorithm: &str, expire: &str) {
        self.gpg(&format!("--quick-generate-key {name} {algorithm} sign {expire}"));
    }

    fn ring(&self, names: &str) -> KeyRing {
        self.gpg(&format!("--output ring --export {names}"));
        KeyRing::parse(&self.0.read("ring")).unwrap()
    }

    fn sign(&self, options: &str) -> Vec<u8> {
        self.gpg(&format!("{options} --output signature --detach-sign list"));
        self.0.read("signature")
    }
}

impl Drop for Gpg {
    fn drop(&mut self) {
        self.0.run("gpgconf --kill gpg-agent");
    }
}

fn code(outcome: Result<Signer, OpenPgpError>) -> &'static str {
    match outcome {
        Ok(_) => "ok",
        Err(error) => {
            assert!(error.to_string().len() > 20);
            error.code()
        }
    }
}

fn days(count: u64) -> Duration {
    Duration::from_secs(count * 24 * 60 * 60)
}

#[test]
fn detached_signatures_of_every_kind_of_key() {
    let Some(gpg) = Gpg::new() else { return };
    let now = SystemTime::now();
    for algorithm in ["ed25519", "nistp256", "nistp384", "nistp521", "rsa2048", "dsa2048"] {
        gpg.key(algorithm, algorithm, "never");
        let ring = gpg.ring(algorithm);
        for options in ["", "--digest-algo SHA512 --armor", "--textmode"] {
            let signature = gpg.sign(&format!("--local-user {algorithm} {options}"));
            let signer = ring.verify_detached(LIST, &signature, now).unwrap();
            assert_eq!(signer.user_id.as_deref(), Some(algorithm));
            assert_eq!(vec![signer.fingerprint], ring.fingerprints());
            assert!(now.duration_since(signer.signed_at).unwrap_or_default() < days(1));
            let mut changed = LIST.to_vec();
            changed[63] = b'2';
            assert_eq!(
                code(ring.verify_detached(&changed, &signature, now)),
                "openpgp_mismatch",
                "{algorithm} {options}"
            );
            assert_eq!(
                code(ring.verify_detached(&LIST[1..], &signature, now)),
                "openpgp_mismatch"
            );
        }
    }
}

#[test]
fn another_key_vouches_for_nothing() {
    let Some(gpg) = Gpg::new() else { return };
    let now = SystemTime::now();
    gpg.key("trusted", "ed25519", "never");
    gpg.key("stranger", "ed25519", "never");
    let ring = gpg.ring("trusted");
    let strange = gpg.sign("--local-user stranger");
    assert_eq!(code(ring.verify_detached(LIST, &strange, now)), "openpgp_unknown_key");
    // One trusted signature suffices, in whatever place.
    let both = gpg.sign("--local-user stranger --local-user trusted");
    assert_eq!(code(ring.verify_detached(LIST, &both, now)), "ok");
    let both = gpg.sign("--local-user trusted --local-user stranger --armor");
    assert_eq!(code(ring.verify_detached(LIST, &both, now)), "ok");
    assert_eq!(code(ring.verify_detached(b"other", &both, now)), "openpgp_mismatch");
}

#[test]
fn expired_keys_and_signatures() {
    let Some(gpg) = Gpg::new() else { return };
    let now = SystemTime::now();
    gpg.key("short", "ed25519", "10d");
    gpg.key("long", "ed25519", "never");
    let ring = gpg.ring("short long");
    let short = gpg.sign("--local-user short");
    assert_eq!(code(ring.verify_detached(LIST, &short, now)), "ok");
    assert_eq!(code(ring.verify_detached(LIST, &short, now + days(9))), "ok");
    assert_eq!(
        code(ring.verify_detached(LIST, &short, now + days(11))),
        "openpgp_key_expired"
    );
    assert_eq!(
        code(ring.verify_detached(LIST, &short, now - days(1))),
        "openpgp_signature_in_future"
    );
    let brief = gpg.sign("--local-user long --default-sig-expire 5d");
    assert_eq!(code(ring.verify_detached(LIST, &brief, now + days(4))), "ok");
    assert_eq!(
        code(ring.verify_detached(LIST, &brief, now + days(6))),
        "openpgp_signature_expired"
    );
    // A renewed key is good again; one that speaks of itself from the future says nothing yet.
    let fingerprint = gpg.ring("short").fingerprints().remove(0);
    gpg.gpg(&format!("--quick-set-expire {fingerprint} 30d"));
    let renewed = gpg.ring("short");
    assert_eq!(code(renewed.verify_detached(LIST, &short, now + days(11))), "ok");
    assert_eq!(
        code(renewed.verify_detached(LIST, &short, now + days(31))),
        "openpgp_key_expired"
    );
    gpg.gpg(&format!(
        "--faked-system-time 20991231T000000 --quick-set-expire {fingerprint} never"
    ));
    assert_eq!(
        code(gpg.ring("short").verify_detached(LIST, &short, now)),
        "openpgp_key_unfit"
    );
}

#[test]
fn a_key_that_had_expired_before_this_test() {
    let Some(gpg) = Gpg::new() else { return };
    gpg.gpg("--faked-system-time 20200101T000000 --quick-generate-key old ed25519 sign 30d");
    let ring = gpg.ring("old");
    let signature = gpg.sign("--faked-system-time 20200102T000000 --local-user old");
    assert_eq!(
        code(ring.verify_detached(LIST, &signature, SystemTime::now())),
        "openpgp_key_expired"
    );
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_578_000_000);
    assert_eq!(code(ring.verify_detached(LIST, &signature, then)), "ok");
}

#[test]
fn revoked_keys() {
    let Some(gpg) = Gpg::new() else { return };
    let now = SystemTime::now();
    gpg.key("gone", "ed25519", "never");
    let signature = gpg.sign("--local-user gone");
    let ring = gpg.ring("gone");
    assert_eq!(code(ring.verify_detached(LIST, &signature, now)), "ok");
    let fingerprint = &ring.fingerprints()[0];
    // gpg makes a revocation beside every key, with a colon in front of its armour against accidents.
    let revocation = gpg.0.read(&format!("gnupg/openpgp-revocs.d/{fingerprint}.rev"));
    let revocation = String::from_utf8(revocation)
        .unwrap()
        .replace(":-----BEGIN", "-----BEGIN");
    gpg.0.write("revocation", revocation);
    gpg.gpg("--import revocation");
    assert_eq!(
        code(gpg.ring("gone").verify_detached(LIST, &signature, now)),
        "openpgp_key_revoked"
    );
}

#[test]
fn subkeys_sign_when_they_are_bound_for_it() {
    let Some(gpg) = Gpg::new() else { return };
    let now = SystemTime::now();
    gpg.gpg("--quick-generate-key main ed25519 cert never");
    let fingerprint = gpg.ring("main").fingerprints().remove(0);
    gpg.gpg(&format!("--quick-add-key {fingerprint} ed25519 sign 10d"));
    gpg.gpg(&format!("--quick-add-key {fingerprint} rsa2048 encr never"));
    let ring = gpg.ring("main");
    let signature = gpg.sign("--local-user main");
    let signer = ring.verify_detached(LIST, &signature, now).unwrap();
    assert_eq!(
        signer.fingerprint, fingerprint,
        "the primary key is told, not the subkey"
    );
    assert_eq!(
        code(ring.verify_detached(LIST, &signature, now + days(11))),
        "openpgp_key_expired"
    );

    // The subkey under another primary key, which never bound it: its packets moved behind that one's.
    gpg.key("thief", "ed25519", "never");
    let thief = gpg.ring("thief");
    let mut moved = gpg.0.read("ring");
    gpg.gpg("--output ring --export main");
    let main = gpg.0.read("ring");
    moved.extend_from_slice(subkeys(&main));
    let stolen = KeyRing::parse(&moved).unwrap();
    assert_eq!(stolen.fingerprints(), thief.fingerprints());
    assert_eq!(code(stolen.verify_detached(LIST, &signature, now)), "openpgp_key_unfit");

    // Without its primary's binding at all.
    let mut bare = main.clone();
    bare.truncate(main.len() - subkeys(&main).len());
    let without = KeyRing::parse(&bare).unwrap();
    assert_eq!(
        code(without.verify_detached(LIST, &signature, now)),
        "openpgp_unknown_key"
    );
}

/// What of an exported key begins with its first subkey (old or new packet format, tag 14).
fn subkeys(key: &[u8]) -> &[u8] {
    let mut at = 0;
    while at < key.len() {
        let head = key[at];
        assert_eq!(head & 0xc0, 0x80, "gpg writes keys in the old format");
        if (head >> 2) & 15 == 14 {
            return &key[at..];
        }
        at += match head & 3 {
            0 => 2 + usize::from(key[at + 1]),
            1 => 3 + usize::from(u16::from_be_bytes([key[at + 1], key[at + 2]])),
            other => panic!("length type {other}"),
        };
    }
    panic!("no subkey");
}

#[test]
fn a_subkey_that_never_said_it_belongs_there() {
    let Some(gpg) = Gpg::new() else { return };
    let now = SystemTime::now();
    gpg.gpg("--quick-generate-key victim ed25519 cert never");
    let fingerprint = gpg.ring("victim").fingerprints().remove(0);
    gpg.gpg(&format!("--quick-add-key {fingerprint} ed25519 sign never"));
    let signature = gpg.sign("--local-user victim");
    gpg.key("thief", "ed25519", "never");
    gpg.gpg("--output thief --export-secret-keys thief");
    gpg.gpg("--output victim --export victim");

    // gpg makes no such key: a binding by the thief's primary key over the victim's subkey, with its own secret.
    let thief = SignedSecretKey::from_bytes(&gpg.0.read("thief")[..]).unwrap();
    let victim = SignedPublicKey::from_bytes(&gpg.0.read("victim")[..]).unwrap();
    let subkey = &victim.public_subkeys[0].key;
    let primary = &thief.primary_key;
    let mut flags = KeyFlags::default();
    flags.set_sign(true);
    let bind = |embedded: Option<Signature>| {
        let mut config = SignatureConfig::v4(SignatureType::SubkeyBinding, primary.algorithm(), HashAlgorithm::Sha256);
        config.hashed_subpackets = vec![
            Subpacket::regular(SubpacketData::SignatureCreationTime(Timestamp::now())).unwrap(),
            Subpacket::regular(SubpacketData::KeyFlags(flags.clone())).unwrap(),
        ];
        if let Some(embedded) = embedded {
            let embedded = SubpacketData::EmbeddedSignature(Box::new(embedded));
            config.hashed_subpackets.push(Subpacket::regular(embedded).unwrap());
        }
        let binding = config
            .sign_subkey_binding(primary, primary.public_key(), &Password::empty(), subkey)
            .unwrap();
        let mut certificate = thief.to_public_key();
        certificate.public_subkeys = vec![SignedPublicSubKey::new(subkey.clone(), vec![binding])];
        KeyRing::parse(&certificate.to_bytes().unwrap()).unwrap()
    };
    let ring = bind(None);
    assert_eq!(code(ring.verify_detached(LIST, &signature, now)), "openpgp_key_unfit");
    // The statement that the subkey belongs to the victim is no statement that it belongs to the thief.
    let embedded = victim.public_subkeys[0].signatures[0].embedded_signature().cloned();
    assert!(embedded.is_some());
    let ring = bind(embedded);
    assert_eq!(code(ring.verify_detached(LIST, &signature, now)), "openpgp_key_unfit");
}

#[test]
fn keys_that_are_for_other_things() {
    let Some(gpg) = Gpg::new() else { return };
    let now = SystemTime::now();
    gpg.gpg("--quick-generate-key main ed25519 cert never");
    let fingerprint = gpg.ring("main").fingerprints().remove(0);
    gpg.gpg(&format!("--quick-add-key {fingerprint} ed25519 sign never"));
    let signature = gpg.sign("--local-user main");
    gpg.gpg("--output secret --export-secret-keys main");
    let secret = SignedSecretKey::from_bytes(&gpg.0.read("secret")[..]).unwrap();
    let (primary, subkey) = (&secret.primary_key, &secret.secret_subkeys[0].key);
    let config = |kind, flags: Option<KeyFlags>| {
        let mut config = SignatureConfig::v4(kind, primary.algorithm(), HashAlgorithm::Sha256);
        let created = SubpacketData::SignatureCreationTime(Timestamp::now());
        config.hashed_subpackets = vec![Subpacket::regular(created).unwrap()];
        let flags = flags.map(|flags| Subpacket::regular(SubpacketData::KeyFlags(flags)).unwrap());
        config.hashed_subpackets.extend(flags);
        config
    };
    // The subkey bound anew, as gpg would, but for what it is said to be for.
    let mut sign = KeyFlags::default();
    sign.set_sign(true);
    let mut authenticate = KeyFlags::default();
    authenticate.set_authentication(true);
    let password = Password::empty();
    for (flags, expected) in [
        (Some(sign), "ok"),
        (Some(authenticate), "openpgp_key_unfit"),
        (None, "openpgp_key_unfit"),
    ] {
        let back = config(SignatureType::KeyBinding, None)
            .sign_primary_key_binding(subkey, subkey.public_key(), &password, primary.public_key())
            .unwrap();
        let mut binding = config(SignatureType::SubkeyBinding, flags);
        let back = SubpacketData::EmbeddedSignature(Box::new(back));
        binding.hashed_subpackets.push(Subpacket::regular(back).unwrap());
        let binding = binding
            .sign_subkey_binding(primary, primary.public_key(), &password, subkey.public_key())
            .unwrap();
        let mut certificate = secret.to_public_key();
        certificate.public_subkeys = vec![SignedPublicSubKey::new(subkey.public_key().clone(), vec![binding])];
        let ring = KeyRing::parse(&certificate.to_bytes().unwrap()).unwrap();
        assert_eq!(code(ring.verify_detached(LIST, &signature, now)), expected);
    }
    // The primary key, which may only certify, over a document; gpg refuses to make that.
    let mut by_primary = config(SignatureType::Binary, None);
    let issuer = SubpacketData::IssuerFingerprint(primary.fingerprint());
    by_primary.hashed_subpackets.push(Subpacket::regular(issuer).unwrap());
    let by_primary = by_primary.sign(primary, &password, LIST).unwrap();
    let by_primary = DetachedSignature::new(by_primary).to_bytes().unwrap();
    assert_eq!(
        code(gpg.ring("main").verify_detached(LIST, &by_primary, now)),
        "openpgp_key_unfit"
    );
    // A signature that is no signature of a document, over the same bytes.
    let mut odd = config(SignatureType::Binary, None);
    let unknown = SubpacketData::Experimental(101, b"x".to_vec().into());
    odd.hashed_subpackets.push(Subpacket::critical(unknown).unwrap());
    let odd = odd.sign(subkey, &password, LIST).unwrap();
    let odd = DetachedSignature::new(odd).to_bytes().unwrap();
    assert_eq!(
        code(gpg.ring("main").verify_detached(LIST, &odd, now)),
        "openpgp_wrong_kind"
    );
}

#[test]
fn revoked_subkeys() {
    let Some(gpg) = Gpg::new() else { return };
    let now = SystemTime::now();
    gpg.gpg("--quick-generate-key main ed25519 cert never");
    let fingerprint = gpg.ring("main").fingerprints().remove(0);
    gpg.gpg(&format!("--quick-add-key {fingerprint} ed25519 sign never"));
    let signature = gpg.sign("--local-user main");
    assert_eq!(code(gpg.ring("main").verify_detached(LIST, &signature, now)), "ok");
    gpg.0.write("answers", "key 1\nrevkey\ny\n0\n\ny\nsave\n");
    gpg.gpg(&format!("--command-file answers --no-tty --edit-key {fingerprint}"));
    assert_eq!(
        code(gpg.ring("main").verify_detached(LIST, &signature, now)),
        "openpgp_key_revoked"
    );
}

#[test]
fn weak_hashes_and_short_keys() {
    let Some(gpg) = Gpg::new() else { return };
    let now = SystemTime::now();
    gpg.key("strong", "rsa2048", "never");
    let ring = gpg.ring("strong");
    for hash in ["MD5", "SHA1", "RIPEMD160"] {
        let options = format!("--local-user strong --digest-algo {hash} --allow-weak-digest-algos --gnupg");
        let signature = gpg.sign(&options);
        assert_eq!(
            code(ring.verify_detached(LIST, &signature, now)),
            "openpgp_weak_hash",
            "{hash}"
        );
        // One beside it that is strong counts.
        let mut both = signature;
        both.extend(gpg.sign("--local-user strong"));
        assert_eq!(code(ring.verify_detached(LIST, &both, now)), "ok");
    }
    gpg.key("short", "rsa1024", "never");
    let signature = gpg.sign("--local-user short");
    assert_eq!(
        code(gpg.ring("short").verify_detached(LIST, &signature, now)),
        "openpgp_key_weak"
    );
    // Keys of old signed what they say of themselves with SHA-1.
    gpg.gpg("--cert-digest-algo SHA1 --quick-generate-key aged rsa2048 sign never");
    let signature = gpg.sign("--local-user aged");
    assert_eq!(code(gpg.ring("aged").verify_detached(LIST, &signature, now)), "ok");
}

#[test]
fn clear_signed_lists() {
    let Some(gpg) = Gpg::new() else { return };
    let now = SystemTime::now();
    gpg.key("trusted", "ed25519", "never");
    let ring = gpg.ring("trusted");
    gpg.gpg("--local-user trusted --output signed --clear-sign list");
    let signed = gpg.0.read("signed");
    let (text, signer) = ring.verify_clear_signed(&signed, now).unwrap();
    assert_eq!(signer.user_id.as_deref(), Some("trusted"));
    assert_eq!(
        text,
        LIST.strip_suffix(b"\n")
            .unwrap()
            .to_vec()
            .replace_all(b"dashed \t", b"dashed")
    );
    let crlf = signed.replace_all(b"\n", b"\r\n");
    assert_eq!(ring.verify_clear_signed(&crlf, now).unwrap().0, text);
    for (changed, expected) in [
        (signed.replace_all(b"disk.img", b"disk.imh"), "openpgp_mismatch"),
        (signed.replace_all(b"last\n", b"last\nmore\n"), "openpgp_mismatch"),
        (signed.replace_all(b"last\n", b""), "openpgp_mismatch"),
        // What else is no such list is tested where it is parsed.
        (LIST.to_vec(), "openpgp_not_clear_signed"),
    ] {
        let outcome = ring.verify_clear_signed(&changed, now).map(|(_, signer)| signer);
        assert_eq!(code(outcome), expected, "{}", String::from_utf8_lossy(&changed));
    }
}

trait ReplaceAll {
    fn replace_all(&self, from: &[u8], to: &[u8]) -> Vec<u8>;
}

impl ReplaceAll for Vec<u8> {
    fn replace_all(&self, from: &[u8], to: &[u8]) -> Vec<u8> {
        let text = String::from_utf8(self.clone()).unwrap();
        let [from, to] = [from, to].map(|part| std::str::from_utf8(part).unwrap());
        text.replace(from, to).into_bytes()
    }
}

#[test]
fn what_is_no_signature_is_said_to_be_none() {
    let Some(gpg) = Gpg::new() else { return };
    let now = SystemTime::now();
    gpg.key("trusted", "ed25519", "never");
    let ring = gpg.ring("trusted");
    let key = gpg.0.read("ring");
    let good = gpg.sign("--local-user trusted");
    gpg.gpg("--local-user trusted --output inline --sign list");
    let inline = gpg.0.read("inline");
    for bad in [
        &b""[..],
        b"<html>404</html>",
        &key,
        &inline,
        &good[..good.len() / 2],
        b"-----BEGIN PGP SIGNATURE-----",
        b"-----BEGIN PGP SIGNATURE-----\n\n!!!!\n-----END PGP SIGNATURE-----\n",
        b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nAAAA\n-----END PGP PUBLIC KEY BLOCK-----\n",
    ] {
        let outcome = ring.verify_detached(LIST, bad, now);
        assert_eq!(code(outcome), "openpgp_malformed", "{}", String::from_utf8_lossy(bad));
    }
    let long = vec![0x88; 65 << 10];
    assert_eq!(code(ring.verify_detached(LIST, &long, now)), "openpgp_too_long");
    // Every single changed byte of a signature, and every cut: refused, and nothing panics.
    let free = not_signed(&good);
    for at in 0..good.len() {
        for flip in [1, 0x80] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            assert!(
                ring.verify_detached(LIST, &bad, now).is_err() || free.contains(&at),
                "byte {at}"
            );
        }
        assert!(ring.verify_detached(LIST, &good[..at], now).is_err());
    }
}

/// Bytes of a version 4 EdDSA signature packet in the old format that do not count: the unhashed subpackets (they only help to
/// find the key), and how many bits of its bytes each of the two numbers has.
fn not_signed(signature: &[u8]) -> Vec<usize> {
    let length_at = |at: usize| usize::from(u16::from_be_bytes([signature[at], signature[at + 1]]));
    let body = if signature[0] & 3 == 0 { 2 } else { 3 };
    let unhashed = body + 6 + length_at(body + 4);
    let numbers = unhashed + 2 + length_at(unhashed) + 2;
    let second = numbers + 2 + length_at(numbers).div_ceil(8);
    (unhashed..numbers - 2)
        .chain([numbers, numbers + 1, second, second + 1])
        .collect()
}

#[test]
fn key_rings() {
    let Some(gpg) = Gpg::new() else { return };
    gpg.key("one", "ed25519", "never");
    gpg.key("two", "rsa2048", "never");
    let binary = gpg.ring("one two");
    assert_eq!(binary.fingerprints().len(), 2);
    gpg.gpg("--armor --output one.asc --export one");
    gpg.gpg("--armor --output two.asc --export two");
    let both = [
        &b"a comment\n"[..],
        &gpg.0.read("one.asc"),
        b"\n",
        &gpg.0.read("two.asc"),
    ]
    .concat();
    assert_eq!(KeyRing::parse(&both).unwrap(), binary);
    let mut extended = gpg.ring("one");
    extended.extend(gpg.ring("two"));
    assert_eq!(extended, binary);
    for (bad, expected) in [
        (&b""[..], "key_ring_empty"),
        (b"no key", "key_ring_empty"),
        (b"\xff\xff\xff", "key_ring_empty"),
        (b"\x99\x00\x02ab", "key_ring_empty"),
        (b"\x00\xff", "key_ring_malformed"),
        (b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n", "key_ring_malformed"),
        (&vec![0; 5 << 20], "key_ring_too_long"),
    ] {
        assert_eq!(KeyRing::parse(bad).unwrap_err().code(), expected);
    }
    gpg.gpg("--output secret --export-secret-keys one");
    assert!(
        KeyRing::parse(&gpg.0.read("secret")).is_err(),
        "a secret key has no place in a ring of trusted keys"
    );
}

#[test]
fn the_key_ring_of_this_distribution_can_be_read() {
    let path = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let Ok(bytes) = std::fs::read(path) else {
        eprintln!("skipped: no {path}");
        return;
    };
    assert!(KeyRing::parse(&bytes).unwrap().fingerprints().len() > 3);
}
