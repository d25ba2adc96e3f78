//! Images that QEMU's tools made, read and written here; images written here, read by QEMU's tools.

use std::fs;
use std::sync::Arc;

use disk::conformance::pattern;
use disk::{Access, Disk, ExtentKind, InMemory, ZeroMode};

use crate::{Lab, block_on, open, read, read_all, write};

/// Reads an image whole, and compares with what QEMU reads.
fn reads_as_qemu(lab: &Lab, name: &str, backing: Option<Arc<dyn Disk>>) {
    lab.run(&format!("qemu-img convert -O raw {name} whole.raw"));
    let expected = fs::read(lab.path("whole.raw")).unwrap();
    let file = lab.load(name);
    let disk = open(&file, backing);
    block_on(async {
        let io = disk.open_queue().unwrap();
        assert!(read_all(&*io).await == expected, "{name} differs");
        let mut at = 0;
        while at < expected.len() as u64 {
            for extent in io.extents(at, expected.len() as u64 - at).await.unwrap() {
                let bytes = &expected[extent.offset as usize..extent.end() as usize];
                assert!(
                    extent.kind == ExtentKind::Data || bytes.iter().all(|&byte| byte == 0),
                    "{extent:?}"
                );
                assert_eq!(extent.offset, at);
                at = extent.end();
            }
        }
    });
    assert!(file.contents() == lab.load(name).contents(), "reading changes nothing");
}

const VARIANTS: [&str; 8] = [
    "cluster_size=512",
    "cluster_size=4k,compat=0.10",
    "cluster_size=64k",
    "cluster_size=2M",
    "cluster_size=64k,extended_l2=on",
    "cluster_size=16k,extended_l2=on,compression_type=zstd",
    "cluster_size=64k,compression_type=zstd",
    "cluster_size=1M,refcount_bits=1",
];

#[test]
fn what_qemu_wrote_is_read() {
    let Some(lab) = Lab::new() else { return };
    fs::write(lab.path("source.raw"), pattern(3 << 20, 5)).unwrap();
    for options in VARIANTS {
        lab.run(&format!("qemu-img create -f qcow2 -o {options} a.qcow2 5M"));
        lab.io(
            "a.qcow2",
            &[
                "write -P 1 3k 100k",
                "write -z 64k 64k",
                "write -P 2 3M 1M",
                "discard 1M 64k",
                "write -P 9 5119k 1k",
            ],
        );
        reads_as_qemu(&lab, "a.qcow2", None);
        lab.run(&format!(
            "qemu-img convert -c -f raw -O qcow2 -o {options} source.raw c.qcow2"
        ));
        reads_as_qemu(&lab, "c.qcow2", None);
    }
}

#[test]
fn chains_are_read_through() {
    let Some(lab) = Lab::new() else { return };
    for options in VARIANTS {
        // A backing that is shorter, then one that is longer, than what lies over it.
        lab.run(&format!("qemu-img create -f qcow2 -o {options} base.qcow2 2M"));
        lab.io("base.qcow2", &["write -P 5 0 2M"]);
        lab.run(&format!(
            "qemu-img create -f qcow2 -o {options} -b base.qcow2 -F qcow2 mid.qcow2 3M"
        ));
        lab.io("mid.qcow2", &["write -P 6 1000k 1500k", "write -z 256k 128k"]);
        lab.run(&format!(
            "qemu-img create -f qcow2 -o {options} -b mid.qcow2 -F qcow2 top.qcow2 2500k"
        ));
        lab.io("top.qcow2", &["write -P 7 1M 4k", "write -P 7 2000k 1k"]);
        let base: Arc<dyn Disk> = open(&lab.load("base.qcow2"), None);
        let mid: Arc<dyn Disk> = open(&lab.load("mid.qcow2"), Some(base));
        reads_as_qemu(&lab, "top.qcow2", Some(mid));
    }
}

/// Random operations on images that already have something in each of their clusters, against a plain vector; then QEMU's
/// opinion of what was left.
fn follows_the_model(lab: &Lab, file: &InMemory, backing: Option<Arc<dyn Disk>>, seed: u64) {
    let disk = open(file, backing);
    block_on(async {
        let io = disk.open_queue().unwrap();
        let mut model = read_all(&*io).await;
        let sectors = model.len() as u64 / 512;
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for step in 0..250 {
            let first = next() % sectors;
            let most = if next() % 3 == 0 { 1000 } else { 20 };
            let count = (next() % most).min(sectors - first);
            let (at, len) = (first * 512, (count * 512) as usize);
            let range = at as usize..at as usize + len;
            let zero_mode = if next() % 2 == 0 {
                ZeroMode::MayUnmap
            } else {
                ZeroMode::KeepAllocated
            };
            match next() % 8 {
                0..=3 => {
                    let bytes = pattern(len, next());
                    write(&*io, at, &bytes).await;
                    model[range].copy_from_slice(&bytes);
                }
                4 => {
                    io.write_zeroes(at, len as u64, zero_mode).await.unwrap();
                    model[range].fill(0);
                }
                5 => {
                    io.discard(at, len as u64).await.unwrap();
                    let now = read(&*io, at, len).await;
                    for (new, old) in now.chunks(512).zip(model[range.clone()].chunks(512)) {
                        assert!(
                            new == old || new.iter().all(|&byte| byte == 0),
                            "discard shows what was not there"
                        );
                    }
                    model[range].copy_from_slice(&now);
                }
                6 => assert!(
                    read(&*io, at, len).await == model[range],
                    "seed {seed}, step {step}: {len} at {at}"
                ),
                _ => io.flush().await.unwrap(),
            }
        }
        assert!(read_all(&*io).await == model, "seed {seed}");
        disk.close().await.unwrap();
        model
    });
    lab.check(file, false);
}

#[test]
fn images_with_contents_follow_the_model() {
    let Some(lab) = Lab::new() else { return };
    fs::write(lab.path("source.raw"), pattern(3 << 20, 5)).unwrap();
    for (seed, options) in VARIANTS.into_iter().enumerate() {
        lab.run(&format!(
            "qemu-img convert -c -f raw -O qcow2 -o {options} source.raw compressed.qcow2"
        ));
        follows_the_model(&lab, &lab.load("compressed.qcow2"), None, seed as u64 + 1);
        lab.run(&format!("qemu-img create -f qcow2 -o {options} a.qcow2 5M"));
        lab.io(
            "a.qcow2",
            &[
                "write -P 1 3k 100k",
                "write -z 64k 64k",
                "write -P 2 3M 1M",
                "write -z -u 3M 100k",
            ],
        );
        if !options.contains("refcount_bits=1") {
            lab.run("qemu-img snapshot -c one a.qcow2");
            lab.io("a.qcow2", &["write -P 3 50k 100k", "write -P 4 3500k 4k"]);
        }
        let file = lab.load("a.qcow2");
        follows_the_model(&lab, &file, None, seed as u64 + 100);
        if !options.contains("refcount_bits=1") {
            fs::write(lab.path("snap.qcow2"), file.contents()).unwrap();
            lab.run("qemu-img snapshot -a one a.qcow2");
            lab.run("qemu-img snapshot -a one snap.qcow2");
            lab.run("qemu-img compare a.qcow2 snap.qcow2");
        }
    }
}

#[test]
fn overlays_follow_the_model() {
    let Some(lab) = Lab::new() else { return };
    for (seed, options) in VARIANTS.into_iter().enumerate() {
        for (size, base_size) in [("3M", 2 << 20), ("2000k", 3 << 20), ("2500k", 1537 << 10)] {
            let base = InMemory::holding(pattern(base_size, 8), Access::ReadOnly);
            fs::write(lab.path("base.raw"), base.contents()).unwrap();
            lab.run(&format!(
                "qemu-img create -f qcow2 -o {options} -b base.raw -F raw top.qcow2 {size}"
            ));
            let file = lab.load("top.qcow2");
            follows_the_model(&lab, &file, Some(Arc::new(base)), seed as u64 + 1);
            let disk = open(&file, Some(Arc::new(lab.load("base.raw"))));
            let here = block_on(async { read_all(&*disk.open_queue().unwrap()).await });
            assert!(lab.read_by_qemu(&file) == here, "QEMU reads something else");
        }
    }
}
