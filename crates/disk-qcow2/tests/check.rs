//! Checks by this crate and by `qemu-img` say the same, of sound images and of damaged ones.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, and images here are small"
)]

mod support;

use std::path::Path;

use disk::Disk;
use disk_qcow2::meta::header::incompatible;
use disk_qcow2::meta::{entry, refcount};
use disk_qcow2::ops::{
    CheckError, CheckReport, CreateOptions, Head, Limits, Preallocation, Repair, TallyFull, WalkError, check, create,
    repair,
};
use disk_qcow2::{Qcow2Disk, Qcow2Options};
use guestmem::IoBuf;
use support::memory::Memory;
use support::{KINDS, bench, block_on, checked, contents, io, make, qemu_check, qemu_img};

/// QEMU leaves out what is 0.
fn number(theirs: &serde_json::Value, name: &str) -> u64 {
    theirs.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0)
}

fn compare(path: &Path, what: &str) -> CheckReport {
    let theirs = qemu_check(path);
    let report = checked(path);
    let same = [
        ("check-errors", report.check_errors),
        ("corruptions", report.corruptions),
        ("leaks", report.leaks),
        ("allocated-clusters", report.allocated_clusters),
        ("total-clusters", report.total_clusters),
        ("compressed-clusters", report.compressed_clusters),
        ("fragmented-clusters", report.fragmented_clusters),
        ("image-end-offset", report.image_end_offset),
    ];
    for (name, value) in same {
        assert_eq!(value, number(&theirs, name), "{what}: {name}; {report:#?} {theirs}");
    }
    report
}

#[test]
fn sound_images_of_all_kinds() {
    let Some(dir) = bench() else { return };
    for (name, options) in KINDS {
        let path = make(dir.path(), name, options);
        assert!(compare(&path, name).is_clean(), "{name}");
        if !["bits1", "bits2"].contains(name) {
            let text = path.to_str().unwrap();
            qemu_img(&["snapshot", "-c", "one", text]);
            support::qemu_io(&path, &["write -P 9 128k 700k"]);
            if name != &"bits8" {
                qemu_img(&["snapshot", "-c", "two", text]);
            }
            if !options.contains("0.10") {
                qemu_img(&["bitmap", "--add", "-g", "64k", text, "dirty"]);
            }
            assert!(compare(&path, &format!("{name} with snapshots")).is_clean());
        }
    }
}

fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

fn bytes(path: &Path, offset: u64, len: usize) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open(path).unwrap();
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

fn word(path: &Path, offset: u64) -> u64 {
    u64::from_be_bytes(bytes(path, offset, 8).try_into().unwrap())
}

/// Repairs and looks whether QEMU is content, and the guest's data as it was.
fn mend(path: &Path, what: &str, data: &[u8]) -> CheckReport {
    let report = block_on(repair(&*io(path), Repair::All, Limits::default())).unwrap();
    assert!(report.is_clean(), "{what}: {report:#?}");
    assert!(compare(path, what).is_clean(), "{what}");
    support::assert_clean(path, what);
    assert!(contents(path) == data, "{what}: the data changed");
    report
}

#[test]
fn wrong_refcounts_are_counted_and_repaired() {
    let Some(dir) = bench() else { return };
    for (name, options) in KINDS {
        let path = make(dir.path(), name, options);
        let data = contents(&path);
        let header = block_on(Head::read(&*io(&path))).unwrap().header;
        let block = word(&path, header.reftable_offset);
        let layout = header.layout();
        let mut counts = bytes(&path, block, layout.cluster_bytes() as usize);
        let mut state = 0x2545_f491_4f6c_dd1du64;
        for _ in 0..20 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Among the clusters that exist.
            let clusters =
                (std::fs::metadata(&path).unwrap().len() >> layout.cluster_bits).min(layout.refblock_entries());
            let index = (state >> 33) % clusters;
            let count = (state >> 20) % (layout.refcount_max().min(5) + 1);
            refcount::set(&mut counts, layout.refcount_order, index as usize, count);
        }
        patch(&path, block, &counts);
        let before = compare(&path, name);
        assert!(before.leaks + before.corruptions > 0, "{name}");
        let after = mend(&path, name, &data);
        assert_eq!(after.corruptions_fixed, before.corruptions, "{name}");
        assert_eq!(after.leaks_fixed, before.leaks, "{name}");
    }
}

#[test]
fn lost_refcounts_are_rebuilt() {
    let Some(dir) = bench() else { return };
    for (name, options) in KINDS {
        let path = make(dir.path(), name, options);
        let data = contents(&path);
        let header = block_on(Head::read(&*io(&path))).unwrap().header;
        // The whole table is gone.
        patch(&path, header.reftable_offset, &vec![0; 512]);
        let before = checked(&path);
        assert!(before.corruptions > 0, "{name}");
        mend(&path, name, &data);
        // It points at itself, and at the L1 table.
        let header = block_on(Head::read(&*io(&path))).unwrap().header;
        patch(&path, header.reftable_offset, &header.reftable_offset.to_be_bytes());
        patch(&path, header.reftable_offset + 8, &header.l1_offset.to_be_bytes());
        mend(&path, name, &data);
    }
}

#[test]
fn flags_are_made_true() {
    let Some(dir) = bench() else { return };
    for (name, options) in KINDS {
        let path = make(dir.path(), name, options);
        let data = contents(&path);
        let header = block_on(Head::read(&*io(&path))).unwrap().header;
        let l2 = word(&path, header.l1_offset);
        patch(&path, header.l1_offset, &(l2 ^ 1 << 63).to_be_bytes());
        let first = l2 & entry::OFFSET_MASK;
        patch(&path, first, &(word(&path, first) ^ 1 << 63).to_be_bytes());
        assert_eq!(compare(&path, name).corruptions, 2, "{name}");
        mend(&path, name, &data);
    }
}

#[test]
fn a_dirty_image_is_repaired() {
    let Some(dir) = bench() else { return };
    let path = make(dir.path(), "dirty", "lazy_refcounts=on,cluster_size=4k");
    let status = std::process::Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -P 7 3M 256k", "-c", "flush", "-c", "abort"])
        .arg(&path)
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(!status.success());
    let before = compare(&path, "dirty");
    assert!(before.dirty && before.corruptions > 0);
    let data = contents(&path);
    let after = mend(&path, "dirty", &data);
    assert!(!after.dirty);
    assert_eq!(&data[3 << 20..(3 << 20) + 4], [7; 4]);
    let again = block_on(Head::read(&*io(&path))).unwrap();
    assert_eq!(again.header.incompatible & incompatible::DIRTY, 0);
}

/// One reserved bit makes a table unreadable: what it refers to is not given away by a repair, which raises what is too low.
#[test]
fn nothing_is_given_away_while_something_can_not_be_read() {
    let Some(dir) = bench() else { return };
    for (name, options) in KINDS {
        let path = make(dir.path(), name, options);
        let header = block_on(Head::read(&*io(&path))).unwrap().header;
        let layout = header.layout();
        let data = contents(&path);
        let l1 = word(&path, header.l1_offset);
        let block = word(&path, header.reftable_offset);
        let order = layout.refcount_order;
        let counts = |path: &Path| -> Vec<u64> {
            let block = bytes(path, block, layout.cluster_bytes() as usize);
            let entries = (layout.refblock_entries() as usize).min(1 << 16);
            (0..entries).map(|index| refcount::get(&block, order, index)).collect()
        };
        let sound = counts(&path);
        patch(&path, header.l1_offset, &(l1 | 1 << 60).to_be_bytes());
        // The header's own count is too low, too.
        let mut low = bytes(&path, block, layout.cluster_bytes() as usize);
        refcount::set(&mut low, order, 0, 0);
        patch(&path, block, &low);
        let report = block_on(repair(&*io(&path), Repair::All, Limits::default())).unwrap();
        assert!(report.corruptions > 0, "{name}: {report:#?}");
        assert_eq!(counts(&path), sound, "{name}: raised, and nothing lowered");
        // The one bit mended by hand, all is there again.
        patch(&path, header.l1_offset, &l1.to_be_bytes());
        support::assert_clean(&path, name);
        assert!(contents(&path) == data, "{name}");

        // A dirty image is repaired without being asked: that refuses, and changes nothing.
        if header.version >= 3 {
            patch(&path, header.l1_offset, &(l1 | 1 << 60).to_be_bytes());
            patch(&path, 72, &(header.incompatible | incompatible::DIRTY).to_be_bytes());
            let before = std::fs::read(&path).unwrap();
            let file = std::sync::Arc::new(support::FileDisk::open(&path));
            let opened = block_on(Qcow2Disk::open(file, Qcow2Options::named(*name)));
            let mut error: Option<&dyn std::error::Error> = opened.as_ref().err().map(|error| error as _);
            let mut told = String::new();
            while let Some(cause) = error {
                told = format!("{told}{cause}\n");
                error = cause.source();
            }
            assert!(told.contains("nothing was changed"), "{name}: {told}");
            assert!(std::fs::read(&path).unwrap() == before, "{name}: the file was changed");
        }
    }
}

#[test]
fn leaks_alone_are_given_back() {
    let Some(dir) = bench() else { return };
    let path = make(dir.path(), "leaky", "cluster_size=64k");
    let data = contents(&path);
    let header = block_on(Head::read(&*io(&path))).unwrap().header;
    let block = word(&path, header.reftable_offset);
    let end = compare(&path, "sound").image_end_offset >> 16;
    patch(&path, block + end * 2, &[0, 1, 0, 3]);
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len((end + 2) << 16)
        .unwrap();
    assert_eq!(compare(&path, "leaky").leaks, 2);
    let report = block_on(repair(&*io(&path), Repair::Leaks, Limits::default())).unwrap();
    assert_eq!((report.leaks, report.leaks_fixed), (0, 2));
    mend(&path, "leaky", &data);
}

/// An image whose tables lead to all of a file of 64 MiB in clusters of 512 bytes, holes between them.
fn tables_only(tables: Preallocation) -> Memory {
    let image = Memory::holding(&[], 1 << 40);
    let options = CreateOptions {
        cluster_bytes: 512,
        preallocation: tables,
        ..CreateOptions::of_size(64 << 20)
    };
    block_on(create(&*image.open_queue().unwrap(), None, &options)).unwrap();
    image
}

#[test]
fn a_large_image_may_take_more_memory_than_a_small_one() {
    let tight = Limits { memory_bytes: 64 << 10 };
    let image = tables_only(Preallocation::Metadata);
    let report = block_on(check(&*image.open_queue().unwrap(), tight)).unwrap();
    assert!(report.is_clean(), "{report:#?}");
    assert_eq!(report.allocated_clusters, 128 << 10);

    // A small file that is as long as a large one, and refers to every corner of it.
    let image = tables_only(Preallocation::Off);
    let io = image.open_queue().unwrap();
    image.stretch(1 << 40);
    block_on(async {
        let header = Head::read(&*io).await.unwrap().header;
        let table = 1 << 30;
        let entries: Vec<u8> = (0..64_u64)
            .flat_map(|index| ((table + 512 + (index << 32)) | entry::COPIED).to_be_bytes())
            .collect();
        let pointer = (table | entry::COPIED).to_be_bytes();
        let mut l1 = vec![0; 512];
        l1[..8].copy_from_slice(&pointer);
        for (at, bytes) in [(header.l1_offset, l1), (table, entries)] {
            io.write(at, vec![IoBuf::from_bytes(&bytes).unwrap()]).await.0.unwrap();
        }
        let refused = check(&*io, tight).await;
        assert!(
            matches!(refused, Err(CheckError::Walk(WalkError::Memory(TallyFull { limit_bytes })) ) if limit_bytes == tight.memory_bytes),
            "{refused:?}"
        );
        let report = check(&*io, Limits::default()).await.unwrap();
        assert!(report.corruptions >= 64, "{report:#?}");
    });
}

/// Four terabytes, every cluster of it mapped: 64 million clusters, of which the file holds only the tables.
#[test]
#[ignore = "two minutes in an unoptimised build; run with --ignored --nocapture for the figures"]
#[allow(clippy::print_stderr, reason = "figures")]
fn a_large_image_is_checked_in_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.qcow2");
    let options = CreateOptions {
        preallocation: Preallocation::Metadata,
        ..CreateOptions::of_size(4 << 40)
    };
    let start = std::time::Instant::now();
    block_on(create(&*io(&path), None, &options)).unwrap();
    let made = start.elapsed();
    let report = checked(&path);
    assert!(report.is_clean());
    assert_eq!(report.allocated_clusters, 1 << 26);
    eprintln!("created in {made:?}, checked in {:?}", start.elapsed() - made);
}
