//! A disk that goes on with zeroes behind its end.

use std::rc::Rc;
use std::sync::Arc;

use disk::{
    Access, Discard, Disk, DiskError, DiskErrorKind, DiskFuture, DiskIo, DiskOp, Extent, ExtentKind, Geometry,
    Transferred, ZeroMode, total_len,
};
use guestmem::IoBuf;

/// A disk, or nothing, and zeroes up to a size. Takes no changes.
pub(crate) struct Padded {
    below: Option<Arc<dyn Disk>>,
    size_bytes: u64,
}

impl Padded {
    /// Nothing but zeroes.
    pub(crate) fn void(size_bytes: u64) -> Arc<dyn Disk> {
        Self::of(None, size_bytes)
    }

    /// `below`, at least `size_bytes` large.
    pub(crate) fn of(below: Option<Arc<dyn Disk>>, size_bytes: u64) -> Arc<dyn Disk> {
        let there = below.as_ref().map_or(0, |disk| disk.geometry().size_bytes);
        Arc::new(Self {
            below,
            size_bytes: size_bytes.max(there).next_multiple_of(4096),
        })
    }
}

impl Disk for Padded {
    fn name(&self) -> &str {
        self.below.as_ref().map_or("nothing", |disk| disk.name())
    }

    fn geometry(&self) -> Geometry {
        let like = Geometry::of_size(self.size_bytes);
        Geometry {
            size_bytes: self.size_bytes,
            access: Access::ReadOnly,
            discard: Discard::Unsupported,
            ..self.below.as_ref().map_or(like, |disk| disk.geometry())
        }
    }

    fn open_queue(&self) -> Result<Rc<dyn DiskIo>, DiskError> {
        let below = self.below.as_ref().map(|disk| disk.open_queue()).transpose()?;
        Ok(Rc::new(Queue {
            geometry: self.geometry(),
            end: below.as_ref().map_or(0, |io| io.geometry().size_bytes),
            below,
        }))
    }
}

struct Queue {
    geometry: Geometry,
    below: Option<Rc<dyn DiskIo>>,
    /// Where the disk below ends, bytes.
    end: u64,
}

impl Queue {
    async fn read_padded(&self, offset: u64, mut bufs: Vec<IoBuf>) -> Transferred {
        let len = total_len(&bufs);
        if let Err(error) = self.geometry.check(DiskOp::Read, offset, len) {
            return (Err(error), bufs);
        }
        if let Some(below) = &self.below
            && offset.saturating_add(len) <= self.end
        {
            return below.read(offset, bufs).await;
        }
        let result = self.read_past_end(offset, &mut bufs).await;
        (result, bufs)
    }

    /// A range that ends behind the end of the disk below: what there is of it is copied.
    async fn read_past_end(&self, offset: u64, bufs: &mut [IoBuf]) -> Result<(), DiskError> {
        let there = usize::try_from(self.end.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut front = Vec::new();
        if let Some(below) = &self.below
            && there > 0
        {
            let no_memory = |error| DiskError::new(DiskOp::Read, DiskErrorKind::Io).because(error);
            let buf = IoBuf::heap(there, 4096).map_err(no_memory)?;
            let (result, read) = below.read(offset, vec![buf]).await;
            result?;
            front = read.iter().flat_map(IoBuf::to_vec).collect();
        }
        let mut rest = front.as_slice();
        for buf in bufs {
            let (head, tail) = rest.split_at_checked(buf.len()).unwrap_or((rest, &[]));
            // Neither can fail: the ranges are the buffer's.
            let _ = buf.copy_from(0, head);
            let _ = buf.fill(head.len(), buf.len() - head.len(), 0);
            rest = tail;
        }
        Ok(())
    }

    fn refuse(&self, op: DiskOp, offset: u64, len: u64) -> Result<(), DiskError> {
        self.geometry.check(op, offset, len)
    }
}

impl DiskIo for Queue {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        Box::pin(self.read_padded(offset, bufs))
    }

    fn write(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        let refused = self.refuse(DiskOp::Write, offset, total_len(&bufs));
        Box::pin(async move { (refused, bufs) })
    }

    fn flush(&self) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async { Ok(()) })
    }

    fn discard(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        let refused = self.refuse(DiskOp::Discard, offset, len);
        Box::pin(async move { refused })
    }

    fn write_zeroes(&self, offset: u64, len: u64, _mode: ZeroMode) -> DiskFuture<'_, Result<(), DiskError>> {
        let refused = self.refuse(DiskOp::WriteZeroes, offset, len);
        Box::pin(async move { refused })
    }

    fn extents(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<Vec<Extent>, DiskError>> {
        Box::pin(async move {
            self.geometry.check(DiskOp::Extents, offset, len)?;
            let there = self.end.saturating_sub(offset).min(len);
            let kind = ExtentKind::Zero;
            match &self.below {
                Some(below) if there > 0 => below.extents(offset, there).await,
                _ if len == 0 => Ok(Vec::new()),
                _ => Ok(vec![Extent { offset, len, kind }]),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use disk::InMemory;

    #[test]
    fn behind_the_end_there_are_zeroes() {
        let bytes = disk::conformance::pattern(5120, 1);
        let below: Arc<dyn Disk> = Arc::new(InMemory::holding(bytes.clone(), Access::ReadWrite));
        let padded = Padded::of(Some(below), 9000);
        assert_eq!(padded.geometry().size_bytes, 12_288);
        let read = async |offset, lens: &[usize]| {
            let io = padded.open_queue().unwrap();
            let bufs = lens.iter().map(|&len| IoBuf::from_bytes(&vec![9; len]).unwrap());
            let (result, bufs) = io.read(offset, bufs.collect()).await;
            result.unwrap();
            bufs.iter().flat_map(IoBuf::to_vec).collect::<Vec<u8>>()
        };
        crate::engine::block_on(async {
            assert!(read(0, &[5120]).await == bytes);
            let across = read(4608, &[100, 924, 512]).await;
            assert!(across[..512] == bytes[4608..] && across[512..] == [0; 1024]);
            assert!(read(5120, &[7168]).await == [0; 7168]);
            let extents = padded.open_queue().unwrap().extents(0, 12_288).await.unwrap();
            assert_eq!((extents[0].kind, extents[0].end()), (ExtentKind::Data, 5120));
        })
        .unwrap();
    }
}
