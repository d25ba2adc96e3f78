//! Container disks on the new path.

use std::sync::Arc;

use image_trust::policy::{RuleSection, TrustPolicy, TrustSection};
use images::{DiskFormat, ImageDigest, ImportSource, Origin, Settings, Store};
use tokio_util::sync::CancellationToken;

use crate::registry_stub::{GZIP, Registry, TAR, blob_path, gzip, tar};
use crate::{disk, have, import, refused, request, run, settings};

fn open(root: &std::path::Path, registry: &Registry) -> Store {
    let settings = Settings {
        insecure_registries: vec![registry.host.clone()],
        ..settings(root)
    };
    Store::open(settings).unwrap().0
}

fn source(registry: &Registry, rest: &str) -> ImportSource {
    ImportSource::Registry {
        reference: registry.reference(rest),
    }
}

#[tokio::test]
async fn a_container_disk_is_named_by_what_is_in_it() {
    let (registry, root) = (Registry::start(), tempfile::tempdir().unwrap());
    let layer = gzip(&tar(&[("disk/a.img", &disk())]));
    let manifest = registry.push("v1", &[(GZIP, layer.clone())], "");
    let store = open(root.path(), &registry);
    let imported = import(&store, request(source(&registry, "demo:v1"))).await.unwrap();
    assert_eq!(imported.image.digest, ImageDigest::of(&disk()));
    assert_eq!(imported.image.disk.source_path, "disk/a.img");
    assert_eq!(
        imported.origin,
        Origin::Registry {
            digest: manifest.clone()
        }
    );
    assert_eq!(
        store.probe(&source(&registry, "demo:v1")).await.unwrap(),
        imported.origin
    );

    // Another tag of the same manifest costs no layer; the same disk in another layer is stored once.
    registry.push("v2", &[(GZIP, layer.clone())], "");
    assert!(
        import(&store, request(source(&registry, "demo:v2")))
            .await
            .unwrap()
            .was_there
    );
    assert_eq!(registry.requests(&blob_path(&ImageDigest::of(&layer))), [0]);
    registry.push("v3", &[(TAR, tar(&[("disk/b.raw", &disk())]))], "");
    let third = import(&store, request(source(&registry, "demo:v3"))).await.unwrap();
    assert!(third.was_there && third.origin != imported.origin);
    assert_eq!(store.list().unwrap().len(), 1);
    assert!(
        store
            .fsck(&images::Examination::default(), &|| false)
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn what_comes_with_the_disk_counts_for_the_name() {
    let (registry, root) = (Registry::start(), tempfile::tempdir().unwrap());
    let store = open(root.path(), &registry);
    let mut digests = vec![ImageDigest::of(&disk())];
    for (kernel, label) in [("one", ""), ("two", ""), ("one", "\"io.karat.cmdline\":\"quiet\"")] {
        let files = tar(&[("boot/vmlinuz", kernel.as_bytes()), ("disk/a.img", &disk())]);
        registry.push("v1", &[(TAR, files)], label);
        let imported = import(&store, request(source(&registry, "demo:v1"))).await.unwrap();
        assert!(!imported.was_there && !digests.contains(&imported.image.digest));
        let kernel_file = imported.image.kernel.as_ref().unwrap();
        assert_eq!(kernel_file.digest, Some(ImageDigest::of(kernel.as_bytes())));
        assert_eq!(imported.image.disk.digest, Some(ImageDigest::of(&disk())));
        digests.push(imported.image.digest);
    }
}

#[tokio::test]
async fn a_copy_to_another_store_is_right_in_every_part_or_is_not_made() {
    let (registry, root) = (Registry::start(), tempfile::tempdir().unwrap());
    let (from, to) = (
        open(&root.path().join("from"), &registry),
        open(&root.path().join("to"), &registry),
    );
    let files = tar(&[
        ("boot/vmlinuz", b"a kernel"),
        ("boot/initrd", b"an initrd"),
        ("disk/a.img", &disk()),
    ]);
    registry.push("v1", &[(TAR, files)], "");
    let imported = import(&from, request(source(&registry, "demo:v1"))).await.unwrap();
    let digest = imported.image.digest;
    let directory = from.disk_path(&digest).with_file_name("");
    let (progress, _) = tokio::sync::watch::channel(images::Progress::default());
    for part in ["kernel", "initrd"] {
        let file = directory.join(part);
        let right = std::fs::read(&file).unwrap();
        let wrong: Vec<u8> = right.iter().map(|byte| !byte).collect();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(&file, wrong).unwrap();
        let copied = to.copy_from(&from, &digest, &progress, &CancellationToken::new()).await;
        let error = copied.unwrap_err();
        assert_eq!(error.code(), "store_damaged", "{error}");
        assert!(crate::told(&error).contains(part), "{}", crate::told(&error));
        assert_eq!(to.get(&digest).unwrap_err().code(), "store_no_image");
        assert_eq!(crate::left(&to), Vec::<String>::new());
        std::fs::write(&file, right).unwrap();
    }
    let copied = to.copy_from(&from, &digest, &progress, &CancellationToken::new()).await;
    assert_eq!(copied.unwrap().image.kernel, imported.image.kernel);
}

#[tokio::test]
async fn a_qcow2_in_a_container_stays_one() {
    if !have("qemu-img") {
        return;
    }
    let (registry, work, root) = (
        Registry::start(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    std::fs::write(work.path().join("raw"), disk()).unwrap();
    run(work.path(), "qemu-img convert -f raw -O qcow2 -c raw made");
    let bytes = std::fs::read(work.path().join("made")).unwrap();
    registry.push("v1", &[(GZIP, gzip(&tar(&[("disk/a.qcow2", &bytes)])))], "");
    let store = open(root.path(), &registry);
    let image = import(&store, request(source(&registry, "demo:v1")))
        .await
        .unwrap()
        .image;
    assert_eq!(image.disk.format, DiskFormat::Qcow2);
    assert_eq!(image.digest, ImageDigest::of(&bytes));
    let mut backed = bytes;
    backed[15] = 200;
    registry.push("bad", &[(TAR, tar(&[("disk/a.qcow2", &backed)]))], "");
    let code = refused(&store, request(source(&registry, "demo:bad"))).await;
    assert_eq!(code, "backing_file");
}

#[tokio::test]
async fn a_policy_may_demand_a_signature() {
    if !have("openssl") {
        return;
    }
    let (registry, work, root) = (
        Registry::start(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let dir = work.path();
    run(
        dir,
        "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key",
    );
    run(dir, "openssl pkey -in key -pubout -out pub");
    let section = TrustSection {
        rule: vec![RuleSection {
            name: "golden".to_owned(),
            sources: vec![format!("{}/demo", registry.host)],
            demand: "cosign".to_owned(),
            keys: vec![dir.join("pub")],
            ..RuleSection::default()
        }],
        ..TrustSection::default()
    };
    let policy = Arc::new(TrustPolicy::build(&section, |path| std::fs::read(path)).unwrap());
    let layer = tar(&[("disk/a.img", &disk())]);
    let manifest = registry.push("v1", &[(TAR, layer.clone())], "");
    let store = open(root.path(), &registry);
    let signed_only = || {
        let mut request = request(source(&registry, "demo:v1"));
        request.trust = Arc::clone(&policy);
        request
    };
    assert_eq!(refused(&store, signed_only()).await, "cosign_unsigned");

    let payload = format!(
        r#"{{"critical":{{"identity":{{"docker-reference":""}},"image":{{"docker-manifest-digest":"{manifest}"}},"type":"cosign container image signature"}},"optional":null}}"#
    );
    std::fs::write(dir.join("payload"), &payload).unwrap();
    run(dir, "openssl dgst -sha256 -sign key -out signature payload");
    let signature = run(dir, "openssl base64 -A -in signature");
    let blob = registry.push_blob(payload.as_bytes());
    let body = format!(
        r#"{{"schemaVersion":2,"layers":[{{"mediaType":"application/vnd.dev.cosign.simplesigning.v1+json","digest":"{blob}","size":{},"annotations":{{"dev.cosignproject.cosign/signature":"{}"}}}}]}}"#,
        payload.len(),
        signature.trim()
    );
    let tag = format!("sha256-{}.sig", manifest.hex());
    registry.push_manifest(&tag, "application/vnd.oci.image.manifest.v1+json", &body);
    let imported = import(&store, signed_only()).await.unwrap();
    assert_eq!(imported.image.digest, ImageDigest::of(&disk()));

    // The signature is of that image and no other.
    registry.push("v1", &[(TAR, tar(&[("disk/a.img", b"another disk")]))], "");
    assert_eq!(refused(&store, signed_only()).await, "cosign_unsigned");
}
