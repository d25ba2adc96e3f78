//! A disk whose changes are durable when they complete.

use std::rc::Rc;
use std::sync::Arc;

use disk::{Disk, DiskError, DiskFuture, DiskIo, Extent, Geometry, Transferred, ZeroMode};
use guestmem::IoBuf;

/// Flushes after every change, and tells of the change only then. Guests that flush lose nothing by it but time.
pub(super) struct WriteThrough(Arc<dyn Disk>);

impl WriteThrough {
    pub(super) fn new(disk: Arc<dyn Disk>) -> Self {
        Self(disk)
    }
}

impl Disk for WriteThrough {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn open_queue(&self) -> Result<Rc<dyn DiskIo>, DiskError> {
        Ok(Rc::new(Queue(self.0.open_queue()?)))
    }
}

struct Queue(Rc<dyn DiskIo>);

impl Queue {
    async fn settle(&self, changed: Result<(), DiskError>) -> Result<(), DiskError> {
        changed?;
        self.0.flush().await
    }
}

impl DiskIo for Queue {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn read(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        self.0.read(offset, bufs)
    }

    fn write(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        Box::pin(async move {
            let (written, bufs) = self.0.write(offset, bufs).await;
            (self.settle(written).await, bufs)
        })
    }

    fn flush(&self) -> DiskFuture<'_, Result<(), DiskError>> {
        self.0.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move { self.settle(self.0.discard(offset, len).await).await })
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move { self.settle(self.0.write_zeroes(offset, len, mode).await).await })
    }

    fn grow(&self, size_bytes: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move { self.settle(self.0.grow(size_bytes).await).await })
    }

    fn extents(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<Vec<Extent>, DiskError>> {
        self.0.extents(offset, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use disk::{Access, DiskErrorKind, DiskOp, Fault, FaultPlan, Faulty, InMemory, conformance};

    fn memory() -> Arc<dyn Disk> {
        let bytes = vec![0; usize::try_from(conformance::SIZE_BYTES).unwrap()];
        Arc::new(InMemory::holding(bytes, Access::ReadWrite))
    }

    fn block_on<T>(future: DiskFuture<'_, T>) -> T {
        uring::Executor::new(8).unwrap().block_on(future).unwrap()
    }

    #[test]
    fn it_is_a_disk() {
        conformance::all(|| Arc::new(WriteThrough::new(memory())), |case| block_on(case));
    }

    #[test]
    fn a_change_that_is_not_durable_has_failed_and_reads_flush_nothing() {
        let plan = FaultPlan::new();
        plan.inject(Fault::always(DiskOp::Flush, DiskErrorKind::Io));
        let disk = WriteThrough::new(Arc::new(Faulty::new(memory(), plan.clone())));
        let io = disk.open_queue().unwrap();
        let buffer = || vec![IoBuf::heap(512, 512).unwrap()];
        block_on(io.read(0, buffer())).0.unwrap();
        assert_eq!(plan.struck(), 0);
        block_on(io.write(0, buffer())).0.unwrap_err();
        block_on(io.discard(0, 512)).unwrap_err();
        block_on(io.write_zeroes(0, 512, ZeroMode::MayUnmap)).unwrap_err();
        assert_eq!(plan.struck(), 3);
    }
}
