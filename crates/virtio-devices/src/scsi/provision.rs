//! Commands that change many blocks at once: UNMAP and WRITE SAME (SBC-3 §5.28, §5.46).

use disk::ZeroMode;
use virtio::Scatter;

use super::block::{PIECE, failed, front, locate, piece};
use super::cdb::Span;
use super::config::TRANSFER_BYTES_MAX;
use super::inquiry::{RANGE_BYTES_MAX, UNMAP_DESCRIPTORS_MAX};
use super::request::Stop;
use super::sense::Sense;
use super::task::Task;
use super::unit::{Seat, Unit};

/// Bytes before the ranges in the parameters of UNMAP, and of each range.
const UNMAP_HEADER: usize = 8;
const UNMAP_RANGE: usize = 16;

/// The ranges of UNMAP, in bytes: all of them are good, or none is taken.
fn ranges(unit: &Unit, parameters: &[u8]) -> Result<Vec<(u64, u64)>, Sense> {
    let (Some(&[_, _, high, low]), Some(rest)) = (parameters.first_chunk(), parameters.get(UNMAP_HEADER..)) else {
        return Err(Sense::PARAMETERS_TOO_SHORT);
    };
    let told = usize::from(u16::from_be_bytes([high, low]));
    let (list, _) = rest.get(..told).unwrap_or(rest).as_chunks::<UNMAP_RANGE>();
    if list.len() > UNMAP_DESCRIPTORS_MAX as usize {
        return Err(Sense::bad_parameter(2));
    }
    let mut sum = 0;
    let mut found = Vec::with_capacity(list.len());
    for (number, &[a, b, c, d, e, f, g, h, n0, n1, n2, n3, ..]) in list.iter().enumerate() {
        let span = Span {
            lba: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            blocks: u32::from_be_bytes([n0, n1, n2, n3]).into(),
            field: 0,
        };
        let (offset, len) = locate(unit, span)?;
        sum += len;
        if sum > RANGE_BYTES_MAX {
            return Err(Sense::bad_parameter(UNMAP_HEADER + number * UNMAP_RANGE + 8));
        }
        found.push((offset, len));
    }
    Ok(found)
}

/// Bytes of parameters, and bytes unmapped.
pub(super) async fn unmap(seat: &Seat, length: usize, from: Scatter, task: &Task) -> Result<(usize, u64), Stop> {
    let unit = seat.unit();
    if !unit.is_writable() {
        return Err(Sense::WRITE_PROTECTED.into());
    }
    if unit.unmap_granularity().is_none() {
        return Err(Sense::INVALID_OPCODE.into());
    }
    let from = front(from, length)?;
    if length == 0 {
        return Ok((0, 0));
    }
    let mut parameters = vec![0; length];
    from.copy_to(&mut parameters);
    let mut sum = 0;
    for (offset, len) in ranges(unit, &parameters)? {
        if task.verdict().is_some() {
            break;
        }
        if len > 0 {
            let result = seat.io.discard(offset, len).await;
            result.map_err(|error| failed(unit, &error, Some(offset / u64::from(unit.block_bytes()))))?;
            sum += len;
        }
    }
    Ok((length, sum))
}

/// What WRITE SAME is told beside its blocks.
#[derive(Clone, Copy)]
pub(super) struct Same {
    pub(super) unmap: bool,
    pub(super) no_data: bool,
}

/// Bytes of data taken, bytes written, and whether as zeroes.
pub(super) async fn write_same(
    seat: &Seat,
    span: Span,
    how: Same,
    from: Scatter,
    task: &Task,
) -> Result<(usize, u64, bool), Stop> {
    let unit = seat.unit();
    if !unit.is_writable() {
        return Err(Sense::WRITE_PROTECTED.into());
    }
    if how.unmap && unit.unmap_granularity().is_none() {
        return Err(Sense::bad_field(1, Some(3)).into());
    }
    let (offset, len) = locate(unit, span)?;
    // Of no blocks: as VPD page 0xb0 says.
    if len == 0 || len > RANGE_BYTES_MAX {
        return Err(Sense::bad_field(span.field, None).into());
    }
    let taken = if how.no_data { 0 } else { unit.block_bytes() as usize };
    let from = front(from, taken)?;
    let mut block = vec![0; taken];
    from.copy_to(&mut block);
    let zeroes = block.iter().all(|&byte| byte == 0);
    let result = if zeroes {
        let mode = if how.unmap {
            ZeroMode::MayUnmap
        } else {
            ZeroMode::KeepAllocated
        };
        let result = seat.io.write_zeroes(offset, len, mode).await;
        result.map_err(|error| failed(unit, &error, Some(span.lba)))
    } else if len > TRANSFER_BYTES_MAX {
        // More would take the store for long, and nobody fills disks this way.
        Err(Sense::bad_field(span.field, None).into())
    } else {
        repeat(seat, (offset, len), &block, task).await
    };
    result?;
    if !unit.has_write_cache() {
        seat.io.flush().await.map_err(|error| failed(unit, &error, None))?;
    }
    Ok((taken, len, zeroes))
}

/// Writes `block` again and again over `len` bytes at `offset`.
async fn repeat(seat: &Seat, (offset, len): (u64, u64), block: &[u8], task: &Task) -> Result<(), Stop> {
    let unit = seat.unit();
    let whole = usize::try_from(len).unwrap_or(usize::MAX);
    let pattern = block.repeat((PIECE.min(whole) / block.len().max(1)).max(1));
    let filled = |count: usize| -> Result<_, Stop> {
        let mut buffer = piece(count)?;
        // Cannot fail: `count` is at most the length of both.
        let _ = buffer.copy_from(0, pattern.get(..count).unwrap_or(&pattern));
        Ok(vec![buffer])
    };
    let mut buffers = filled(pattern.len())?;
    let mut done = 0;
    while done < whole && task.verdict().is_none() {
        let rest = whole - done;
        let count = rest.min(pattern.len());
        if count < pattern.len() {
            buffers = filled(count)?;
        }
        let result;
        (result, buffers) = seat.io.write(offset + done as u64, buffers).await;
        let block = (offset + done as u64) / u64::from(unit.block_bytes());
        result.map_err(|error| failed(unit, &error, Some(block)))?;
        done += count;
    }
    Ok(())
}
