//! The image's file as operations see it: any byte range, zeroes behind its end, growth on demand.

use disk::{DiskError, DiskErrorKind, DiskIo, DiskOp, ExtentKind};
use guestmem::IoBuf;

/// Most that is transferred at once, bytes.
pub(crate) const CHUNK_BYTES: u64 = 2 << 20;

/// Most that is read in one call, bytes: no structure that is read as a whole is longer than the largest L1 table.
const READ_BYTES: u64 = 32 << 20;

/// A file below an image. Ranges need not be aligned to its sectors.
pub(crate) struct File<'a>(pub &'a dyn DiskIo);

/// `bytes` as a length or offset in a file.
pub(crate) const fn long(bytes: usize) -> u64 {
    bytes as u64
}

/// `bytes` as a length in memory; what does not fit is refused by whoever allocates it.
pub(crate) fn short(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

impl File<'_> {
    /// Length, bytes.
    pub(crate) fn len(&self) -> u64 {
        self.0.geometry().size_bytes
    }

    /// The whole sectors around a range.
    fn sectors(&self, op: DiskOp, offset: u64, len: u64) -> Result<(u64, u64), DiskError> {
        let sector = u64::from(self.0.geometry().logical_sector_bytes);
        let start = offset - offset % sector;
        let end = offset
            .checked_add(len)
            .and_then(|end| end.checked_next_multiple_of(sector));
        match end {
            Some(end) => Ok((start, end)),
            None => Err(DiskError::new(op, DiskErrorKind::OutOfRange).at(offset, len)),
        }
    }

    /// Reads; what lies behind the end of the file is zeroes.
    pub(crate) async fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, DiskError> {
        let (start, end) = self.sectors(DiskOp::Read, offset, len)?;
        if len > READ_BYTES {
            let error = DiskError::new(DiskOp::Read, DiskErrorKind::OutOfRange).at(offset, len);
            return Err(error.because("no structure of an image is that long"));
        }
        let mut bytes = Vec::with_capacity(short(len));
        let mut at = start;
        let there = end.min(self.len());
        while at < there {
            let piece = (there - at).min(CHUNK_BYTES);
            let buf = heap(DiskOp::Read, piece)?;
            let (result, bufs) = self.0.read(at, vec![buf]).await;
            result?;
            let read = bufs.first().map(IoBuf::to_vec).unwrap_or_default();
            let from = short(offset.saturating_sub(at)).min(read.len());
            let to = short(offset.saturating_add(len) - at).min(read.len());
            bytes.extend_from_slice(read.get(from..to).unwrap_or_default());
            at += piece;
        }
        bytes.resize(short(len), 0);
        Ok(bytes)
    }

    /// Writes, after growing the file if need be. What shares a sector with the range is read and kept.
    pub(crate) async fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let len = long(bytes.len());
        let (start, end) = self.sectors(DiskOp::Write, offset, len)?;
        self.grow(end).await?;
        let mut at = start;
        while at < end {
            let piece = (end - at).min(CHUNK_BYTES);
            let whole = offset <= at && at + piece <= offset + len;
            let mut buf = match whole {
                true => heap(DiskOp::Write, piece)?,
                false => {
                    let (result, bufs) = self.0.read(at, vec![heap(DiskOp::Read, piece)?]).await;
                    result?;
                    bufs.into_iter().next().map_or_else(|| heap(DiskOp::Read, piece), Ok)?
                }
            };
            let from = at.max(offset);
            let to = (at + piece).min(offset + len);
            let part = bytes.get(short(from - offset)..short(to - offset)).unwrap_or_default();
            buf.copy_from(short(from - at), part)
                .map_err(|e| DiskError::new(DiskOp::Write, DiskErrorKind::Io).because(e))?;
            self.0.write(at, vec![buf]).await.0?;
            at += piece;
        }
        Ok(())
    }

    /// Makes the file at least this long.
    pub(crate) async fn grow(&self, len: u64) -> Result<(), DiskError> {
        let sector = u64::from(self.0.geometry().logical_sector_bytes);
        match len.checked_next_multiple_of(sector) {
            Some(len) if len <= self.len() => Ok(()),
            Some(len) => self.0.grow(len).await,
            None => Err(DiskError::new(DiskOp::Grow, DiskErrorKind::OutOfRange).at(0, len)),
        }
    }

    /// Makes durable what was written.
    pub(crate) async fn sync(&self) -> Result<(), DiskError> {
        self.0.flush().await
    }

    /// How much of the file is not known to be zeroes, bytes; where it is this much or more, no more is looked for.
    pub(crate) async fn data_bytes(&self, enough: u64) -> Result<u64, DiskError> {
        let (mut data, mut at, end) = (0, 0, self.len());
        while at < end && data < enough {
            let extents = self.0.extents(at, end - at).await?;
            let Some(last) = extents.last() else { break };
            at = last.end().max(at + 1);
            let here = extents.iter().filter(|extent| extent.kind == ExtentKind::Data);
            data += here.map(|extent| extent.len).sum::<u64>();
        }
        Ok(data)
    }

    /// The first byte of `offset..end` that has to be read to be known; `end` if all of it is known to be zeroes.
    pub(crate) async fn data_from(&self, offset: u64, end: u64) -> Result<u64, DiskError> {
        let (start, there) = self.sectors(DiskOp::Extents, offset, end.saturating_sub(offset))?;
        let there = there.min(self.len());
        let mut at = start;
        while at < there {
            let extents = self.0.extents(at, there - at).await?;
            let Some(last) = extents.last() else { break };
            if let Some(data) = extents.iter().find(|extent| extent.kind == ExtentKind::Data) {
                return Ok(data.offset.clamp(offset, end));
            }
            at = last.end().max(at + 1);
        }
        Ok(end)
    }
}

fn heap(op: DiskOp, len: u64) -> Result<IoBuf, DiskError> {
    IoBuf::heap(short(len), 4096).map_err(|e| DiskError::new(op, DiskErrorKind::Io).because(e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::block_on;
    use disk::{Access, Disk, Geometry, InMemory};

    #[test]
    fn any_range_is_read_and_written() {
        for sector in [512, 4096] {
            let mut geometry = Geometry::of_size(8192);
            geometry.logical_sector_bytes = sector;
            let disk = InMemory::new(geometry);
            let io = disk.open_queue().unwrap();
            let file = File(&*io);
            block_on(async {
                file.write(1000, &[7; 5000]).await.unwrap();
                assert_eq!(file.read(998, 4).await.unwrap(), [0, 0, 7, 7]);
                assert_eq!(file.read(5999, 3).await.unwrap(), [7, 0, 0]);
                file.write(9000, b"end").await.unwrap();
                assert!(file.len() >= 9003 && file.len().is_multiple_of(u64::from(sector)));
                assert_eq!(file.read(9001, 20_000).await.unwrap()[..3], *b"nd\0");
                assert_eq!(file.read(1 << 40, 3).await.unwrap(), [0; 3]);
                assert!(file.read(u64::MAX - 1, 3).await.is_err());
                assert!(file.data_bytes(u64::MAX).await.unwrap() <= file.len());
                let hole = file.data_from(6144, 7168).await.unwrap();
                assert_eq!(hole, if sector == 512 { 7168 } else { 6144 });
                assert_eq!(file.data_from(5000, 9000).await.unwrap(), 5000);
                assert_eq!(file.data_from(1 << 40, 1 << 50).await.unwrap(), 1 << 50);
            });
        }
    }

    #[test]
    fn a_sealed_file_takes_no_writes() {
        let disk = InMemory::holding(vec![0; 512], Access::ReadOnly);
        let io = disk.open_queue().unwrap();
        assert!(block_on(File(&*io).write(0, b"x")).is_err());
    }
}
