//! Foreign formats become qcow2, and what is made to hurt is refused.

use std::io::Cursor;

use images::{DiskFormat, ImportSource, SourceFormat};

use crate::registry_stub::{gzip, tar};
use crate::{disk, have, import, open, refused, request, run};

fn upload(bytes: Vec<u8>) -> ImportSource {
    ImportSource::Upload(Box::new(Cursor::new(bytes)))
}

#[tokio::test]
async fn foreign_formats_become_qcow2_with_the_same_disk() {
    if !have("qemu-img") {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let dir = work.path();
    std::fs::write(dir.join("raw"), disk()).unwrap();
    for (driver, options, expected) in [
        ("vmdk", "", SourceFormat::Vmdk),
        ("vmdk", " -o subformat=streamOptimized", SourceFormat::Vmdk),
        ("vpc", " -o force_size=on", SourceFormat::Vhd),
        ("vpc", " -o subformat=fixed,force_size=on", SourceFormat::Vhd),
        ("vhdx", "", SourceFormat::Vhdx),
        ("vdi", "", SourceFormat::Vdi),
    ] {
        // Converted they may be the same bytes: in one store the second would be found there, as the first left it.
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path());
        run(dir, &format!("qemu-img convert -f raw -O {driver}{options} raw made"));
        let bytes = std::fs::read(dir.join("made")).unwrap();
        let imported = import(&store, request(upload(bytes)))
            .await
            .unwrap_or_else(|error| panic!("{driver}{options}: {error:?}"));
        let image = imported.image;
        assert_eq!(
            (image.disk.source_format, image.disk.format),
            (expected, DiskFormat::Qcow2),
            "{driver}{options}"
        );
        let sealed = store.disk_path(&image.digest);
        run(
            dir,
            &format!("qemu-img compare -f raw -F qcow2 raw {}", sealed.display()),
        );
    }
}

fn ovf(href: &str, size_bytes: usize) -> Vec<u8> {
    format!(
        r#"<?xml version="1.0"?>
        <Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
          <References><File ovf:href="{href}" ovf:id="file1" ovf:size="{size_bytes}"/></References>
          <DiskSection><Disk ovf:capacity="8" ovf:capacityAllocationUnits="byte * 2^20" ovf:diskId="vmdisk1"
            ovf:fileRef="file1"/></DiskSection>
        </Envelope>"#
    )
    .into_bytes()
}

#[tokio::test]
async fn the_disk_of_an_ova_is_taken_out() {
    if !have("qemu-img") {
        return;
    }
    let (work, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (dir, store) = (work.path(), open(root.path()));
    std::fs::write(dir.join("raw"), disk()).unwrap();
    run(
        dir,
        "qemu-img convert -f raw -O vmdk -o subformat=streamOptimized raw made",
    );
    let vmdk = std::fs::read(dir.join("made")).unwrap();
    let ova = tar(&[("box.ovf", &ovf("disk1.vmdk", vmdk.len())), ("disk1.vmdk", &vmdk)]);
    for bytes in [ova.clone(), gzip(&ova)] {
        let image = import(&store, request(upload(bytes))).await.unwrap().image;
        assert_eq!(image.disk.source_path, "disk1.vmdk");
        assert_eq!(image.disk.source_format, SourceFormat::Vmdk);
        let sealed = store.disk_path(&image.digest);
        run(
            dir,
            &format!("qemu-img compare -f raw -F qcow2 raw {}", sealed.display()),
        );
    }
}

#[tokio::test]
async fn what_is_made_to_hurt_is_refused_and_leaves_nothing() {
    if !have("qemu-img") {
        return;
    }
    let (work, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (dir, store) = (work.path(), open(root.path()));
    std::fs::write(dir.join("raw"), disk()).unwrap();
    let made = |line: &str| {
        run(dir, line);
        std::fs::read(dir.join("made")).unwrap()
    };
    run(dir, "qemu-img create -q -f qcow2 base 8M");
    let backed = made("qemu-img create -q -f qcow2 -b base -F qcow2 made");
    let external = made("qemu-img create -q -f qcow2 -o data_file=data made 8M");
    let extents = made("qemu-img create -q -f vmdk -o subformat=monolithicFlat made 8M");
    let large = made("qemu-img create -q -f qcow2 made 4T");
    let mut polyglot = made("qemu-img create -q -f qcow2 made 8M");
    polyglot[510..512].copy_from_slice(&[0x55, 0xaa]);
    polyglot[446 + 4] = 0x83;
    let inner = tar(&[("a", &disk())]);
    let nested = tar(&[("box.ovf", &ovf("inner.tar", inner.len())), ("inner.tar", &inner)]);
    for (name, bytes, expected) in [
        ("backing file", backed, "backing_file"),
        ("external data", external, "data_file"),
        ("vmdk description", extents, "vmdk_external_extent"),
        ("beyond the quota", large, "virtual_size_beyond_quota"),
        ("polyglot", polyglot, "polyglot_partition_table"),
        ("packed twice", gzip(&gzip(&disk())), "nested_compression"),
        ("nested archive", nested, "nested_archive"),
        ("cut", gzip(&disk())[..60_000].to_vec(), "compressed_truncated"),
    ] {
        let code = refused(&store, request(upload(bytes))).await;
        assert_eq!(code, expected, "{name}");
    }
    assert!(store.list().unwrap().is_empty());
}
