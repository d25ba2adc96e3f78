//! Growing disks, and the tables that move for it.

use std::fs;
use std::sync::Arc;

use disk::conformance::pattern;
use disk::{Access, Disk, DiskErrorKind, InMemory};

use crate::{Lab, block_on, open, read, read_all, write};

/// Writes a pattern to every second stretch of `len` bytes.
async fn fill(disk: &dyn Disk, len: usize) {
    let io = disk.open_queue().unwrap();
    let size = io.geometry().size_bytes;
    for (index, at) in (0..size).step_by(2 * len).enumerate() {
        write(&*io, at, &pattern(len, index as u64)).await;
    }
}

async fn is_filled(disk: &dyn Disk, len: usize, until: u64) {
    let io = disk.open_queue().unwrap();
    for (index, at) in (0..until).step_by(2 * len).enumerate() {
        assert!(read(&*io, at, len).await == pattern(len, index as u64), "{at}");
        assert!(
            read(&*io, at + len as u64, len).await.iter().all(|&byte| byte == 0),
            "behind {at}"
        );
    }
}

#[test]
fn tables_move_when_they_have_to() {
    let Some(lab) = Lab::new() else { return };
    for options in [
        "cluster_size=512",
        "cluster_size=512,refcount_bits=64",
        "cluster_size=512,refcount_bits=1",
        "cluster_size=4k",
        "cluster_size=512,compat=0.10",
        "cluster_size=16k,extended_l2=on",
    ] {
        lab.run(&format!("qemu-img create -f qcow2 -o {options} a.qcow2 1M"));
        let file = lab.load("a.qcow2");
        let disk = open(&file, None);
        block_on(async {
            fill(&*disk, 1024).await;
            let io = disk.open_queue().unwrap();
            io.grow(3 << 20).await.unwrap();
            io.grow(3 << 20).await.unwrap();
            assert_eq!(io.grow(2 << 20).await.unwrap_err().kind(), DiskErrorKind::OutOfRange);
            is_filled(&*disk, 1024, 1 << 20).await;
            io.grow(40 << 20).await.unwrap();
            assert_eq!(disk.geometry().size_bytes, 40 << 20);
            is_filled(&*disk, 1024, 1 << 20).await;
            io.write_zeroes(0, 1 << 20, disk::ZeroMode::MayUnmap).await.unwrap();
            fill(&*disk, 64 << 10).await;
            disk.close().await.unwrap();
            is_filled(&*disk, 64 << 10, 40 << 20).await;
        });
        lab.check(&file, false);
        let again = open(&file, None);
        assert_eq!(again.geometry().size_bytes, 40 << 20);
        block_on(is_filled(&*again, 64 << 10, 40 << 20));
        let here = block_on(async { read_all(&*again.open_queue().unwrap()).await });
        assert!(lab.read_by_qemu(&file) == here);
    }
}

/// What the backing has behind the old end stays hidden.
#[test]
fn new_space_reads_as_zeroes_over_a_longer_backing() {
    let Some(lab) = Lab::new() else { return };
    let base = InMemory::holding(pattern(3 << 20, 3), Access::ReadOnly);
    fs::write(lab.path("base.raw"), base.contents()).unwrap();
    for options in ["cluster_size=64k", "compat=0.10", "extended_l2=on", "cluster_size=1k"] {
        lab.run(&format!(
            "qemu-img create -f qcow2 -o {options} -b base.raw -F raw a.qcow2 1049088"
        ));
        let file = lab.load("a.qcow2");
        let disk = open(&file, Some(Arc::new(base.clone())));
        block_on(async {
            let io = disk.open_queue().unwrap();
            io.grow(5 << 20).await.unwrap();
            let mut expected = base.contents()[..1_049_088].to_vec();
            expected.resize(5 << 20, 0);
            assert!(read_all(&*io).await == expected, "{options}");
            disk.close().await.unwrap();
            assert!(lab.read_by_qemu(&file) == expected, "{options}");
        });
        lab.check(&file, false);
    }
}

/// Steps shorter than what one entry speaks for change nothing in front of the old end, be it the backing's or written before.
#[test]
fn growth_within_the_last_cluster_keeps_what_is_there() {
    let Some(lab) = Lab::new() else { return };
    let base = InMemory::holding(pattern(3 << 20, 3), Access::ReadOnly);
    fs::write(lab.path("base.raw"), base.contents()).unwrap();
    for options in ["cluster_size=64k", "compat=0.10", "extended_l2=on", "cluster_size=1k"] {
        for written in [false, true] {
            lab.run(&format!(
                "qemu-img create -f qcow2 -o {options} -b base.raw -F raw a.qcow2 1049088"
            ));
            let file = lab.load("a.qcow2");
            let disk = open(&file, Some(Arc::new(base.clone())));
            block_on(async {
                let io = disk.open_queue().unwrap();
                let mut expected = base.contents()[..1_049_088].to_vec();
                if written {
                    expected[1_048_576..].copy_from_slice(&pattern(512, 9));
                    write(&*io, 1_048_576, &pattern(512, 9)).await;
                }
                for step in [512, 1024, 512, 3072, 61_440, 512, 131_072] {
                    let size = expected.len() + step;
                    io.grow(size as u64).await.unwrap();
                    expected.resize(size, 0);
                    assert!(
                        read_all(&*io).await == expected,
                        "{options}, {written}, grown to {size}"
                    );
                }
                disk.close().await.unwrap();
                assert!(lab.read_by_qemu(&file) == expected, "{options}");
            });
            lab.check(&file, false);
        }
    }
}

/// A disk that was made smaller keeps bytes behind its end; they do not show when it grows again.
#[test]
fn what_was_behind_the_end_does_not_show() {
    let Some(lab) = Lab::new() else { return };
    lab.run("qemu-img create -f qcow2 a.qcow2 1M");
    let whole = lab.load("a.qcow2");
    let disk = open(&whole, None);
    block_on(async {
        write(&*disk.open_queue().unwrap(), 0, &[0x5a; 1 << 20]).await;
        disk.close().await.unwrap();
    });
    fs::write(lab.path("a.qcow2"), whole.contents()).unwrap();
    lab.run("qemu-img resize -f qcow2 --shrink a.qcow2 1000448");
    let file = lab.load("a.qcow2");
    let disk = open(&file, None);
    block_on(async {
        let io = disk.open_queue().unwrap();
        io.grow(2 << 20).await.unwrap();
        let mut expected = vec![0x5a; 1_000_448];
        expected.resize(2 << 20, 0);
        assert!(read_all(&*io).await == expected);
        disk.close().await.unwrap();
    });
    lab.check(&file, false);
}

/// A tebibyte costs no more to open than a mebibyte, and grows at once.
#[test]
fn large_disks_open_at_once() {
    let Some(lab) = Lab::new() else { return };
    lab.run("qemu-img create -f qcow2 a.qcow2 1T");
    let file = lab.load("a.qcow2");
    let disk = open(&file, None);
    block_on(async {
        let io = disk.open_queue().unwrap();
        let end = (1u64 << 40) - 512;
        write(&*io, end, &[7; 512]).await;
        io.grow(16 << 40).await.unwrap();
        write(&*io, (16 << 40) - 4096, &[8; 4096]).await;
        assert_eq!(read(&*io, end, 512).await, [7; 512]);
        io.write_zeroes(0, 1 << 40, disk::ZeroMode::MayUnmap).await.unwrap();
        assert_eq!(read(&*io, end, 512).await, [0; 512]);
        assert_eq!(
            io.grow(1 << 62).await.unwrap_err().kind(),
            DiskErrorKind::Unsupported,
            "larger than an L1 table may be"
        );
        disk.close().await.unwrap();
    });
    lab.check(&file, false);
    assert!(file.contents().len() < 8 << 20);
}
