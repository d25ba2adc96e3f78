//! What happens per exit and per disk request: finding a handler, moving 4 KiB between a file and memory.
//!
//! The peer of the disk is a plain `pread` of the same blocks of the same cached file in the same run: what is above it is the price
//! of the ring and of owned buffers at depth 1, and what is below it at depth 32 is what batching buys.

#![expect(clippy::expect_used, reason = "a bench that can not be set up must stop loudly")]

use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use device::{Bus, BusHandler};
use disk::Disk;
use disk_raw::{RawDisk, RawOptions};
use guestmem::IoBuf;
use uring::{Executor, Ring};

/// Size of a request, bytes: the page the guest's file systems read by.
const BLOCK: usize = 4096;
/// Blocks in the file: 64 MiB, which stays in the page cache.
const BLOCKS: u64 = 16384;
/// Requests in flight in the deep case.
const DEPTH: usize = 32;

struct Silent;

impl BusHandler for Silent {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn write(&self, _offset: u64, _data: &[u8]) {}
}

fn find_a_handler(criterion: &mut Criterion) {
    let bus = Bus::new();
    for slot in 0..32 {
        bus.map(0xc000_0000 + slot * 0x8_0000, 0x8_0000, Arc::new(Silent))
            .expect("ranges do not overlap");
    }
    criterion.bench_function("bus: write to one of 32 devices", |bencher| {
        bencher.iter(|| bus.write(black_box(0xc088_0010), &[1, 0, 0, 0]));
    });
}

/// Blocks in an order that is not sequential and visits all of them (a full-period linear congruential sequence).
fn next_block(block: &mut u64) -> u64 {
    *block = (block.wrapping_mul(5) + 12_345) % BLOCKS;
    *block * BLOCK as u64
}

fn read_blocks(criterion: &mut Criterion) {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    for block in 0..BLOCKS {
        file.write_all(&block.to_le_bytes().repeat(BLOCK / 8))
            .expect("space for 64 MiB");
    }
    let mut group = criterion.benchmark_group("raw disk, 4 KiB random read, cached");
    group.throughput(Throughput::Elements(1));
    let plain = File::open(file.path()).expect("the file opens");
    let (mut block, mut bytes) = (0, vec![0; BLOCK]);
    group.bench_function("peer: pread", |bencher| {
        bencher.iter(|| {
            plain
                .read_at(&mut bytes, next_block(&mut block))
                .expect("a cached read")
        });
    });
    let disk = RawDisk::open(file.path(), RawOptions::named("bench")).expect("the file is a disk");
    let mut executor = Executor::new(256).expect("io_uring");
    group.bench_function("depth 1", |bencher| {
        bencher.iter_custom(|rounds| executor.block_on(deep(&disk, rounds, 1)).expect("the ring works"));
    });
    group.bench_function("depth 32", |bencher| {
        bencher.iter_custom(|rounds| executor.block_on(deep(&disk, rounds, DEPTH)).expect("the ring works"));
    });
    group.finish();
}

/// `rounds` reads by `depth` tasks that each wait for one at a time.
async fn deep(disk: &RawDisk, rounds: u64, depth: usize) -> std::time::Duration {
    let queue = disk.open_queue().expect("a queue");
    let ring = Ring::current().expect("an executor runs");
    let begin = std::time::Instant::now();
    let tasks: Vec<_> = (0..depth as u64)
        .map(|task| {
            let queue = queue.clone();
            let share = rounds / depth as u64 + u64::from(task < rounds % depth as u64);
            ring.spawn(async move {
                let mut block = task * 511;
                let mut buffers = vec![IoBuf::heap(BLOCK, BLOCK).expect("memory")];
                for _ in 0..share {
                    let (result, back) = queue.read(next_block(&mut block), buffers).await;
                    result.expect("a cached read");
                    buffers = back;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await;
    }
    begin.elapsed()
}

criterion_group!(benches, find_a_handler, read_blocks);
criterion_main!(benches);
