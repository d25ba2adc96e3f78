//! What a container disk comes to in a store, and what machines do with it.

use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use images::{CloneError, CloneMethod, CloneWay, ImportSource, Phase, Progress, SourceFormat, Store, StoreError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::registry_stub::{GZIP, Registry, TAR, blob_path, gzip, noise, tar};
use crate::{disk, names, pull, request, told};

fn open(settings: images::Settings) -> Store {
    Store::open(settings).unwrap().0
}

fn read(mut file: std::fs::File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn a_raw_disk_with_kernel_becomes_a_sealed_image() {
    let (registry, root) = (Registry::start(), tempfile::tempdir().unwrap());
    let layers = [
        (
            TAR,
            tar(&[
                ("boot/vmlinuz", b"kernel"),
                ("boot/initrd.img", b"initrd"),
                ("disk/.keep", b""),
            ]),
        ),
        (GZIP, gzip(&tar(&[("disk/demo.img", &disk())]))),
    ];
    let manifest = registry.push("v1", &layers, "\"io.karat.cmdline\":\"console=ttyS0\"");
    let store = open(registry.settings(root.path()));
    let (progress, mut watched) = watch::channel(Progress::default());
    let seen = tokio::spawn(async move {
        let mut seen = Vec::new();
        while watched.changed().await.is_ok() {
            seen.push(*watched.borrow_and_update());
        }
        seen
    });
    let reference = registry.reference("demo:v1");
    let source = ImportSource::Registry {
        reference: reference.clone(),
    };
    let pulled = store
        .import(request(source), &progress, &CancellationToken::new())
        .await
        .unwrap();
    drop(progress);
    assert!(!pulled.was_there);
    let image = pulled.image;
    let digest = image.digest.clone();
    assert!(digest != manifest && image.reference == reference.to_string());
    assert_eq!(
        (image.disk.source_format, image.disk.virtual_bytes),
        (SourceFormat::Raw, 8 << 20)
    );
    assert_eq!(image.cmdline.as_deref(), Some("console=ttyS0"));
    assert!(read(store.open_disk(&digest).unwrap()) == disk());
    assert_eq!(read(store.open_kernel(&digest).unwrap()), b"kernel");
    assert_eq!(read(store.open_initrd(&digest).unwrap()), b"initrd");

    let seen = seen.await.unwrap();
    assert!(seen.iter().all(|progress| progress.done_bytes <= progress.total_bytes));
    assert_eq!(seen.last().unwrap().phase, Phase::Sealing);

    // Sealed: nothing can be written, nothing but the image stays, holes are holes.
    let dir = root.path().join("images/sha256").join(digest.hex());
    assert_eq!(names(&dir).len(), 4);
    for name in ["disk.raw", "kernel", "initrd", "manifest.json"] {
        assert_eq!(
            dir.join(name).metadata().unwrap().permissions().mode() & 0o777,
            0o444,
            "{name}"
        );
    }
    assert_eq!(dir.metadata().unwrap().permissions().mode() & 0o777, 0o555);
    assert!(dir.join("disk.raw").metadata().unwrap().blocks() * 512 < 300_000);
    assert!(store.open_disk(&digest).unwrap().write_at(b"x", 0).is_err());
    for part in ["blobs", "partial", "tmp"] {
        assert!(names(&root.path().join(part)).is_empty(), "{part}");
    }
    let usage = store.usage().unwrap();
    assert!(usage.images_bytes > 100_000 && usage.blobs_bytes < 100_000 && usage.free_bytes > 0);
}

#[tokio::test]
async fn what_is_there_is_not_fetched_again_even_after_a_restart() {
    let (registry, root) = (Registry::start(), tempfile::tempdir().unwrap());
    let layer = tar(&[("disk/a.raw", &noise(1000))]);
    let digest = registry.push("v1", &[(TAR, layer.clone())], "");
    let layer = blob_path(&images::ImageDigest::of(&layer));
    let store = open(registry.settings(root.path()));
    let reference = registry.reference("demo:v1");
    let image = pull(&store, &reference).await.unwrap().image;
    // Only the manifest is asked for.
    assert!(pull(&store, &reference).await.unwrap().was_there);
    let manifest = "/v2/demo/manifests/v1";
    assert_eq!(
        (registry.requests(&layer).len(), registry.requests(manifest).len()),
        (1, 2)
    );
    let pinned = registry.reference(&format!("demo@{digest}"));
    assert!(pull(&store, &pinned).await.unwrap().was_there);
    assert_eq!(registry.requests(&layer).len(), 1);

    // Only one process has a store at a time.
    assert!(told(&Store::open(registry.settings(root.path())).err().unwrap()).contains("in use"));
    drop(store);
    let (store, recovery) = Store::open(registry.settings(root.path())).unwrap();
    assert_eq!(recovery, images::Recovery::default());
    assert_eq!(store.list().unwrap(), [image]);
}

#[tokio::test]
async fn an_index_leads_to_this_kind_of_machine() {
    let (registry, root) = (Registry::start(), tempfile::tempdir().unwrap());
    let digest = registry.push("amd64", &[(TAR, tar(&[("disk/a.raw", b"disk of odd size")]))], "");
    let entry = |digest: &str, arch: &str| {
        format!(
            "{{\"mediaType\":\"m\",\"digest\":\"{digest}\",\"size\":1,\
             \"platform\":{{\"os\":\"linux\",\"architecture\":\"{arch}\"}}}}"
        )
    };
    let other = entry(&images::ImageDigest::of(b"other").to_string(), "arm64");
    let kind = "application/vnd.oci.image.index.v1+json";
    let both = format!(
        "{{\"schemaVersion\":2,\"manifests\":[{other},{}]}}",
        entry(&digest.to_string(), "amd64")
    );
    let index = registry.push_manifest("both", kind, &both);
    registry.push_manifest("arm", kind, &format!("{{\"schemaVersion\":2,\"manifests\":[{other}]}}"));
    let store = open(registry.settings(root.path()));
    let image = pull(&store, &registry.reference("demo:both")).await.unwrap().image;
    assert_eq!((&image.index_digest, image.disk.source_bytes), (&Some(index), 16));
    assert_eq!(image.disk.virtual_bytes, 512, "raw disks are padded to sectors");
    let error = pull(&store, &registry.reference("demo:arm")).await.unwrap_err();
    assert!(told(&error).contains("offers linux/arm64"), "{}", told(&error));
}

#[tokio::test]
async fn two_pulls_of_one_image_are_one_import() {
    let (registry, root) = (Registry::start(), tempfile::tempdir().unwrap());
    let layer = tar(&[("disk/a.raw", &noise(3 << 20))]);
    registry.push("v1", &[(TAR, layer.clone())], "");
    let store = open(registry.settings(root.path()));
    let reference = registry.reference("demo:v1");
    let (one, two) = tokio::join!(pull(&store, &reference), pull(&store, &reference));
    let there = [one.unwrap().was_there, two.unwrap().was_there];
    assert!(there.contains(&true) && there.contains(&false));
    assert_eq!(registry.requests(&blob_path(&images::ImageDigest::of(&layer))), [0]);
}

#[tokio::test]
async fn clones_are_private_and_images_can_be_removed() {
    let (registry, root) = (Registry::start(), tempfile::tempdir().unwrap());
    registry.push("v1", &[(GZIP, gzip(&tar(&[("disk/a.raw", &disk())])))], "");
    let store = open(registry.settings(root.path()));
    let digest = pull(&store, &registry.reference("demo:v1")).await.unwrap().image.digest;
    let target = root.path().join("vm.raw");
    let cloned = store
        .make_disk(&digest, &target, 32 << 20, CloneWay::Reflink)
        .await
        .unwrap();
    assert_eq!(cloned.size_bytes, 32 << 20);
    if cloned.method == CloneMethod::SparseCopy {
        assert!(cloned.copied_bytes < 300_000, "{cloned:?}");
    }
    let bytes = std::fs::read(&target).unwrap();
    assert!(bytes[..8 << 20] == disk() && bytes[8 << 20..].iter().all(|&byte| byte == 0));
    let writable = std::fs::File::options().write(true).open(&target).unwrap();
    writable.write_at(b"mine", 0).unwrap();
    assert!(read(store.open_disk(&digest).unwrap()) == disk());

    let fresh = root.path().join("other.raw");
    let too_small = store
        .make_disk(&digest, &fresh, 4 << 20, CloneWay::Reflink)
        .await
        .unwrap_err();
    assert!(matches!(
        too_small,
        CloneError::TooSmall {
            needed_bytes: 8_388_608,
            ..
        }
    ));
    let odd = store
        .make_disk(&digest, &fresh, (8 << 20) + 1, CloneWay::Reflink)
        .await
        .unwrap_err();
    assert!(matches!(odd, CloneError::NotSectors(_)));
    let exists = store
        .make_disk(&digest, &target, 8 << 20, CloneWay::Reflink)
        .await
        .unwrap_err();
    assert!(matches!(exists, CloneError::Exists(_)));
    assert!(!fresh.exists());

    let held = store.open_disk(&digest).unwrap();
    store.remove(&digest).unwrap();
    assert!(read(held) == disk(), "an open disk outlives its image");
    assert!(store.list().unwrap().is_empty() && names(&root.path().join("images/sha256")).is_empty());
    assert!(names(&root.path().join("tmp")).is_empty());
    assert!(matches!(store.remove(&digest), Err(StoreError::NotFound(_))));
    let gone = store
        .make_disk(&digest, &fresh, 8 << 20, CloneWay::Reflink)
        .await
        .unwrap_err();
    assert!(matches!(gone, CloneError::Image(StoreError::NotFound(_))));
}

#[tokio::test]
async fn damaged_images_are_reported_not_used_and_replaced_by_a_pull() {
    let (registry, root) = (Registry::start(), tempfile::tempdir().unwrap());
    registry.push("v1", &[(TAR, tar(&[("disk/a.raw", &noise(4096))]))], "");
    let store = open(registry.settings(root.path()));
    let digest = pull(&store, &registry.reference("demo:v1")).await.unwrap().image.digest;
    drop(store);
    let disk = root.path().join("images/sha256").join(digest.hex()).join("disk.raw");
    std::fs::set_permissions(&disk, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::File::options()
        .write(true)
        .open(&disk)
        .unwrap()
        .set_len(1024)
        .unwrap();
    let (store, recovery) = Store::open(registry.settings(root.path())).unwrap();
    assert_eq!(recovery.damaged.len(), 1);
    assert!(recovery.damaged[0].1.contains("1024 of 4096"), "{recovery:?}");
    assert!(store.list().unwrap().is_empty());
    assert!(matches!(store.open_disk(&digest), Err(StoreError::Damaged { .. })));
    assert!(!pull(&store, &registry.reference("demo:v1")).await.unwrap().was_there);
    assert_eq!(read(store.open_disk(&digest).unwrap()), noise(4096));
}

#[tokio::test]
async fn content_that_cannot_be_used_is_named() {
    let (registry, root) = (Registry::start(), tempfile::tempdir().unwrap());
    let store = open(registry.settings(root.path()));
    let mut backed = vec![0; 4096];
    backed[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    (backed[15], backed[23], backed[103]) = (200, 16, 104);
    let mut sparse_extent = [0; 512];
    sparse_extent[..5].copy_from_slice(b"KDMV\x01");
    type Files<'a> = &'a [(&'a str, &'a [u8])];
    let cases: [(Files<'_>, &str); 5] = [
        (&[("disk/a.qcow2", &backed)], "backing file"),
        (&[("disk/a.img", &sparse_extent)], "vmdk"),
        (&[("etc/passwd", b"")], "no disk"),
        (
            &[("disk/a.img", b"1"), ("disk/b.img", b"2")],
            "/disk/a.img, /disk/b.img",
        ),
        (&[("disk/a.img", b"1"), ("boot/cmdline", b"a\nb")], "more than one line"),
    ];
    for (entries, expected) in cases {
        registry.push("bad", &[(TAR, tar(entries))], "");
        let error = pull(&store, &registry.reference("demo:bad")).await.unwrap_err();
        assert!(told(&error).contains(expected), "{}", told(&error));
        assert!(!error.is_transient());
        for part in ["images/sha256", "partial", "tmp"] {
            assert!(names(&root.path().join(part)).is_empty(), "{part}");
        }
    }
    registry.push("odd", &[("application/x-thing", vec![1])], "");
    let error = pull(&store, &registry.reference("demo:odd")).await.unwrap_err();
    assert!(error.code() == "registry_manifest" && told(&error).contains("application/x-thing"));
}
