//! Disks made from images.

use std::io::Cursor;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use images::{CloneError, CloneMethod, CloneWay, DiskFormat, ImageRecord, ImportSource, Store};

use crate::{disk, have, import, open, request, run};

async fn image(store: &Store, bytes: Vec<u8>) -> ImageRecord {
    let source = ImportSource::Upload(Box::new(Cursor::new(bytes)));
    import(store, request(source)).await.unwrap().image
}

#[tokio::test]
async fn an_overlay_shows_the_image_and_can_be_larger() {
    if !have("qemu-img") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (dir, store) = (root.path(), open(&root.path().join("store")));
    std::fs::write(dir.join("raw"), disk()).unwrap();
    run(dir, "qemu-img convert -f raw -O qcow2 raw packed");
    let plain = image(&store, disk()).await;
    let packed = image(&store, std::fs::read(dir.join("packed")).unwrap()).await;
    std::fs::create_dir_all(dir.join("vms/1")).unwrap();
    for (image, format) in [(&plain, DiskFormat::Raw), (&packed, DiskFormat::Qcow2)] {
        assert_eq!(image.disk.format, format);
        let target = dir.join("vms/1").join(format!("{}.qcow2", format.name()));
        let cloned = store
            .make_disk(&image.digest, &target, 32 << 20, CloneWay::Overlay)
            .await
            .unwrap();
        assert_eq!(
            (cloned.method, cloned.format, cloned.copied_bytes),
            (CloneMethod::Overlay, DiskFormat::Qcow2, 0)
        );
        let path = target.display();
        run(dir, &format!("qemu-img check -q {path}"));
        // What is beyond the image reads as zeros, which compare takes as equal.
        run(dir, &format!("qemu-img compare -f raw -F qcow2 raw {path}"));
        let info = run(dir, &format!("qemu-img info --output=json {path}"));
        assert!(info.contains("\"virtual-size\": 33554432"), "{info}");
        assert!(
            info.contains("\"backing-filename\": \"../../store/images/"),
            "relative, so that all may be moved: {info}"
        );
        assert!(info.contains(&format!("\"backing-filename-format\": \"{}\"", format.name())));
    }
}

#[tokio::test]
async fn copies_of_their_own_have_the_images_format() {
    if !have("qemu-img") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (dir, store) = (root.path(), open(&root.path().join("store")));
    std::fs::write(dir.join("raw"), disk()).unwrap();
    run(dir, "qemu-img convert -f raw -O qcow2 raw packed");
    let packed = image(&store, std::fs::read(dir.join("packed")).unwrap()).await;
    for way in [CloneWay::Copy, CloneWay::Reflink] {
        let target = dir.join(format!("{way:?}.qcow2"));
        let cloned = store.make_disk(&packed.digest, &target, 32 << 20, way).await.unwrap();
        assert_eq!(cloned.format, DiskFormat::Qcow2);
        assert!(!cloned.reason.is_empty());
        if way == CloneWay::Copy {
            assert_eq!(cloned.method, CloneMethod::SparseCopy);
        }
        let path = target.display();
        run(dir, &format!("qemu-img check -q {path}"));
        run(dir, &format!("qemu-img compare -f raw -F qcow2 raw {path}"));
        let info = run(dir, &format!("qemu-img info --output=json {path}"));
        assert!(
            info.contains("\"virtual-size\": 33554432") && !info.contains("backing"),
            "{info}"
        );
    }
    let small = store
        .make_disk(&packed.digest, &dir.join("small"), 4 << 20, CloneWay::Overlay)
        .await;
    assert!(matches!(small, Err(CloneError::TooSmall { .. })));
}

#[tokio::test]
async fn many_overlays_take_no_time_and_do_not_touch_the_image() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root.path().join("store"));
    let plain = image(&store, disk()).await;
    let path = store.disk_path(&plain.digest);
    let before = path.metadata().unwrap();
    let began = Instant::now();
    for index in 0..100 {
        let target = root.path().join(format!("{index}.qcow2"));
        let cloned = store
            .make_disk(&plain.digest, &target, 100 << 30, CloneWay::Overlay)
            .await
            .unwrap();
        assert_eq!(cloned.method, CloneMethod::Overlay);
        assert!(target.metadata().unwrap().blocks() * 512 < 1 << 20);
    }
    eprintln!("an overlay took {:?}", began.elapsed() / 100);
    let after = path.metadata().unwrap();
    assert_eq!((before.blocks(), before.mtime()), (after.blocks(), after.mtime()));
    assert!(store.verify(&plain.digest, &|| false).is_ok());
}
