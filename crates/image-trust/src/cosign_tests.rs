//! Manifests, indexes and tags. Signatures themselves are verified in `tests/cosign.rs`.

use super::*;

const DIGEST: &str = "sha256:97fc222cee7991b5b061d4d4afdb5f3428fcb0c9054e1690313786befa1e4e36";

#[test]
fn the_tag_is_that_of_the_specification() {
    let tag = tag_for(&DIGEST.parse().unwrap());
    assert_eq!(
        tag,
        "sha256-97fc222cee7991b5b061d4d4afdb5f3428fcb0c9054e1690313786befa1e4e36.sig"
    );
}

fn layer(change: impl Fn(&mut serde_json::Value)) -> serde_json::Value {
    let mut layer = serde_json::json!({
        "mediaType": PAYLOAD_MEDIA_TYPE,
        "size": 210,
        "digest": DIGEST,
        "annotations": { SIGNATURE_ANNOTATION: "MEUCIBKI" },
    });
    change(&mut layer);
    layer
}

fn layers(layers: &[serde_json::Value]) -> usize {
    let manifest = serde_json::json!({ "schemaVersion": 2, "config": {}, "layers": layers });
    SignatureManifest::parse(manifest.to_string().as_bytes())
        .unwrap()
        .layers
        .len()
}

#[test]
fn layers_that_are_no_signatures_are_passed_over() {
    assert_eq!(layers(&[layer(|_| {}), layer(|_| {})]), 2);
    assert_eq!(layers(&[]), 0);
    let others: [fn(&mut serde_json::Value); 7] = [
        |layer| layer["mediaType"] = "application/vnd.in-toto+json".into(),
        |layer| layer["annotations"] = serde_json::Value::Null,
        |layer| layer["annotations"] = serde_json::json!({}),
        |layer| layer["annotations"][SIGNATURE_ANNOTATION] = "no base64".into(),
        |layer| layer["annotations"][SIGNATURE_ANNOTATION] = "A".repeat(4000).into(),
        |layer| layer["size"] = (1_u64 << 40).into(),
        |layer| layer["digest"] = "md5:00".into(),
    ];
    for change in others {
        assert_eq!(layers(&[layer(change), layer(|_| {})]), 1);
    }
    assert_eq!(layers(&vec![layer(|_| {}); 100]), SIGNATURES_MAX);
}

#[test]
fn what_is_no_manifest() {
    let long = vec![b' '; MANIFEST_MAX_BYTES + 1];
    let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
    for bad in [
        &b""[..],
        b"{}",
        b"[]",
        b"{\"layers\":[{}]}",
        b"{\"layers\":{}}",
        &deep,
        &long,
    ] {
        assert_eq!(
            SignatureManifest::parse(bad).unwrap_err().code(),
            "cosign_manifest_malformed"
        );
    }
    assert_eq!(referrers(&long).unwrap_err().code(), "cosign_manifest_malformed");
    assert_eq!(referrers(b"{}"), Ok(Vec::new()));
}

#[test]
fn referrers_of_the_right_artifact_type() {
    let index = serde_json::json!({ "manifests": [
        { "digest": DIGEST, "artifactType": "application/spdx+json" },
        { "digest": DIGEST },
        { "digest": "sha256:zz", "artifactType": ARTIFACT_TYPE },
        { "digest": DIGEST, "artifactType": ARTIFACT_TYPE },
    ]});
    let found = referrers(index.to_string().as_bytes()).unwrap();
    assert_eq!(found, [DIGEST.parse::<Pinned>().unwrap()]);
}

#[test]
fn nothing_signed_is_nothing_trusted() {
    let image = DIGEST.parse().unwrap();
    assert_eq!(Cosign::default().verify(&image, &[]), Err(CosignError::Unsigned));
}
