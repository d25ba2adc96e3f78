//! Of the suite: disks that become larger, and what they say they consist of.

use super::*;
use crate::ExtentKind;

/// How much a disk grows by, bytes: no round number of anything larger than a sector.
const MORE_BYTES: u64 = (1 << 20) + 12_288;

pub(super) async fn grows(disk: Arc<dyn Disk>) {
    let (io, other) = (open(&disk), open(&disk));
    let s = sector(&*io) as u64;
    let kind = |result: Result<(), DiskError>| {
        let error = result.expect_err("no such size");
        assert_eq!(error.op(), DiskOp::Grow);
        error.kind()
    };
    let edge = pattern(s as usize, 31);
    put(&*io, SIZE_BYTES - s, &edge, s as usize).await;
    assert_eq!(kind(io.grow(SIZE_BYTES + 1).await), DiskErrorKind::Misaligned);
    assert_eq!(kind(io.grow(SIZE_BYTES - s).await), DiskErrorKind::OutOfRange);
    assert_eq!(kind(io.grow(0).await), DiskErrorKind::OutOfRange);
    io.grow(SIZE_BYTES).await.expect("the size it has");
    let _ = kind(io.grow(u64::MAX - s + 1).await);
    assert_eq!(io.geometry().size_bytes, SIZE_BYTES, "refusals leave the size alone");
    let size = SIZE_BYTES + MORE_BYTES;
    match io.grow(size).await {
        Err(error) => {
            assert_eq!(error.kind(), DiskErrorKind::Unsupported, "{error}");
            assert_eq!(disk.geometry().size_bytes, SIZE_BYTES);
            return;
        }
        Ok(()) => {
            for seen in [disk.geometry(), io.geometry(), other.geometry()] {
                assert_eq!(seen.size_bytes, size, "everybody sees the new size");
            }
        }
    }
    let fresh = get(&*other, SIZE_BYTES, MORE_BYTES as usize, 1 << 16).await;
    assert!(is_zero(&fresh), "new space reads as zeroes");
    assert_eq!(get(&*other, SIZE_BYTES - s, s as usize, 512).await, edge);
    let bytes = pattern(2 * s as usize, 32);
    put(&*other, size - 2 * s, &bytes, s as usize).await;
    put(&*other, SIZE_BYTES - s, &bytes, s as usize).await;
    other
        .write_zeroes(SIZE_BYTES + s, s, ZeroMode::MayUnmap)
        .await
        .expect("zeroes there");
    other.flush().await.expect("flush");
    assert_eq!(get(&*io, size - 2 * s, 2 * s as usize, 512).await, bytes);
    assert_eq!(get(&*io, SIZE_BYTES - s, 2 * s as usize, 512).await, bytes);
    let (result, _) = io.write(size, vec![empty(s as usize)]).await;
    assert_eq!(result.expect_err("beyond").kind(), DiskErrorKind::OutOfRange);
    assert_eq!(kind(io.grow(SIZE_BYTES).await), DiskErrorKind::OutOfRange);
    let (one, two) = (size + s, size + 5 * s);
    for result in join(vec![io.grow(two), other.grow(two), io.grow(two)]).await {
        result.expect("the same size thrice at once");
    }
    let _ = other.grow(one).await.expect_err("smaller");
    assert_eq!(disk.geometry().size_bytes, two);
}

pub(super) async fn tells_extents(disk: Arc<dyn Disk>) {
    let io = open(&disk);
    let s = sector(&*io) as u64;
    for (offset, len, kind) in [
        (SIZE_BYTES, s, DiskErrorKind::OutOfRange),
        (1, s, DiskErrorKind::Misaligned),
        (u64::MAX - s + 1, s, DiskErrorKind::OutOfRange),
    ] {
        let error = io.extents(offset, len).await.expect_err("a bad range");
        assert_eq!((error.kind(), error.op()), (kind, DiskOp::Extents));
    }
    for offset in [0, SIZE_BYTES] {
        assert_eq!(io.extents(offset, 0).await.expect("nothing"), []);
    }
    let mut model = vec![0; SIZE_BYTES as usize];
    extents_match(&*io, &model).await;
    for (offset, sectors) in [(0, 1), (100 * s, 3), (1 << 20, 500), (SIZE_BYTES - s, 1)] {
        let bytes = pattern((sectors * s) as usize, offset + 1);
        put(&*io, offset, &bytes, 1 << 16).await;
        model[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
        extents_match(&*io, &model).await;
    }
    io.write_zeroes(1 << 20, 256 * s, ZeroMode::MayUnmap)
        .await
        .expect("zeroes");
    model[1 << 20..][..256 * s as usize].fill(0);
    extents_match(&*io, &model).await;
}

/// Goes through the disk by its extents, whole and in steps that fit nothing; what is told to be zeroes has to be.
pub(super) async fn extents_match(io: &dyn DiskIo, model: &[u8]) {
    let s = sector(io) as u64;
    for step in [SIZE_BYTES, 77 * s] {
        let mut at = 0;
        while at < SIZE_BYTES {
            let end = (at + step).min(SIZE_BYTES);
            let pieces = io.extents(at, end - at).await.expect("extents");
            assert!(!pieces.is_empty(), "a range begins with something");
            for piece in pieces {
                assert_eq!(piece.offset, at, "in order, without gaps");
                assert!(piece.len > 0 && piece.len.is_multiple_of(s) && piece.end() <= end);
                at = piece.end();
                let told = &model[piece.offset as usize..at as usize];
                assert!(piece.kind == ExtentKind::Data || is_zero(told), "{piece:?} holds data");
            }
        }
    }
}
