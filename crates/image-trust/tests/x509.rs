//! Image signatures as the image service documents them, made by openssl, by keys and certificates of every kind.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

mod tools;

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image_trust::x509::{
    Certificate, CertificateDirectory, ImageSignature, Signer, SignerError, TrustStore, X509Error,
};
use image_trust::{DigestSet, Digests, HashMethod, x509};
use tools::Bench;

const IMAGE: &[u8] = b"the bytes of an image";
const UUID: &str = "125e6199-2de4-46e3-b091-8e2401ef0d63";
const METHODS: [(&str, &str); 4] = [
    ("SHA-224", "sha224"),
    ("SHA-256", "sha256"),
    ("SHA-384", "sha384"),
    ("SHA-512", "sha512"),
];
/// Longest salt and MGF1 with the same hash: what the image service takes.
const PSS: &str = "-sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:-2";

/// A little later: certificates made while a test runs are valid from the second they were made in.
fn now() -> SystemTime {
    SystemTime::now() + Duration::from_secs(600)
}

fn digests(image: &[u8]) -> DigestSet {
    let mut digests = Digests::new(HashMethod::ALL);
    digests.update(image);
    digests.finish()
}

fn openssl() -> Option<Bench> {
    let bench = Bench::with("openssl")?;
    bench.write("image", IMAGE);
    Some(bench)
}

impl Bench {
    /// Makes `name.key` and the self-signed `name.pem`, valid from yesterday to tomorrow.
    fn certificate(&self, name: &str, key: &str, options: &str) {
        self.run(&format!("openssl genpkey {key} -out {name}.key"));
        self.run(&format!(
            "openssl req -x509 -new -key {name}.key -subj /CN={name} -days 2 {options} -out {name}.pem"
        ));
    }

    fn parsed(&self, name: &str) -> Certificate {
        Certificate::parse(&self.read(&format!("{name}.pem"))).unwrap()
    }

    fn signature(&self, name: &str, method: (&str, &str), key_type: &str, options: &str) -> ImageSignature {
        let (property, option) = method;
        self.run(&format!(
            "openssl dgst -{option} -sign {name}.key {options} -out signature image"
        ));
        let signature = STANDARD.encode(self.read("signature"));
        let read = ImageSignature::from_properties(|name| match name {
            x509::SIGNATURE => Some(&signature),
            x509::HASH_METHOD => Some(property),
            x509::KEY_TYPE => Some(key_type),
            x509::CERTIFICATE_UUID => Some(UUID),
            _ => None,
        });
        read.unwrap().unwrap()
    }

    /// A certificate for `name.key` issued by `issuer`, with extensions of a section in openssl's notation.
    fn issue(&self, name: &str, issuer: &str, key: &str, extensions: &str) {
        self.run(&format!("openssl genpkey {key} -out {name}.key"));
        self.run(&format!(
            "openssl req -new -key {name}.key -subj /CN={name} -out {name}.csr"
        ));
        self.write("extensions", extensions);
        self.run(&format!(
            "openssl x509 -req -in {name}.csr -CA {issuer}.pem -CAkey {issuer}.key -CAcreateserial -days 2 \
             -extfile extensions -out {name}.pem"
        ));
    }
}

fn code(outcome: Result<(), X509Error>) -> &'static str {
    outcome.map_or_else(|error| error.code(), |()| "ok")
}

const P384: &str = "-algorithm EC -pkeyopt ec_paramgen_curve:P-384";

#[test]
fn every_documented_key_type_with_every_hash() {
    let Some(bench) = openssl() else { return };
    let now = now();
    bench.run("openssl genpkey -genparam -algorithm DSA -pkeyopt dsa_paramgen_bits:2048 -out dsa.params");
    for (name, key, key_type, options) in [
        ("rsa", "-algorithm RSA -pkeyopt rsa_keygen_bits:2048", "RSA-PSS", PSS),
        (
            "rsa-odd",
            "-algorithm RSA -pkeyopt rsa_keygen_bits:2049",
            "RSA-PSS",
            PSS,
        ),
        ("dsa", "-paramfile dsa.params", "DSA", ""),
        ("p384", P384, "ECC_SECP384R1", ""),
        (
            "p521",
            "-algorithm EC -pkeyopt ec_paramgen_curve:P-521",
            "ECC_SECP521R1",
            "",
        ),
    ] {
        bench.certificate(name, key, "");
        let certificate = bench.parsed(name);
        for method in METHODS {
            let signature = bench.signature(name, method, key_type, options);
            let verify = |image: &[u8]| code(signature.verify(&digests(image), &certificate, None, now));
            assert_eq!(verify(IMAGE), "ok", "{name} {method:?}");
            assert_eq!(verify(b"other bytes"), "x509_mismatch", "{name} {method:?}");
            assert_eq!(verify(b""), "x509_mismatch", "{name} {method:?}");
        }
    }
}

#[test]
fn a_long_rsa_key() {
    let Some(bench) = openssl() else { return };
    // Made once by: openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:8192
    bench.write("long.key", include_bytes!("fixtures/rsa8192.key"));
    bench.run("openssl req -x509 -new -key long.key -subj /CN=long -days 2 -out long.pem");
    let signature = bench.signature("long", METHODS[3], "RSA-PSS", PSS);
    let now = now();
    assert_eq!(
        code(signature.verify(&digests(IMAGE), &bench.parsed("long"), None, now)),
        "ok"
    );
}

#[test]
fn a_signature_that_does_not_fit() {
    let Some(bench) = openssl() else { return };
    let now = now();
    let rsa = "-algorithm RSA -pkeyopt rsa_keygen_bits:2048";
    for (name, key) in [("mine", rsa), ("other", rsa), ("curve", P384)] {
        bench.certificate(name, key, "");
    }
    let good = bench.signature("mine", METHODS[1], "RSA-PSS", PSS);
    let image = digests(IMAGE);
    assert_eq!(code(good.verify(&image, &bench.parsed("mine"), None, now)), "ok");
    assert_eq!(
        code(good.verify(&image, &bench.parsed("other"), None, now)),
        "x509_mismatch"
    );
    assert_eq!(
        code(good.verify(&image, &bench.parsed("curve"), None, now)),
        "x509_key_type_mismatch"
    );
    let few = {
        let mut digests = Digests::sha256_sha512();
        digests.update(IMAGE);
        digests.finish()
    };
    let sha384 = bench.signature("mine", METHODS[2], "RSA-PSS", PSS);
    assert_eq!(
        code(sha384.verify(&few, &bench.parsed("mine"), None, now)),
        "x509_not_hashed"
    );
    // The image service takes the longest salt and no other, and no PKCS #1 v1.5.
    for options in ["", "-sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:-1"] {
        let other = bench.signature("mine", METHODS[1], "RSA-PSS", options);
        assert_eq!(
            code(other.verify(&image, &bench.parsed("mine"), None, now)),
            "x509_mismatch",
            "{options}"
        );
    }
    // Named SHA-512, made by SHA-256.
    let pretended = bench.signature("mine", ("SHA-512", "sha256"), "RSA-PSS", PSS);
    assert_eq!(
        code(pretended.verify(&image, &bench.parsed("mine"), None, now)),
        "x509_mismatch"
    );
    // A curve's key with the name of the other curve.
    let misnamed = bench.signature("curve", METHODS[1], "ECC_SECP521R1", "");
    assert_eq!(
        code(misnamed.verify(&image, &bench.parsed("curve"), None, now)),
        "x509_key_type_mismatch"
    );
}

#[test]
fn keys_that_are_too_weak_or_strange() {
    let Some(bench) = openssl() else { return };
    let now = now();
    for (name, key, key_type, expected) in [
        (
            "short",
            "-algorithm RSA -pkeyopt rsa_keygen_bits:1024",
            "RSA-PSS",
            "key_weak",
        ),
        (
            "strange",
            "-algorithm EC -pkeyopt ec_paramgen_curve:secp256k1",
            "ECC_SECP384R1",
            "key_unsupported",
        ),
    ] {
        bench.certificate(name, key, "");
        let signature = bench.signature(name, METHODS[1], key_type, "");
        let Err(X509Error::Key(error)) = signature.verify(&digests(IMAGE), &bench.parsed(name), None, now) else {
            panic!("{name} was not refused for its key");
        };
        assert_eq!(error.code(), expected);
    }
}

#[test]
fn dates_and_uses_of_certificates() {
    let Some(bench) = openssl() else { return };
    let now = now();
    let day = Duration::from_secs(24 * 60 * 60);
    bench.certificate("mine", P384, "");
    let signature = bench.signature("mine", METHODS[1], "ECC_SECP384R1", "");
    let image = digests(IMAGE);
    let at = |name: &str, when| code(signature.verify(&image, &bench.parsed(name), None, when));
    assert_eq!(at("mine", now), "ok");
    assert_eq!(at("mine", now + 3 * day), "x509_certificate_expired");
    assert_eq!(at("mine", now - 2 * day), "x509_certificate_not_yet_valid");
    for (extension, expected) in [
        ("keyUsage=critical,digitalSignature", "ok"),
        ("keyUsage=nonRepudiation", "ok"),
        ("keyUsage=keyEncipherment", "x509_certificate_usage"),
        ("keyUsage=keyCertSign", "x509_certificate_usage"),
        ("1.2.3.4=critical,ASN1:NULL", "x509_certificate_extension"),
        ("nameConstraints=critical,permitted;DNS:x", "x509_certificate_extension"),
        ("1.2.3.4=ASN1:NULL", "ok"),
    ] {
        bench.run(&format!(
            "openssl req -x509 -new -key mine.key -subj /CN=mine -days 2 -addext {extension} -out used.pem"
        ));
        assert_eq!(at("used", now), expected, "{extension}");
    }
}

/// Roots, CAs under them, and signers under those; the name says what is odd.
fn hierarchy() -> Option<Bench> {
    let bench = openssl()?;
    const CA: &str = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n";
    const SHORT: &str = "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign\n";
    const LEAF: &str = "basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\n";
    let p256 = "-algorithm EC -pkeyopt ec_paramgen_curve:P-256";
    bench.certificate("root", "-algorithm RSA -pkeyopt rsa_keygen_bits:2048", "-sha512");
    bench.issue("middle", "root", p256, CA);
    bench.issue("leaf", "middle", P384, LEAF);
    bench.issue("below-leaf", "leaf", P384, LEAF);
    bench.issue("short", "root", "-algorithm ED25519", SHORT);
    bench.issue("under-short", "short", P384, LEAF);
    bench.issue("middle-under-short", "short", p256, CA);
    bench.issue("too-deep", "middle-under-short", P384, LEAF);
    bench.issue(
        "no-usage",
        "root",
        p256,
        "basicConstraints=critical,CA:TRUE\nkeyUsage=digitalSignature\n",
    );
    bench.issue("under-no-usage", "no-usage", P384, LEAF);
    bench.certificate(
        "pss-root",
        "-algorithm RSA -pkeyopt rsa_keygen_bits:2048",
        "-sigopt rsa_padding_mode:pss",
    );
    bench.issue("under-pss", "pss-root", P384, LEAF);
    bench.certificate("sha1-root", "-algorithm RSA -pkeyopt rsa_keygen_bits:2048", "-sha1");
    bench.issue("under-sha1", "sha1-root", P384, LEAF);
    bench.run("openssl x509 -req -sha1 -in leaf.csr -CA root.pem -CAkey root.key -CAcreateserial -out by-sha1.pem");
    // Another root of the same name.
    bench.run("openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out double.key");
    bench.run("openssl req -x509 -new -key double.key -subj /CN=root -days 2 -out double.pem");
    Some(bench)
}

#[test]
fn chains_to_roots() {
    let Some(bench) = hierarchy() else { return };
    let now = now();
    for (leaf, roots, expected) in [
        ("leaf", &["root", "middle"][..], "ok"),
        ("leaf", &["middle", "double", "root"], "ok"),
        ("leaf", &["root"], "x509_certificate_untrusted"),
        ("leaf", &["middle"], "x509_certificate_untrusted"),
        ("leaf", &["double", "middle"], "x509_certificate_untrusted"),
        ("leaf", &["leaf"], "ok"),
        ("below-leaf", &["root", "middle", "leaf"], "x509_certificate_untrusted"),
        ("under-short", &["short", "root"], "ok"),
        (
            "too-deep",
            &["middle-under-short", "short", "root"],
            "x509_certificate_untrusted",
        ),
        ("under-no-usage", &["no-usage", "root"], "x509_certificate_untrusted"),
        ("under-pss", &["pss-root"], "ok"),
        // What a configured root says of itself is not what makes it trusted.
        ("under-sha1", &["sha1-root"], "ok"),
        ("by-sha1", &["root"], "x509_certificate_untrusted"),
        ("root", &["root"], "ok"),
        ("root", &["double"], "x509_certificate_untrusted"),
    ] {
        let pem: Vec<u8> = roots
            .iter()
            .flat_map(|name| bench.read(&format!("{name}.pem")))
            .collect();
        let store = TrustStore::parse(&pem).unwrap();
        assert_eq!(
            code(store.check(&bench.parsed(leaf), now)),
            expected,
            "{leaf} {roots:?}"
        );
    }
}

#[test]
fn chains_from_an_image_to_its_root() {
    let Some(bench) = hierarchy() else { return };
    let now = now();
    // A root that has expired when it is needed.
    let store = TrustStore::parse(&[bench.read("root.pem"), bench.read("middle.pem")].concat()).unwrap();
    let later = now + Duration::from_secs(5 * 24 * 60 * 60);
    assert_eq!(
        code(store.check(&bench.parsed("leaf"), later)),
        "x509_certificate_untrusted"
    );
    // All of it together, with the certificate from its directory.
    bench.run(&format!("cp leaf.pem {UUID}.pem"));
    let signature = bench.signature("leaf", METHODS[3], "ECC_SECP384R1", "");
    let certificate = CertificateDirectory::new(bench.path())
        .get(signature.certificate())
        .unwrap();
    let verify = |roots| code(signature.verify(&digests(IMAGE), &certificate, Some(roots), now));
    assert_eq!(verify(&store), "ok");
    assert_eq!(
        verify(&TrustStore::parse(&bench.read("double.pem")).unwrap()),
        "x509_certificate_untrusted"
    );
    // A certificate changed by one bit anywhere no longer leads to its root, or is none.
    bench.run("openssl x509 -in leaf.pem -outform DER -out leaf.der");
    let der = bench.read("leaf.der");
    assert_eq!(Certificate::parse(&der).unwrap(), bench.parsed("leaf"));
    for at in 0..der.len() {
        let mut bad = der.clone();
        bad[at] ^= 1;
        let holds = Certificate::parse(&bad).is_ok_and(|bad| store.check(&bad, now).is_ok());
        assert!(!holds, "byte {at}");
        assert!(Certificate::parse(&der[..at]).is_err());
    }
}

#[test]
fn what_is_signed_here_is_what_others_verify_and_only_with_the_certificates_own_key() {
    let Some(bench) = openssl() else { return };
    bench.certificate("own", P384, "");
    bench.certificate("other", P384, "");
    bench.certificate("rsa", "-algorithm RSA -pkeyopt rsa_keygen_bits:2048", "");
    let uuid = UUID.parse().unwrap();
    let signer = Signer::new(&bench.read("own.key"), uuid, bench.parsed("own")).unwrap();
    signer.check(now()).unwrap();
    let over = now() + Duration::from_secs(3 * 86_400);
    assert_eq!(code(signer.check(over)), "x509_certificate_expired");

    let told = signer.sign(&digests(IMAGE)).unwrap();
    let property = |name: &str| {
        told.iter()
            .find(|(own, _)| *own == name)
            .map(|(_, value)| value.as_str())
    };
    let signature = ImageSignature::from_properties(property).unwrap().unwrap();
    assert_eq!(signature.certificate(), uuid);
    assert_eq!(signer.image_signature(&digests(IMAGE)), Some(signature.clone()));
    let verify = |image: &[u8], name: &str| code(signature.verify(&digests(image), &bench.parsed(name), None, now()));
    assert_eq!(verify(IMAGE, "own"), "ok");
    assert_eq!(verify(b"other bytes", "own"), "x509_mismatch");
    assert_eq!(verify(IMAGE, "other"), "x509_mismatch");
    bench.write(
        "signature",
        STANDARD.decode(property(x509::SIGNATURE).unwrap()).unwrap(),
    );
    bench.run("openssl x509 -in own.pem -pubkey -noout -out own.pub");
    bench.run("openssl dgst -sha256 -verify own.pub -signature signature image");
    assert_eq!(signer.sign(&Digests::new([HashMethod::Sha512]).finish()), None);

    let make = |key: &str, name: &str| Signer::new(&bench.read(key), uuid, bench.parsed(name)).unwrap_err();
    assert_eq!(make("other.key", "own"), SignerError::OtherKey(uuid));
    assert_eq!(make("own.key", "rsa"), SignerError::OtherKey(uuid));
    assert_eq!(make("rsa.key", "rsa"), SignerError::Malformed);
    assert_eq!(make("own.pem", "own"), SignerError::Malformed);
    bench.run("openssl pkcs8 -topk8 -in own.key -passout pass:secret -out locked.key");
    assert_eq!(make("locked.key", "own"), SignerError::Malformed);
}
