//! Commands that move data: READ, WRITE, VERIFY, SYNCHRONIZE CACHE (SBC-3 §5).

use std::error::Error;

use disk::{DiskError, DiskErrorKind};
use guestmem::IoBuf;
use telemetry::RateLimited;
use virtio::Scatter;

use super::cdb::Span;
use super::config::TRANSFER_BYTES_MAX;
use super::request::{Code, Stop};
use super::sense::{Key, Sense};
use super::task::Task;
use super::unit::{Seat, Unit};

/// Bytes that commands without a buffer of the guest's own work by. A queue of 1024 such commands holds 64 MiB.
pub(super) const PIECE: usize = 64 << 10;

/// Offset and length in bytes, if the unit has all of `span`.
pub(super) fn locate(unit: &Unit, span: Span) -> Result<(u64, u64), Sense> {
    let out_of_range = Sense::OUT_OF_RANGE.at_block(span.lba);
    let end = span.lba.checked_add(span.blocks).ok_or(out_of_range)?;
    if end > unit.blocks() {
        return Err(out_of_range);
    }
    // Does not overflow: it lies inside of a disk whose size is known in bytes.
    let block = u64::from(unit.block_bytes());
    Ok((span.lba * block, span.blocks * block))
}

/// The same, for one transfer.
fn locate_transfer(unit: &Unit, span: Span) -> Result<(u64, usize), Sense> {
    let (offset, len) = locate(unit, span)?;
    if len > TRANSFER_BYTES_MAX {
        return Err(Sense::bad_field(span.field, None));
    }
    let len = usize::try_from(len).map_err(|_| Sense::bad_field(span.field, None))?;
    Ok((offset, len))
}

/// The first `len` bytes of `data`.
pub(super) fn front(mut data: Scatter, len: usize) -> Result<Scatter, Stop> {
    if data.len() < len {
        return Err(Stop::Code(Code::Overrun));
    }
    drop(data.split_off(len));
    Ok(data)
}

pub(super) async fn read(seat: &Seat, span: Span, fua: bool, into: Scatter) -> Result<usize, Stop> {
    let (offset, len) = locate_transfer(seat.unit(), span)?;
    let into = front(into, len)?;
    if len == 0 {
        return Ok(0);
    }
    if fua {
        // What is read has to be on the medium, not only in a cache.
        seat.io
            .flush()
            .await
            .map_err(|error| failed(seat.unit(), &error, None))?;
    }
    let (result, _bufs) = seat.io.read(offset, into.into_bufs()).await;
    result.map_err(|error| failed(seat.unit(), &error, Some(span.lba)))?;
    Ok(len)
}

pub(super) async fn write(seat: &Seat, span: Span, fua: bool, from: Scatter) -> Result<usize, Stop> {
    let unit = seat.unit();
    if !unit.is_writable() {
        return Err(Sense::WRITE_PROTECTED.into());
    }
    let (offset, len) = locate_transfer(unit, span)?;
    let from = front(from, len)?;
    if len == 0 {
        return Ok(0);
    }
    let (result, _bufs) = seat.io.write(offset, from.into_bufs()).await;
    result.map_err(|error| failed(unit, &error, Some(span.lba)))?;
    if fua || !unit.has_write_cache() {
        seat.io.flush().await.map_err(|error| failed(unit, &error, None))?;
    }
    Ok(len)
}

/// Reads what is to be verified, and keeps none of it.
pub(super) async fn verify(seat: &Seat, span: Span, task: &Task) -> Result<(), Stop> {
    let (offset, len) = locate_transfer(seat.unit(), span)?;
    if len == 0 {
        return Ok(());
    }
    let mut buffer = vec![piece(PIECE.min(len))?];
    let mut done = 0;
    while done < len && task.verdict().is_none() {
        let rest = len - done;
        if rest < PIECE && done > 0 {
            buffer = vec![piece(rest)?];
        }
        let count = rest.min(PIECE);
        let result;
        (result, buffer) = seat.io.read(offset + done as u64, buffer).await;
        result.map_err(|error| failed(seat.unit(), &error, Some(span.lba)))?;
        done += count;
    }
    Ok(())
}

/// All of the disk: stores know no other flush.
pub(super) async fn synchronize(seat: &Seat, span: Span) -> Result<(), Stop> {
    locate(seat.unit(), span)?;
    seat.io.flush().await.map_err(|error| failed(seat.unit(), &error, None))
}

/// A buffer of the host's own.
pub(super) fn piece(len: usize) -> Result<IoBuf, Stop> {
    // INSUFFICIENT RESOURCES, which a driver may try again.
    IoBuf::heap(len, 4096).map_err(|_| Sense::new(Key::AbortedCommand, (0x55, 0x03)).into())
}

/// Turns the disk's word into the driver's. What the host has to know is logged as such; a guest that asks for the impossible
/// has a limit of its own, so that it can not hide the rest.
pub(super) fn failed(unit: &Unit, error: &DiskError, block: Option<u64>) -> Stop {
    static REFUSED: RateLimited = RateLimited::new();
    let disk = &unit.identity;
    match error.kind() {
        DiskErrorKind::Unsupported => {}
        DiskErrorKind::OutOfRange | DiskErrorKind::Misaligned | DiskErrorKind::ReadOnly => {
            if let Some(admitted) = REFUSED.admit() {
                let suppressed = admitted.suppressed;
                tracing::debug!(disk, %error, suppressed, "guest asked a disk for what it can not do");
            }
        }
        DiskErrorKind::NoSpace | DiskErrorKind::Io | DiskErrorKind::Corrupt | DiskErrorKind::Cancelled => {
            if let Some(admitted) = unit.log.admit() {
                let cause = error.source().map(tracing::field::display);
                tracing::warn!(disk, %error, cause, suppressed = admitted.suppressed, "disk command failed");
            }
        }
    }
    let sense = Sense::of_disk(error);
    Stop::Check(block.map_or(sense, |block| sense.at_block(block)))
}
