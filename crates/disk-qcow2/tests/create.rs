//! Images that this crate creates are what was asked for, in QEMU's eyes too.
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
use std::sync::Arc;

use disk::Disk;
use disk_qcow2::ops::{
    BackingName, Compat, CompressionKind, CreateError, CreateOptions, DataFileName, Preallocation, create,
};
use disk_qcow2::{Qcow2Disk, Qcow2Options};
use guestmem::IoBuf;
use support::memory::Memory;
use support::{assert_clean, bench, block_on, checked, io, qemu_img, qemu_io};

fn info(path: &Path) -> serde_json::Value {
    serde_json::from_str(&qemu_img(&["info", "--output=json", path.to_str().unwrap()])).unwrap()
}

fn make(path: &Path, options: &CreateOptions) {
    let data_path = options.data_file.as_ref().map(|data| path.with_file_name(&data.name));
    let data = data_path.as_ref().map(|path| io(path));
    block_on(create(&*io(path), data.as_deref(), options)).unwrap();
    let report = checked(path);
    assert!(report.is_clean(), "{options:?}: {report:#?}");
    assert_clean(path, &format!("{options:?}"));
    let info = info(path);
    let specific = &info["format-specific"]["data"];
    let compat = match options.compat {
        Compat::V2 => "0.10",
        Compat::V3 => "1.1",
    };
    assert_eq!(
        info["virtual-size"],
        options.size_bytes.next_multiple_of(512),
        "{options:?}"
    );
    assert_eq!(info["cluster-size"], options.cluster_bytes);
    assert_eq!(specific["compat"], compat);
    if options.compat == Compat::V3 {
        assert_eq!(specific["refcount-bits"], options.refcount_bits);
        assert_eq!(specific["lazy-refcounts"], options.lazy_refcounts);
        assert_eq!(specific["extended-l2"], options.extended_l2);
        assert_eq!(specific["corrupt"], false);
    }
    let kind = match options.compression {
        CompressionKind::Zlib => "zlib",
        CompressionKind::Zstd => "zstd",
    };
    assert_eq!(specific["compression-type"], kind);
    let text = |value: Option<&str>| value.map_or(serde_json::Value::Null, Into::into);
    let backing = options.backing.as_ref();
    assert_eq!(info["backing-filename"], text(backing.map(|b| b.name.as_str())));
    assert_eq!(
        info["backing-filename-format"],
        text(backing.map(|b| b.format.as_str()))
    );
    let data_file = options.data_file.as_ref();
    assert_eq!(specific["data-file"], text(data_file.map(|d| d.name.as_str())));
}

/// QEMU works with the image, and leaves it sound.
fn use_it(path: &Path, size: u64) {
    if size >= 8 << 20 {
        qemu_io(
            path,
            &[
                "write -P 1 0 100k",
                "write -P 2 5M 1M",
                "write -z 1M 200k",
                "discard 5M 64k",
            ],
        );
        qemu_io(path, &["read -P 1 0 100k", "read -P 0 2M 1M", "read -P 2 5248k 700k"]);
        assert_clean(path, "after use");
    }
}

#[test]
fn every_width_and_size() {
    let Some(dir) = bench() else { return };
    let path = dir.path().join("image.qcow2");
    for cluster_bits in 9..=21 {
        for (index, refcount_bits) in [1, 2, 4, 8, 16, 32, 64].into_iter().enumerate() {
            // All sizes of clusters with one width, all widths with some sizes.
            if refcount_bits != 16 && (cluster_bits + index) % 4 != 0 {
                continue;
            }
            let options = CreateOptions {
                cluster_bytes: 1 << cluster_bits,
                refcount_bits,
                ..CreateOptions::of_size(8 << 20)
            };
            make(&path, &options);
            use_it(&path, options.size_bytes);
        }
    }
    for size in [0, 1, 512, 513, 1 << 30, 1 << 40] {
        make(&path, &CreateOptions::of_size(size));
    }
}

#[test]
fn every_feature() {
    let Some(dir) = bench() else { return };
    let base = CreateOptions::of_size(8 << 20);
    let small = CreateOptions {
        cluster_bytes: 16 << 10,
        extended_l2: true,
        ..base.clone()
    };
    let lazy = CreateOptions {
        lazy_refcounts: true,
        compression: CompressionKind::Zstd,
        ..base.clone()
    };
    let old = CreateOptions {
        compat: Compat::V2,
        ..base.clone()
    };
    for (index, options) in [base, small, lazy, old].into_iter().enumerate() {
        for preallocation in [
            Preallocation::Off,
            Preallocation::Metadata,
            Preallocation::Falloc,
            Preallocation::Full,
        ] {
            let path = dir.path().join(format!("{index}.qcow2"));
            let options = CreateOptions {
                preallocation,
                ..options.clone()
            };
            make(&path, &options);
            let allocated = checked(&path).allocated_clusters;
            let all = options.size_bytes / options.cluster_bytes;
            assert_eq!(allocated, if preallocation == Preallocation::Off { 0 } else { all });
            use_it(&path, options.size_bytes);
        }
    }
}

/// As on a block device, which keeps what it had: nothing of it shows.
#[test]
fn what_was_there_does_not_show() {
    let preallocations = [
        Preallocation::Off,
        Preallocation::Metadata,
        Preallocation::Falloc,
        Preallocation::Full,
    ];
    for preallocation in preallocations {
        for (external, stale) in [(false, 3 << 20), (false, 700 << 10), (true, 3 << 20)] {
            let full = || Arc::new(Memory::holding(&vec![0xee; stale], 4 << 20));
            let (file, data) = (full(), external.then(full));
            let data_file = external.then(|| DataFileName {
                name: "data".to_owned(),
                raw: false,
            });
            let options = CreateOptions {
                preallocation,
                data_file,
                ..CreateOptions::of_size(2 << 20)
            };
            let bytes = block_on(async {
                let data_io = data.as_ref().map(|data| data.open_queue().unwrap());
                let io = file.open_queue().unwrap();
                create(&*io, data_io.as_deref(), &options).await.unwrap();
                let options = Qcow2Options {
                    data_file: data.map(|data| data as Arc<dyn Disk>),
                    ..Qcow2Options::named("new")
                };
                let disk = Qcow2Disk::open(file, options).await.unwrap();
                let buf = IoBuf::heap(2 << 20, 4096).unwrap();
                let (read, bufs) = disk.open_queue().unwrap().read(0, vec![buf]).await;
                read.unwrap();
                bufs[0].to_vec()
            });
            let shown = bytes.iter().filter(|&&byte| byte != 0).count();
            assert_eq!(shown, 0, "{preallocation:?}, external {external}, {stale} bytes before");
        }
    }
}

#[test]
fn backing_and_data_files() {
    let Some(dir) = bench() else { return };
    let base = dir.path().join("base.qcow2");
    make(&base, &CreateOptions::of_size(8 << 20));
    qemu_io(&base, &["write -P 7 0 8M"]);
    for (extended_l2, preallocation) in [(false, Preallocation::Off), (true, Preallocation::Metadata)] {
        let path = dir.path().join("top.qcow2");
        let options = CreateOptions {
            backing: Some(BackingName {
                name: "base.qcow2".to_owned(),
                format: "qcow2".to_owned(),
            }),
            extended_l2,
            preallocation,
            ..CreateOptions::of_size(8 << 20)
        };
        make(&path, &options);
        qemu_io(&path, &["read -P 7 0 8M", "write -P 1 100k 3k", "read -P 7 0 100k"]);
        assert_clean(&path, "overlay");
    }
    for raw in [false, true] {
        let path = dir.path().join("external.qcow2");
        let options = CreateOptions {
            data_file: Some(DataFileName {
                name: dir.path().join(format!("data-{raw}")).to_str().unwrap().to_owned(),
                raw,
            }),
            ..CreateOptions::of_size(8 << 20)
        };
        make(&path, &options);
        assert_eq!(info(&path)["format-specific"]["data"]["data-file-raw"], raw);
        qemu_io(&path, &["write -P 1 3M 1M", "read -P 0 4M 4M"]);
        assert_clean(&path, "external data");
        if raw {
            let data = std::fs::read(dir.path().join("data-true")).unwrap();
            assert_eq!((data.len(), data[3 << 20], data[4 << 20]), (8 << 20, 1, 0));
        }
    }
    let small = CreateOptions {
        cluster_bytes: 512,
        backing: Some(BackingName {
            name: "base.qcow2".to_owned(),
            format: "qcow2".to_owned(),
        }),
        ..CreateOptions::of_size(1 << 20)
    };
    make(&dir.path().join("small.qcow2"), &small);
}

#[test]
fn what_can_not_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none.qcow2");
    let base = CreateOptions::of_size(1 << 20);
    let refuse = |options: CreateOptions| block_on(create(&*io(&path), None, &options)).unwrap_err();
    let backing = Some(BackingName {
        name: "b".to_owned(),
        format: "raw".to_owned(),
    });
    assert!(matches!(
        refuse(CreateOptions {
            cluster_bytes: 3000,
            ..base.clone()
        }),
        CreateError::ClusterSize(3000)
    ));
    assert!(matches!(
        refuse(CreateOptions {
            refcount_bits: 3,
            ..base.clone()
        }),
        CreateError::RefcountBits(3)
    ));
    assert!(matches!(
        refuse(CreateOptions {
            compat: Compat::V2,
            lazy_refcounts: true,
            ..base.clone()
        }),
        CreateError::NeedsV3("lazy refcounts")
    ));
    assert!(matches!(
        refuse(CreateOptions {
            extended_l2: true,
            cluster_bytes: 8192,
            ..base.clone()
        }),
        CreateError::ExtendedCluster(8192)
    ));
    assert!(matches!(
        refuse(CreateOptions {
            backing,
            preallocation: Preallocation::Full,
            ..base.clone()
        }),
        CreateError::PreallocatedOverlay
    ));
    assert!(matches!(
        refuse(CreateOptions {
            size_bytes: 1 << 40,
            cluster_bytes: 512,
            ..base.clone()
        }),
        CreateError::TooLarge { .. }
    ));
    let long = Some(BackingName {
        name: "x".repeat(1000),
        format: "raw".to_owned(),
    });
    assert!(matches!(
        refuse(CreateOptions {
            backing: long,
            cluster_bytes: 512,
            ..base
        }),
        CreateError::TooLong(_)
    ));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 0, "nothing was written");
}
