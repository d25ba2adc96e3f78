//! What every implementor of the disk contract must pass. Failures panic with what was expected.
#![expect(clippy::expect_used, reason = "a test suite reports by panicking")]
#![expect(clippy::cast_possible_truncation, reason = "offsets here stay below SIZE_BYTES")]
#![cfg_attr(
    not(test),
    expect(clippy::indexing_slicing, reason = "a test that indexes wrongly has to fail")
)]

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use guestmem::IoBuf;

use crate::{Access, Discard, Disk, DiskError, DiskErrorKind, DiskFuture, DiskIo, DiskOp, ZeroMode, total_len};

/// Size the suite wants its disks to have, bytes.
pub const SIZE_BYTES: u64 = 4 << 20;

/// Writes in flight at once, and buffers in one transfer: more than a submission queue or one `readv` takes.
const MANY: u64 = 1500;

/// Longest request of the random model, bytes.
const MODEL_STEP_BYTES: u64 = 100 << 10;

type Case = fn(Arc<dyn Disk>) -> DiskFuture<'static, ()>;

/// Runs the suite. `make` gives a fresh, writable, zeroed disk of [`SIZE_BYTES`] each time; `block_on` runs a future to its
/// end on the calling thread, with whatever executor the implementor needs.
pub fn all(make: impl Fn() -> Arc<dyn Disk>, block_on: impl Fn(DiskFuture<'_, ()>)) {
    let cases: [(&str, Case); 12] = [
        ("geometry", |disk| Box::pin(geometry(disk))),
        ("read back", |disk| Box::pin(reads_back(disk))),
        ("bad ranges", |disk| Box::pin(refuses_bad_ranges(disk))),
        ("zero length", |disk| Box::pin(accepts_zero_length(disk))),
        ("write zeroes", |disk| Box::pin(writes_zeroes(disk))),
        ("discard", |disk| Box::pin(discards(disk))),
        ("many at once", |disk| Box::pin(takes_many_at_once(disk))),
        ("many buffers", |disk| Box::pin(takes_many_buffers(disk))),
        ("dropped futures", |disk| Box::pin(survives_dropped_futures(disk))),
        ("two queues", |disk| Box::pin(queues_see_each_other(disk))),
        ("grow", |disk| Box::pin(growth::grows(disk))),
        ("extents", |disk| Box::pin(growth::tells_extents(disk))),
    ];
    for (name, case) in cases {
        eprint_case(name);
        block_on(case(make()));
    }
    for seed in 1..=4 {
        eprint_case("model");
        block_on(Box::pin(follows_the_model(make(), seed)));
    }
}

#[expect(clippy::print_stderr, reason = "shown by the test harness when a case fails")]
fn eprint_case(name: &str) {
    eprintln!("disk conformance: {name}");
}

/// A buffer of `len` bytes that depend on `seed` and on their place.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&next(&mut state).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// xorshift64 (Marsaglia 2003).
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn buf(bytes: &[u8]) -> IoBuf {
    IoBuf::from_bytes(bytes).expect("memory")
}

fn empty(len: usize) -> IoBuf {
    IoBuf::heap(len, 1).expect("memory")
}

/// Writes `bytes`, cut into buffers of `piece` bytes.
async fn put(io: &dyn DiskIo, offset: u64, bytes: &[u8], piece: usize) {
    let bufs: Vec<IoBuf> = bytes.chunks(piece).map(buf).collect();
    let count = bufs.len();
    let (result, bufs) = io.write(offset, bufs).await;
    result.expect("write");
    assert_eq!(bufs.len(), count, "a write gives all its buffers back");
}

/// Reads `len` bytes through buffers of `piece` bytes.
async fn get(io: &dyn DiskIo, offset: u64, len: usize, piece: usize) -> Vec<u8> {
    let mut bufs = Vec::new();
    let mut left = len;
    while left > 0 {
        bufs.push(empty(left.min(piece)));
        left -= left.min(piece);
    }
    let count = bufs.len();
    let (result, bufs) = io.read(offset, bufs).await;
    result.expect("read");
    assert_eq!(bufs.len(), count, "a read gives all its buffers back");
    let mut bytes = Vec::with_capacity(len);
    for buf in &bufs {
        bytes.extend_from_slice(&buf.to_vec());
    }
    bytes
}

fn is_zero(bytes: &[u8]) -> bool {
    // Compares with itself shifted by one: as fast as `memcmp` in unoptimised builds too.
    bytes
        .first()
        .is_none_or(|&first| first == 0 && bytes[1..] == bytes[..bytes.len() - 1])
}

/// Awaits all, polling each whenever anything wakes.
async fn join<T>(mut futures: Vec<DiskFuture<'_, T>>) -> Vec<T> {
    let mut done: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    poll_fn(|context| {
        for (future, slot) in futures.iter_mut().zip(&mut done) {
            if slot.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(context)
            {
                *slot = Some(value);
            }
        }
        if done.iter().all(Option::is_some) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    done.into_iter().flatten().collect()
}

fn open(disk: &Arc<dyn Disk>) -> Rc<dyn DiskIo> {
    disk.open_queue().expect("a queue")
}

fn sector(io: &dyn DiskIo) -> usize {
    io.geometry().logical_sector_bytes as usize
}

async fn geometry(disk: Arc<dyn Disk>) {
    let io = open(&disk);
    let geometry = disk.geometry();
    assert_eq!(geometry, io.geometry(), "a queue tells the disk's geometry");
    assert_eq!(geometry.size_bytes, SIZE_BYTES);
    assert_eq!(geometry.access, Access::ReadWrite);
    assert!([512, 4096].contains(&geometry.logical_sector_bytes));
    assert!(geometry.physical_sector_bytes.is_power_of_two());
    assert!(geometry.physical_sector_bytes >= geometry.logical_sector_bytes);
    assert_eq!(geometry.size_bytes % u64::from(geometry.logical_sector_bytes), 0);
    if let Discard::Supported { granularity_bytes } = geometry.discard {
        assert!(granularity_bytes.is_power_of_two() && granularity_bytes >= geometry.logical_sector_bytes);
    }
    assert!(!disk.name().is_empty());
}

async fn reads_back(disk: Arc<dyn Disk>) {
    let io = open(&disk);
    let s = sector(&*io);
    assert!(is_zero(&get(&*io, 0, 4 * s, s).await), "a fresh disk is all zeroes");
    for (index, piece) in [s, 8 * s, 1, 7, s - 1, s + 1, 3 * s].into_iter().enumerate() {
        let offset = (index as u64 * 64 + 3) * s as u64;
        let bytes = pattern(8 * s, index as u64 + 1);
        put(&*io, offset, &bytes, piece).await;
        for read_piece in [8 * s, s, 13] {
            assert_eq!(
                get(&*io, offset, 8 * s, read_piece).await,
                bytes,
                "pieces of {piece}, read by {read_piece}"
            );
        }
        let around = get(&*io, offset - s as u64, 10 * s, s).await;
        assert!(
            is_zero(&around[..s]) && is_zero(&around[9 * s..]),
            "neighbours of a write are untouched"
        );
    }
    let last = SIZE_BYTES - s as u64;
    let bytes = pattern(s, 99);
    put(&*io, last, &bytes, s).await;
    io.flush().await.expect("flush");
    assert_eq!(get(&*io, last, s, s).await, bytes, "the last sector is usable");
}

async fn refuses_bad_ranges(disk: Arc<dyn Disk>) {
    let io = open(&disk);
    let s = sector(&*io) as u64;
    let table = [
        (SIZE_BYTES, s, DiskErrorKind::OutOfRange),
        (SIZE_BYTES - s, 2 * s, DiskErrorKind::OutOfRange),
        (SIZE_BYTES + s, 0, DiskErrorKind::OutOfRange),
        (0, SIZE_BYTES + s, DiskErrorKind::OutOfRange),
        (u64::MAX - s + 1, s, DiskErrorKind::OutOfRange),
        (i64::MAX as u64 + 1, s, DiskErrorKind::OutOfRange),
        (1, s, DiskErrorKind::Misaligned),
        (0, s - 1, DiskErrorKind::Misaligned),
        (SIZE_BYTES - 1, 1, DiskErrorKind::Misaligned),
    ];
    let before = get(&*io, 0, SIZE_BYTES as usize, 1 << 16).await;
    for (offset, len, kind) in table {
        let bytes = vec![0xee; len as usize];
        let expect = |op, result: Result<(), DiskError>| {
            let error = result.expect_err("a bad range");
            assert_eq!((error.kind(), error.op()), (kind, op), "{op} of {len} at {offset}");
            assert_eq!((error.offset(), error.len_bytes()), (Some(offset), Some(len)));
        };
        let (result, bufs) = io.write(offset, vec![buf(&bytes), empty(0)]).await;
        expect(DiskOp::Write, result);
        assert_eq!(
            (bufs.len(), total_len(&bufs)),
            (2, len),
            "a refused write gives its buffers back"
        );
        let (result, bufs) = io.read(offset, bufs).await;
        expect(DiskOp::Read, result);
        assert_eq!(
            (bufs.len(), total_len(&bufs)),
            (2, len),
            "a refused read gives its buffers back"
        );
        assert!(bufs[0].to_vec() == bytes, "a refused read leaves its buffers alone");
        expect(
            DiskOp::WriteZeroes,
            io.write_zeroes(offset, len, ZeroMode::MayUnmap).await,
        );
        if io.geometry().discard != Discard::Unsupported {
            expect(DiskOp::Discard, io.discard(offset, len).await);
        }
    }
    let huge = u64::MAX - (s - 1);
    for result in [
        io.write_zeroes(huge, huge, ZeroMode::KeepAllocated).await,
        io.write_zeroes(0, huge, ZeroMode::MayUnmap).await,
    ] {
        assert_eq!(result.expect_err("a huge range").kind(), DiskErrorKind::OutOfRange);
    }
    assert!(
        get(&*io, 0, SIZE_BYTES as usize, 1 << 16).await == before,
        "refused requests change nothing"
    );
}

async fn accepts_zero_length(disk: Arc<dyn Disk>) {
    let io = open(&disk);
    for offset in [0, SIZE_BYTES] {
        for bufs in [vec![], vec![empty(0)]] {
            let count = bufs.len();
            let (result, bufs) = io.write(offset, bufs).await;
            result.expect("an empty write");
            let (result, bufs) = io.read(offset, bufs).await;
            result.expect("an empty read");
            assert_eq!(bufs.len(), count);
        }
        io.write_zeroes(offset, 0, ZeroMode::KeepAllocated)
            .await
            .expect("no zeroes");
        io.write_zeroes(offset, 0, ZeroMode::MayUnmap).await.expect("no zeroes");
        if io.geometry().discard != Discard::Unsupported {
            io.discard(offset, 0).await.expect("nothing to discard");
        }
    }
    let s = sector(&*io);
    let bytes = pattern(s, 5);
    let (result, _) = io.write(0, vec![empty(0), buf(&bytes), empty(0)]).await;
    result.expect("empty buffers between others");
    assert_eq!(get(&*io, 0, s, s).await, bytes);
}

async fn writes_zeroes(disk: Arc<dyn Disk>) {
    let io = open(&disk);
    let s = sector(&*io);
    for (mode, base) in [(ZeroMode::MayUnmap, 0), (ZeroMode::KeepAllocated, 1 << 20)] {
        let len = 512 << 10;
        let mut model = pattern(len, base + 1);
        put(&*io, base, &model, 64 << 10).await;
        // One sector, a run across what a file system calls a block, and a long run; none at the edges.
        for (start, count) in [(s, s), (16 * s + s, 9 * s), (64 << 10, 256 << 10)] {
            io.write_zeroes(base + start as u64, count as u64, mode)
                .await
                .expect("write zeroes");
            model[start..start + count].fill(0);
            assert!(
                get(&*io, base, len, 64 << 10).await == model,
                "{mode:?}: {count} bytes at {start}"
            );
        }
        let bytes = pattern(s, 77);
        put(&*io, base + (64 << 10), &bytes, s).await;
        assert_eq!(
            get(&*io, base + (64 << 10), s, s).await,
            bytes,
            "zeroed space takes data again"
        );
    }
    io.write_zeroes(0, SIZE_BYTES, ZeroMode::MayUnmap)
        .await
        .expect("the whole disk at once");
    assert!(is_zero(&get(&*io, 0, SIZE_BYTES as usize, 1 << 20).await));
}

async fn discards(disk: Arc<dyn Disk>) {
    let io = open(&disk);
    let s = sector(&*io);
    if io.geometry().discard == Discard::Unsupported {
        let error = io.discard(0, s as u64).await.expect_err("no discard here");
        assert_eq!(error.kind(), DiskErrorKind::Unsupported);
        return;
    }
    let len = 256 << 10;
    let bytes = pattern(len, 3);
    put(&*io, 0, &bytes, len).await;
    let (start, end) = (3 * s, len - 5 * s);
    io.discard(start as u64, (end - start) as u64).await.expect("discard");
    let after = get(&*io, 0, len, len).await;
    assert!(
        after[..start] == bytes[..start] && after[end..] == bytes[end..],
        "neighbours of a discard are untouched"
    );
    for (new, old) in after[start..end].chunks(s).zip(bytes[start..end].chunks(s)) {
        assert!(
            new == old || is_zero(new),
            "a discarded sector reads as it was or as zeroes"
        );
    }
    assert!(get(&*io, 0, len, s).await == after, "and does not change its mind");
    let again = pattern(s, 4);
    put(&*io, start as u64, &again, s).await;
    assert_eq!(
        get(&*io, start as u64, s, s).await,
        again,
        "discarded space takes data again"
    );
    io.flush().await.expect("flush");
}

async fn takes_many_at_once(disk: Arc<dyn Disk>) {
    let io = open(&disk);
    let s = sector(&*io);
    let count = MANY.min(SIZE_BYTES / s as u64);
    let sectors: Vec<Vec<u8>> = (0..count).map(|i| pattern(s, i + 1)).collect();
    let io_ref = &*io;
    let writes = sectors
        .iter()
        .enumerate()
        .map(|(i, bytes)| io_ref.write((i * s) as u64, vec![buf(bytes)]))
        .collect();
    for (result, _) in join(writes).await {
        result.expect("one of many writes");
    }
    for result in join(vec![io.flush(), io.flush()]).await {
        result.expect("one of two flushes");
    }
    let reads = (0..count).map(|i| io_ref.read(i * s as u64, vec![empty(s)])).collect();
    for ((result, bufs), bytes) in join(reads).await.into_iter().zip(&sectors) {
        result.expect("one of many reads");
        assert!(&bufs[0].to_vec() == bytes, "each read gets its own sector");
    }
}

async fn takes_many_buffers(disk: Arc<dyn Disk>) {
    let io = open(&disk);
    let s = sector(&*io);
    let len = (MANY as usize * 512).next_multiple_of(s);
    let bytes = pattern(len, 8);
    put(&*io, s as u64, &bytes, 512).await;
    assert!(
        get(&*io, s as u64, len, 512).await == bytes,
        "{MANY} buffers in one transfer"
    );
    assert!(
        get(&*io, s as u64, len, len).await == bytes,
        "{MANY} buffers, read as one"
    );
}

async fn survives_dropped_futures(disk: Arc<dyn Disk>) {
    let io = open(&disk);
    let s = sector(&*io);
    let old = pattern(16 * s, 1);
    put(&*io, 0, &old, 16 * s).await;
    for _ in 0..32 {
        for i in 0..16 {
            let mut write = io.write((i * s) as u64, vec![buf(&vec![0xab; s])]);
            poll_fn(|context| Poll::Ready(write.as_mut().poll(context).is_ready())).await;
            drop(write);
            let mut read = io.read(0, vec![empty(16 * s)]);
            poll_fn(|context| Poll::Ready(read.as_mut().poll(context).is_ready())).await;
            drop(read);
        }
    }
    drop(io.flush());
    drop(io.write(0, vec![empty(s)]));
    io.flush().await.expect("the queue still works");
    let far = pattern(s, 2);
    put(&*io, 1 << 20, &far, s).await;
    assert_eq!(get(&*io, 1 << 20, s, s).await, far);
    let now = get(&*io, 0, 16 * s, 16 * s).await;
    assert!(
        now.iter()
            .zip(&old)
            .all(|(&new, &old)| new == old || new == 0xab || new == 0),
        "old or new bytes, no others"
    );
}

async fn queues_see_each_other(disk: Arc<dyn Disk>) {
    let (one, two) = (open(&disk), open(&disk));
    drop(disk);
    let s = sector(&*one);
    let bytes = pattern(16 * s, 21);
    put(&*one, 0, &bytes, 16 * s).await;
    assert_eq!(
        get(&*two, 0, 16 * s, 16 * s).await,
        bytes,
        "what one queue completed the other sees"
    );
    two.write_zeroes(0, s as u64, ZeroMode::KeepAllocated)
        .await
        .expect("write zeroes");
    drop(two);
    one.flush().await.expect("flush");
    assert!(is_zero(&get(&*one, 0, s, s).await));
}

/// Random operations against a plain vector.
async fn follows_the_model(disk: Arc<dyn Disk>, seed: u64) {
    let io = open(&disk);
    let s = sector(&*io) as u64;
    let sectors = SIZE_BYTES / s;
    let mut model = vec![0; SIZE_BYTES as usize];
    let mut state = seed;
    for step in 0..400 {
        let first = next(&mut state) % sectors;
        let count = (next(&mut state) % (MODEL_STEP_BYTES / s)).min(sectors - first);
        let (offset, len) = (first * s, count * s);
        let range = offset as usize..(offset + len) as usize;
        let piece = (next(&mut state) % 20_000 + 1) as usize;
        let shown = format!("seed {seed}, step {step}: {len} bytes at {offset}");
        match next(&mut state) % 8 {
            0..=2 => {
                let bytes = pattern(len as usize, next(&mut state));
                put(&*io, offset, &bytes, piece).await;
                model[range].copy_from_slice(&bytes);
            }
            3..=4 => assert!(get(&*io, offset, len as usize, piece).await == model[range], "{shown}"),
            5 => {
                io.write_zeroes(offset, len, ZeroMode::MayUnmap)
                    .await
                    .expect("write zeroes");
                model[range].fill(0);
            }
            6 => {
                io.write_zeroes(offset, len, ZeroMode::KeepAllocated)
                    .await
                    .expect("write zeroes");
                model[range].fill(0);
            }
            _ => io.flush().await.expect("flush"),
        }
    }
    assert!(
        get(&*io, 0, SIZE_BYTES as usize, 1 << 18).await == model,
        "seed {seed}: the whole disk"
    );
    growth::extents_match(&*io, &model).await;
}

mod growth;
#[cfg(test)]
mod tests;
