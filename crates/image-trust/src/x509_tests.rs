//! What the four properties may say. Signatures themselves are verified in `tests/x509.rs`.

use super::*;

fn read(properties: &[(&str, &'static str)]) -> Result<Option<ImageSignature>, X509Error> {
    ImageSignature::from_properties(|name| properties.iter().find(|(own, _)| *own == name).map(|(_, value)| *value))
}

const GOOD: [(&str, &str); 4] = [
    (SIGNATURE, "AAECAwQF"),
    (HASH_METHOD, "SHA-256"),
    (KEY_TYPE, "RSA-PSS"),
    (CERTIFICATE_UUID, "125e6199-2de4-46e3-b091-8e2401ef0d63"),
];

fn with(name: &str, value: &'static str) -> Result<Option<ImageSignature>, X509Error> {
    read(&GOOD.map(|(own, old)| (own, if own == name { value } else { old })))
}

#[test]
fn all_four_or_none() {
    assert_eq!(read(&[]), Ok(None));
    assert_eq!(read(&[("os_type", "linux")]), Ok(None));
    let signature = read(&GOOD).unwrap().unwrap();
    assert_eq!(signature.hash_method(), HashMethod::Sha256);
    assert_eq!(signature.certificate().to_string(), GOOD[3].1);
    for (missing, _) in GOOD {
        let some: Vec<_> = GOOD.into_iter().filter(|(name, _)| *name != missing).collect();
        assert_eq!(read(&some), Err(X509Error::Incomplete { missing }));
    }
}

#[test]
fn documented_values_only() {
    for (name, value) in [
        (HASH_METHOD, "SHA-224"),
        (HASH_METHOD, "SHA-384"),
        (HASH_METHOD, "SHA-512"),
        (KEY_TYPE, "DSA"),
        (KEY_TYPE, "ECC_SECP384R1"),
        (KEY_TYPE, "ECC_SECP521R1"),
        (SIGNATURE, "AAEC\nAwQF\n"),
    ] {
        assert!(with(name, value).unwrap().is_some(), "{name} {value}");
    }
    for (name, value) in [
        (HASH_METHOD, "SHA-1"),
        (HASH_METHOD, "MD5"),
        (HASH_METHOD, "sha-256"),
        (HASH_METHOD, "SHA256"),
        (KEY_TYPE, "RSA"),
        (KEY_TYPE, "ECC_SECP256R1"),
        (KEY_TYPE, "rsa-pss"),
        (SIGNATURE, ""),
        (SIGNATURE, "not base64!"),
        (CERTIFICATE_UUID, "../../etc/passwd"),
        (CERTIFICATE_UUID, ""),
    ] {
        assert_eq!(with(name, value).unwrap_err().code(), "x509_property", "{name} {value}");
    }
    for curve in ["ECC_SECT571K1", "ECC_SECT409K1", "ECC_SECT571R1", "ECC_SECT409R1"] {
        assert_eq!(with(KEY_TYPE, curve).unwrap_err().code(), "x509_key_type_unsupported");
    }
    let long: &'static str = "A".repeat(4000).leak();
    assert_eq!(with(SIGNATURE, long).unwrap_err().code(), "x509_property");
}

#[test]
fn certificates_that_are_none() {
    for bad in [
        &b""[..],
        b"x",
        b"\x30\x00",
        b"\x30\x84\xff\xff\xff\xff",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        &[0x30; 70_000],
    ] {
        assert_eq!(Certificate::parse(bad), Err(X509Error::CertificateMalformed));
        assert_eq!(TrustStore::parse(bad), Err(X509Error::CertificateMalformed));
    }
}

#[test]
fn a_directory_stands_in_for_the_key_manager() {
    let dir = tempfile::tempdir().unwrap();
    let directory = CertificateDirectory::new(dir.path());
    let uuid = uuid_of(GOOD[3].1).unwrap();
    assert_eq!(directory.get(uuid).unwrap_err().code(), "x509_certificate_missing");
    std::fs::write(dir.path().join(format!("{uuid}.pem")), "no certificate").unwrap();
    assert_eq!(directory.get(uuid).unwrap_err().code(), "x509_certificate_malformed");
    std::fs::remove_file(dir.path().join(format!("{uuid}.pem"))).unwrap();
    std::fs::create_dir(dir.path().join(format!("{uuid}.crt"))).unwrap();
    assert_eq!(directory.get(uuid).unwrap_err().code(), "x509_certificate_unreadable");
}
