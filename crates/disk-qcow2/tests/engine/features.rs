//! Feature bits: data files, lazy refcounts, bitmaps, what is refused.

use std::fs;
use std::sync::Arc;

use disk::conformance::pattern;
use disk::{Access, Disk, DiskErrorKind, InMemory, ZeroMode};
use disk_qcow2::{OpenError, Qcow2Disk, Qcow2Options};

use crate::{Lab, block_on, load, open, read, read_all, write};

fn open_with(file: &InMemory, options: Qcow2Options) -> Result<Arc<Qcow2Disk>, OpenError> {
    block_on(Qcow2Disk::open(Arc::new(file.clone()), options))
}

#[test]
fn data_files_hold_the_data() {
    let Some(lab) = Lab::new() else { return };
    for raw in ["on", "off"] {
        lab.run(&format!(
            "qemu-img create -f qcow2 -o data_file=data.raw,data_file_raw={raw} a.qcow2 3000k"
        ));
        lab.io("a.qcow2", &["write -P 1 100k 300k", "write -z 200k 64k"]);
        let file = lab.load("a.qcow2");
        let data = load(&lab.path("data.raw"));
        assert!(matches!(
            open_with(&file, Qcow2Options::named("a")),
            Err(OpenError::DataFile { wanted: true, .. })
        ));
        let options = Qcow2Options {
            data_file: Some(Arc::new(data.clone())),
            ..Qcow2Options::named("a")
        };
        let disk = open_with(&file, options).unwrap();
        let model = block_on(async {
            let io = disk.open_queue().unwrap();
            let mut model = read_all(&*io).await;
            assert!(model[100 << 10..150 << 10].iter().all(|&byte| byte == 1));
            for (at, len) in [
                (0, 512),
                (1000 << 10, 300 << 10),
                (2999 << 10, 1024),
                (150 << 10, 100 << 10),
            ] {
                let bytes = pattern(len, at as u64 + 1);
                write(&*io, at as u64, &bytes).await;
                model[at..at + len].copy_from_slice(&bytes);
            }
            for (at, len) in [(128 << 10, 128 << 10), (1100 << 10, 100 << 10), (2900 << 10, 100 << 10)] {
                io.write_zeroes(at as u64, len as u64, ZeroMode::MayUnmap)
                    .await
                    .unwrap();
                model[at..at + len].fill(0);
            }
            io.discard(0, 64 << 10).await.unwrap();
            model[..64 << 10].copy_from_slice(&read(&*io, 0, 64 << 10).await);
            assert!(read_all(&*io).await == model);
            disk.close().await.unwrap();
            model
        });
        fs::write(lab.path("a.qcow2"), file.contents()).unwrap();
        fs::write(lab.path("data.raw"), data.contents()).unwrap();
        lab.run("qemu-img check a.qcow2");
        lab.run("qemu-img convert -O raw a.qcow2 whole.raw");
        assert!(fs::read(lab.path("whole.raw")).unwrap() == model, "data_file_raw={raw}");
        if raw == "on" {
            assert!(
                data.contents()[..model.len()] == model,
                "the data file is what the guest sees"
            );
        }
    }
}

/// Units that were never written show the backing, and not the data file, until they are zeroes, too.
#[test]
fn zeroes_in_a_data_file_hide_the_backing() {
    let Some(lab) = Lab::new() else { return };
    const CLUSTER: usize = 64 << 10;
    const UNIT: usize = CLUSTER / 32;
    fs::write(lab.path("base.raw"), vec![5; 1 << 20]).unwrap();
    lab.run(
        "qemu-img create -f qcow2 -o data_file=data.raw,extended_l2=on,cluster_size=64k,backing_file=base.raw,\
         backing_fmt=raw a.qcow2 1M",
    );
    let file = lab.load("a.qcow2");
    let data = load(&lab.path("data.raw"));
    let options = Qcow2Options {
        data_file: Some(Arc::new(data.clone())),
        backing: Some(Arc::new(load(&lab.path("base.raw")))),
        ..Qcow2Options::named("a")
    };
    let disk = open_with(&file, options).unwrap();
    let model = block_on(async {
        let io = disk.open_queue().unwrap();
        let mut model = vec![5; 1 << 20];
        for (cluster, mode) in [(0, ZeroMode::MayUnmap), (3, ZeroMode::KeepAllocated)] {
            let at = cluster * CLUSTER;
            write(&*io, at as u64, &[6; UNIT]).await;
            write(&*io, (at + 20 * UNIT) as u64, &[7; UNIT]).await;
            model[at + 20 * UNIT..at + 21 * UNIT].fill(7);
            // Up to the middle of the cluster, then the rest of it but two units.
            for (from, to) in [(0, 16), (22, 32)] {
                let len = (to - from) * UNIT;
                io.write_zeroes((at + from * UNIT) as u64, len as u64, mode)
                    .await
                    .unwrap();
                model[at + from * UNIT..at + to * UNIT].fill(0);
            }
        }
        assert!(read_all(&*io).await == model);
        disk.close().await.unwrap();
        model
    });
    fs::write(lab.path("a.qcow2"), file.contents()).unwrap();
    fs::write(lab.path("data.raw"), data.contents()).unwrap();
    lab.run("qemu-img check a.qcow2");
    lab.run("qemu-img convert -O raw a.qcow2 whole.raw");
    assert!(fs::read(lab.path("whole.raw")).unwrap() == model, "as QEMU reads it");
}

/// The value of the long word at byte `at` of the header.
fn long(file: &InMemory, at: usize) -> u64 {
    u64::from_be_bytes(file.contents()[at..at + 8].try_into().unwrap())
}

#[test]
fn lazy_images_are_dirty_while_they_are_used_and_recover() {
    let Some(lab) = Lab::new() else { return };
    lab.run("qemu-img create -f qcow2 -o lazy_refcounts=on a.qcow2 5M");
    let file = lab.load("a.qcow2");
    let disk = open(&file, None);
    block_on(async {
        let io = disk.open_queue().unwrap();
        assert_eq!(long(&file, 72) & 1, 0);
        write(&*io, 0, &pattern(200_192, 1)).await;
        assert_eq!(long(&file, 72) & 1, 1, "dirty before the first allocation");
        io.flush().await.unwrap();
    });
    // Never closed: refcounts are wrong, and are rebuilt when it is opened again.
    drop(disk);
    let disk = open(&file, None);
    lab.check(&file, false);
    block_on(async {
        let io = disk.open_queue().unwrap();
        assert!(read(&*io, 0, 200_192).await == pattern(200_192, 1));
        write(&*io, 1 << 20, &[3; 4096]).await;
        disk.close().await.unwrap();
    });
    assert_eq!(long(&file, 72) & 1, 0, "clean when closed");
    lab.check(&file, false);
}

#[test]
fn bitmaps_are_kept_and_told_to_be_stale() {
    let Some(lab) = Lab::new() else { return };
    lab.run("qemu-img create -f qcow2 a.qcow2 5M");
    lab.run("qemu-img bitmap --add --enable a.qcow2 tracks");
    lab.run("qemu-img bitmap --add --disable a.qcow2 sleeps");
    let file = lab.load("a.qcow2");
    let disk = open(&file, None);
    block_on(async {
        write(&*disk.open_queue().unwrap(), 0, &[1; 4096]).await;
        disk.close().await.unwrap();
    });
    lab.check(&file, false);
    fs::write(lab.path("a.qcow2"), file.contents()).unwrap();
    let told = lab.run("qemu-img info --output=json a.qcow2");
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let bitmaps = &told["format-specific"]["data"]["bitmaps"];
    for (name, stale) in [("tracks", true), ("sleeps", false)] {
        let bitmap = bitmaps
            .as_array()
            .unwrap()
            .iter()
            .find(|bitmap| bitmap["name"] == name)
            .unwrap();
        let flags = bitmap["flags"].as_array().unwrap();
        assert_eq!(flags.iter().any(|flag| flag == "in-use"), stale, "{bitmap}");
    }
}

#[test]
fn unknown_autoclear_bits_are_cleared_by_the_first_change_only() {
    let Some(lab) = Lab::new() else { return };
    lab.run("qemu-img create -f qcow2 a.qcow2 5M");
    let mut bytes = lab.load("a.qcow2").contents();
    bytes[88] = 0x80;
    let file = InMemory::holding(bytes, Access::ReadWrite);
    let disk = open(&file, None);
    block_on(async {
        let io = disk.open_queue().unwrap();
        read_all(&*io).await;
        io.flush().await.unwrap();
        disk.close().await.unwrap();
        assert_eq!(long(&file, 88), 1 << 63);
        io.discard(0, 65536).await.unwrap();
        assert_eq!(long(&file, 88), 0);
    });
}

#[test]
fn what_can_not_be_used_is_refused_by_name() {
    let Some(lab) = Lab::new() else { return };
    lab.run("qemu-img create -f qcow2 a.qcow2 5M");
    let with = |at: usize, byte: u8| {
        let mut bytes = lab.load("a.qcow2").contents();
        bytes[at] = byte;
        InMemory::holding(bytes, Access::ReadWrite)
    };
    let refused = |file: &InMemory| {
        let error = open_with(file, Qcow2Options::named("a.qcow2")).err().unwrap();
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    };
    assert!(refused(&with(0, 0)).contains("not a qcow2 image"));
    assert!(refused(&with(35, 2)).contains("LUKS"));
    assert!(refused(&with(79, 2)).contains("marked as corrupt"));
    assert!(
        refused(&with(79, 32)).contains("incompatible feature 5"),
        "{}",
        refused(&with(79, 32))
    );
    let read_only = InMemory::holding(lab.load("a.qcow2").contents(), Access::ReadOnly);
    assert!(refused(&read_only).contains("read-only"));
    lab.run("qemu-img create -f qcow2 -b a.qcow2 -F qcow2 top.qcow2");
    assert!(refused(&lab.load("top.qcow2")).contains("needs its backing file a.qcow2"));
    let corrupt = with(79, 2);
    let options = Qcow2Options {
        access: Access::ReadOnly,
        ..Qcow2Options::named("a")
    };
    let disk = open_with(&corrupt, options).unwrap();
    block_on(async {
        let io = disk.open_queue().unwrap();
        read_all(&*io).await;
        let error = io.discard(0, 512).await.unwrap_err();
        assert_eq!(error.kind(), DiskErrorKind::ReadOnly);
    });
}
