//! Transfers of plain bytes, in whatever pieces, and work on executors.

use std::sync::Arc;

use anyhow::{Context, Result};
use disk::{Disk, DiskIo};
use guestmem::IoBuf;
use uring::Executor;

use crate::random::Random;

/// Longest piece of a long transfer, bytes.
const PIECE: usize = 1 << 20;

/// Runs a future to its end on an executor of its own.
pub fn alone<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    Executor::new(64)?.block_on(future)?
}

/// Buffers of `len` bytes together, cut at random places.
fn buffers(random: &mut Random, len: usize) -> Result<Vec<IoBuf>> {
    let mut rest = IoBuf::heap(len, 4096)?;
    let mut bufs = Vec::new();
    while random.chance(30) && rest.len() > 1 && bufs.len() < 12 {
        let bound = if random.chance(50) { rest.len() / 512 } else { 0 };
        let at = match bound {
            0 => random.below(rest.len() as u64),
            sectors => random.below(sectors as u64) * 512,
        };
        let tail = rest.split_off(usize::try_from(at)?);
        bufs.push(std::mem::replace(&mut rest, tail));
    }
    bufs.push(rest);
    Ok(bufs)
}

/// Buffers that hold `bytes`, cut at random places.
pub fn scattered(random: &mut Random, bytes: &[u8]) -> Result<Vec<IoBuf>> {
    let mut bufs = buffers(random, bytes.len())?;
    let mut rest = bytes;
    for buf in &mut bufs {
        let (head, tail) = rest.split_at_checked(buf.len()).context("buffers are too long")?;
        buf.copy_from(0, head)?;
        rest = tail;
    }
    Ok(bufs)
}

/// Reads into buffers that are cut at random places.
pub async fn read_scattered(io: &dyn DiskIo, random: &mut Random, offset: usize, len: usize) -> Result<Vec<u8>> {
    let (result, bufs) = io.read(offset as u64, buffers(random, len)?).await;
    result?;
    let mut bytes = Vec::with_capacity(len);
    for buf in &bufs {
        bytes.extend_from_slice(&buf.to_vec());
    }
    Ok(bytes)
}

/// Reads a range.
pub async fn read(io: &dyn DiskIo, offset: usize, len: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let piece = PIECE.min(len - bytes.len());
        let at = (offset + bytes.len()) as u64;
        let (result, bufs) = io.read(at, vec![IoBuf::heap(piece, 4096)?]).await;
        result.with_context(|| format!("read of {piece} bytes at {at}"))?;
        bytes.extend_from_slice(&bufs.first().context("no buffer came back")?.to_vec());
    }
    Ok(bytes)
}

/// Reads all of a disk.
pub async fn read_all(disk: &Arc<dyn Disk>) -> Result<Vec<u8>> {
    let io = disk.open_queue()?;
    read(&*io, 0, usize::try_from(disk.geometry().size_bytes)?).await
}

/// The first place where two contents differ, in words.
pub fn difference(expected: &[u8], found: &[u8]) -> Option<String> {
    if expected == found {
        return None;
    }
    if expected.len() != found.len() {
        return Some(format!("{} bytes are expected, {} found", expected.len(), found.len()));
    }
    let wrong = |sectors: (usize, (&[u8], &[u8]))| (sectors.1.0 != sectors.1.1).then_some(sectors.0 * 512);
    let places: Vec<usize> = expected
        .chunks(512)
        .zip(found.chunks(512))
        .enumerate()
        .filter_map(wrong)
        .collect();
    let first = places.first().copied().unwrap_or_default();
    let sector = |bytes: &[u8]| bytes.get(first..first + 16).map(<[u8]>::to_vec).unwrap_or_default();
    Some(format!(
        "{} sectors differ, the first at byte {first}: {:02x?}… is expected, {:02x?}… found",
        places.len(),
        sector(expected),
        sector(found)
    ))
}
