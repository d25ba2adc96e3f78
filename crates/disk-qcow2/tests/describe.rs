//! What is told about images, measured and changed in their headers, against `qemu-img`.
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

use disk_qcow2::ops::{
    BackingName, CheckError, CompressionKind, CreateOptions, Limits, check, create, info, list_bitmaps, measure,
    set_backing, set_lazy_refcounts,
};
use serde_json::Value;
use support::{KINDS, assert_clean, bench, block_on, have_qemu, io, make, qemu_img, qemu_io};

fn theirs(path: &Path) -> Value {
    serde_json::from_str(&qemu_img(&["info", "-U", "--output=json", path.to_str().unwrap()])).unwrap()
}

fn ours(path: &Path) -> Value {
    serde_json::to_value(block_on(info(&*io(path))).unwrap()).unwrap()
}

/// Compares all that both tell.
fn compare(path: &Path, what: &str) {
    let (ours, theirs) = (ours(path), theirs(path));
    for name in [
        "virtual-size",
        "cluster-size",
        "format",
        "dirty-flag",
        "backing-filename",
        "backing-filename-format",
    ] {
        assert_eq!(ours.get(name), theirs.get(name), "{what}: {name}");
    }
    assert_eq!(ours["format-specific"], theirs["format-specific"]["data"], "{what}");
}

#[test]
fn all_that_qemu_img_info_tells() {
    let Some(dir) = bench() else { return };
    for (name, options) in KINDS {
        let path = make(dir.path(), name, options);
        if !options.contains("0.10") {
            let text = path.to_str().unwrap();
            qemu_img(&["bitmap", "--add", text, "one"]);
            qemu_img(&["bitmap", "--add", "--disable", "-g", "128k", text, "two"]);
        }
        compare(&path, name);
        let listed = block_on(list_bitmaps(&*io(&path))).unwrap();
        assert_eq!(listed.len(), if options.contains("0.10") { 0 } else { 2 });
    }
    let base = make(dir.path(), "base", "cluster_size=64k");
    let top = dir.path().join("top.qcow2");
    let (base, text) = (base.to_str().unwrap(), top.to_str().unwrap());
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", text]);
    compare(&top, "overlay");
    let data = dir.path().join("data.raw");
    let options = format!("data_file={},data_file_raw=on", data.to_str().unwrap());
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &options, text, "8M"]);
    compare(&top, "external data");
}

#[test]
fn measures_agree() {
    if !have_qemu() {
        return;
    }
    let base = CreateOptions::of_size(0);
    for size in [1 << 20, 1 << 30, 10 << 30, 1 << 40, (1 << 40) + 512] {
        for cluster_bits in [12, 16, 21] {
            for refcount_bits in [1, 16, 64] {
                for extended_l2 in [false, true] {
                    let options = CreateOptions {
                        size_bytes: size,
                        cluster_bytes: 1 << cluster_bits,
                        refcount_bits,
                        extended_l2: extended_l2 && cluster_bits >= 16,
                        ..base.clone()
                    };
                    let settings = format!(
                        "cluster_size={},refcount_bits={refcount_bits},extended_l2={}",
                        options.cluster_bytes,
                        if options.extended_l2 { "on" } else { "off" }
                    );
                    let size = size.to_string();
                    let theirs = qemu_img(&[
                        "measure",
                        "-O",
                        "qcow2",
                        "-o",
                        &settings,
                        "--size",
                        &size,
                        "--output=json",
                    ]);
                    let theirs: Value = serde_json::from_str(&theirs).unwrap();
                    let ours = measure(&options, 0).unwrap();
                    let near = |ours: u64, theirs: &Value| {
                        let theirs = theirs.as_u64().unwrap();
                        // QEMU leaves out what the last cluster of each table is short of, or counts it twice.
                        let slack = 4 * options.cluster_bytes + theirs / 1000;
                        assert!(ours.abs_diff(theirs) <= slack, "{settings} {size}: {ours} and {theirs}");
                    };
                    near(ours.required, &theirs["required"]);
                    near(ours.fully_allocated, &theirs["fully-allocated"]);
                }
            }
        }
    }
    let small = CreateOptions::of_size(1 << 30);
    let (none, some) = (measure(&small, 0).unwrap(), measure(&small, 100).unwrap());
    assert_eq!(some.required - none.required, 100 * 65536);
}

fn backing(name: &str, format: &str) -> BackingName {
    BackingName {
        name: name.to_owned(),
        format: format.to_owned(),
    }
}

#[test]
fn backing_files_change_and_all_else_stays() {
    let Some(dir) = bench() else { return };
    for (name, fill) in [("a.qcow2", 1), ("another-base-with-a-longer-name.qcow2", 2)] {
        let path = dir.path().join(name);
        block_on(create(&*io(&path), None, &CreateOptions::of_size(4 << 20))).unwrap();
        qemu_io(&path, &[&format!("write -P {fill} 0 4M")]);
    }
    let raw = dir.path().join("flat");
    std::fs::write(&raw, vec![3; 4 << 20]).unwrap();
    for cluster_bytes in [512, 4096, 65536] {
        let path = dir.path().join("top.qcow2");
        let options = CreateOptions {
            cluster_bytes,
            compression: CompressionKind::Zstd,
            ..CreateOptions::of_size(4 << 20)
        };
        block_on(create(&*io(&path), None, &options)).unwrap();
        let steps = [
            (Some(backing("a.qcow2", "qcow2")), "read -P 1 0 4M"),
            (
                Some(backing("another-base-with-a-longer-name.qcow2", "qcow2")),
                "read -P 2 0 4M",
            ),
            (Some(backing("flat", "raw")), "read -P 3 0 4M"),
            (None, "read -P 0 0 4M"),
            (Some(backing("a.qcow2", "qcow2")), "read -P 1 0 4M"),
        ];
        for (backing, read) in steps {
            block_on(set_backing(&*io(&path), backing.as_ref())).unwrap();
            compare(&path, read);
            qemu_io(&path, &[read]);
            assert_clean(&path, read);
        }
        block_on(set_lazy_refcounts(&*io(&path), true)).unwrap();
        assert_eq!(theirs(&path)["format-specific"]["data"]["lazy-refcounts"], true);
        compare(&path, "lazy");
        block_on(set_lazy_refcounts(&*io(&path), false)).unwrap();
        compare(&path, "not lazy");
        let long = backing(&"x".repeat(600), "raw");
        assert_eq!(
            block_on(set_backing(&*io(&path), Some(&long))).is_err(),
            cluster_bytes == 512
        );
        let longer = backing(&"x".repeat(1024), "raw");
        assert!(block_on(set_backing(&*io(&path), Some(&longer))).is_err());
    }
}

/// An error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let Some(dir) = bench() else { return };
    for (format, name) in [("luks", "LUKS"), ("aes", "AES")] {
        let path = dir.path().join(format);
        let quick = if format == "luks" { ",encrypt.iter-time=10" } else { "" };
        let options = format!("encrypt.format={format},encrypt.key-secret=s{quick}");
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "--object",
            "secret,id=s,data=12345678",
            "-o",
            &options,
            path.to_str().unwrap(),
            "1M",
        ]);
        let error = chain(&block_on(info(&*io(&path))).unwrap_err());
        assert!(error.contains(name), "{error}");
        let refused = block_on(check(&*io(&path), Limits::default()));
        assert!(matches!(refused, Err(CheckError::Head(_))));
    }
    let path = dir.path().join("future.qcow2");
    block_on(create(&*io(&path), None, &CreateOptions::of_size(1 << 20))).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    // Bit 7, which the image's own table calls by a name.
    bytes[79] |= 1 << 7;
    let row = bytes
        .windows(19)
        .position(|w| w == *b"\0\x04extended L2 entri")
        .unwrap();
    bytes[row + 1] = 7;
    bytes[row + 2..row + 48].fill(0);
    bytes[row + 2..row + 17].copy_from_slice(b"warp compressor");
    std::fs::write(&path, bytes).unwrap();
    let error = chain(&block_on(info(&*io(&path))).unwrap_err());
    assert!(error.contains("warp compressor"), "{error}");
}
