//! Compressed clusters written here, read by QEMU, and written over.

use std::rc::Rc;

use disk::conformance::pattern;
use disk::{Disk, DiskErrorKind, DiskIo, ZeroMode};
use uring::{Executor, Ring};

use crate::{Lab, block_on, open, read_all, write};

/// What compresses well, hardly, and not at all, in turns.
fn source(len: usize) -> Vec<u8> {
    let mut bytes = pattern(len, 3);
    for (index, piece) in bytes.chunks_mut(3000).enumerate() {
        match index % 4 {
            0 => {}
            1 => piece.fill(index as u8),
            _ => piece
                .iter_mut()
                .enumerate()
                .for_each(|(i, byte)| *byte = (i / 5) as u8 & *byte & 7),
        }
    }
    bytes
}

/// Writes and zeroes of all sizes, and flushes in between.
async fn write_over(io: &dyn DiskIo, model: &mut [u8]) {
    for index in 0..30usize {
        let at = index * 163_840 % (model.len() - 70_000) / 512 * 512;
        let len = 512 * (1 + index * 7 % 130);
        let bytes = pattern(len, index as u64);
        if index % 3 == 2 {
            io.write_zeroes(at as u64, len as u64, ZeroMode::MayUnmap)
                .await
                .unwrap();
            model[at..at + len].fill(0);
        } else {
            write(io, at as u64, &bytes).await;
            model[at..at + len].copy_from_slice(&bytes);
        }
        if index % 5 == 0 {
            io.flush().await.unwrap();
        }
    }
}

#[test]
fn only_whole_clusters_are_compressed() {
    let Some(lab) = Lab::new() else { return };
    lab.run("qemu-img create -f qcow2 a.qcow2 100k");
    let disk = open(&lab.load("a.qcow2"), None);
    block_on(async {
        let compressor = disk.compressor().unwrap();
        compressor.write(65536, &[1; 36 << 10]).await.unwrap();
        for (at, len) in [(512, 65536), (0, 512), (65536, 65536), (131_072, 0)] {
            let refused = compressor.write(at, &vec![1; len]).await.unwrap_err().kind();
            assert!(matches!(refused, DiskErrorKind::Misaligned | DiskErrorKind::OutOfRange));
        }
    });
}

#[test]
fn qemu_reads_what_is_compressed_here() {
    let Some(lab) = Lab::new() else { return };
    for options in [
        "cluster_size=64k",
        "cluster_size=64k,compression_type=zstd",
        "cluster_size=4k",
        "cluster_size=2M",
        "cluster_size=512",
        "cluster_size=16k,refcount_bits=1",
        "cluster_size=8k,refcount_bits=2,compression_type=zstd",
        "extended_l2=on,cluster_size=32k",
        "compat=0.10",
    ] {
        let size = 5000 << 10;
        lab.run(&format!("qemu-img create -f qcow2 -o {options} a.qcow2 {size}"));
        let file = lab.load("a.qcow2");
        let disk = open(&file, None);
        let mut model = source(size);
        let mut executor = Executor::new(32).unwrap();
        let ended = executor.block_on(async {
            let ring = Ring::current().unwrap();
            let compressor = Rc::new(disk.compressor().unwrap());
            let cluster = compressor.cluster_bytes() as usize;
            for round in 0..2 {
                // Once all, then every third again, over what is compressed.
                let step = 1 + 2 * round;
                let tasks: Vec<_> = (0..size)
                    .step_by(cluster * step)
                    .map(|at| {
                        let bytes = model[at..(at + cluster).min(size)].to_vec();
                        let compressor = Rc::clone(&compressor);
                        ring.spawn(async move { compressor.write(at as u64, &bytes).await })
                    })
                    .collect();
                for task in tasks {
                    task.await.unwrap();
                }
                let io = disk.open_queue().unwrap();
                io.flush().await.unwrap();
                assert!(read_all(&*io).await == model, "{options}");
            }
            let io = disk.open_queue().unwrap();
            write_over(&*io, &mut model).await;
            assert!(read_all(&*io).await == model, "{options}");
            disk.close().await.unwrap();
        });
        ended.unwrap();
        drop(executor);
        lab.check(&file, false);
        assert!(lab.read_by_qemu(&file) == model, "{options}");
        let again = open(&file, None);
        assert!(block_on(async { read_all(&*again.open_queue().unwrap()).await }) == model);
    }
}
