//! Registries that fail, and what the next import makes of it.

use std::process::Command;

use crate::registry_stub::{Fault, Registry, TAR, noise, tar};
use crate::{pull, told};
use images::{ImageDigest, ImportError, PullError};

fn open(settings: images::Settings) -> images::Store {
    images::Store::open(settings).unwrap().0
}

/// What went wrong with the registry.
fn of_registry(error: ImportError) -> PullError {
    match error {
        ImportError::Registry(error) => error,
        other => panic!("{}", told(&other)),
    }
}

struct Two {
    registry: Registry,
    root: tempfile::TempDir,
}

/// A registry with an image of two layers, and a place for a store.
fn two() -> Two {
    let registry = Registry::start();
    let layers = [("boot/vmlinuz", b"kernel".to_vec()), ("disk/a.raw", noise(1 << 20))];
    let layers = layers.map(|(path, bytes)| (TAR, tar(&[(path, &bytes)])));
    registry.push("v1", &layers, "");
    Two {
        registry,
        root: tempfile::tempdir().unwrap(),
    }
}

#[tokio::test]
async fn unknown_names_refusals_and_unreachable_registries_say_what_to_do() {
    let two = two();
    let store = open(two.registry.settings(two.root.path()));
    let error = of_registry(pull(&store, &two.registry.reference("demo:v2")).await.unwrap_err());
    assert!(matches!(error, PullError::NotFound(_)) && told(&error).contains("demo:v2"));
    two.registry.misbehave("/v2/demo/manifests/v1", &[Fault::Status(401)]);
    let error = of_registry(pull(&store, &two.registry.reference("demo:v1")).await.unwrap_err());
    assert!(matches!(error, PullError::Unauthorized(_)));
    // The manifest under a digest is another one.
    let wrong = ImageDigest::of(b"wrong");
    let body = "{\"schemaVersion\":2}";
    two.registry
        .push_manifest(&wrong.to_string(), "application/vnd.oci.image.manifest.v1+json", body);
    let reference = two.registry.reference(&format!("demo@{wrong}"));
    let error = of_registry(pull(&store, &reference).await.unwrap_err());
    assert!(matches!(&error, PullError::DigestMismatch { expected, .. } if *expected == wrong));
    // Nobody listens there.
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let reference = format!("{closed}/demo").parse().unwrap();
    let error = of_registry(pull(&store, &reference).await.unwrap_err());
    assert!(told(&error).contains("insecure_registries"), "{}", told(&error));
    // A plain registry that is not on the list is never spoken to in plain.
    let other = Registry::start();
    let error = of_registry(pull(&store, &other.reference("demo:v1")).await.unwrap_err());
    assert!(matches!(error, PullError::Insecure { .. }), "{}", told(&error));
    assert!(told(&error).contains(&format!("add {:?} to insecure_registries", other.host)));
    assert!(!error.is_transient());
    assert!(other.requests("/v2/").is_empty() && other.requests("/v2/demo/manifests/v1").is_empty());
    // One that hangs up without a word may be anything.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let reference = format!("{}/demo", mute.local_addr().unwrap()).parse().unwrap();
    std::thread::spawn(move || while mute.accept().is_ok() {});
    let error = of_registry(pull(&store, &reference).await.unwrap_err());
    assert!(matches!(error, PullError::Unreachable { .. }), "{}", told(&error));
}

#[tokio::test]
async fn a_host_without_certificate_authorities_is_told_which_package_it_lacks() {
    const NOWHERE: &str = "/no/such/certificates";
    if std::env::var_os("SSL_CERT_FILE").is_none_or(|value| value != NOWHERE) {
        let status = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "registries::a_host_without_certificate_authorities_is_told_which_package_it_lacks",
            ])
            .env("SSL_CERT_FILE", NOWHERE)
            .env("SSL_CERT_DIR", NOWHERE)
            .status();
        assert!(status.unwrap().success());
        return;
    }
    let two = two();
    let store = open(two.registry.settings(two.root.path()));
    let error = of_registry(pull(&store, &two.registry.reference("demo:v1")).await.unwrap_err());
    assert!(
        told(&error).contains("install package ca-certificates"),
        "{}",
        told(&error)
    );
}
