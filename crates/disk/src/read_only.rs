//! A disk that takes no changes, whatever is below it.

use std::rc::Rc;
use std::sync::Arc;

use guestmem::IoBuf;

use crate::{Access, Discard, Disk, DiskError, DiskFuture, DiskIo, DiskOp, Extent, Geometry, Transferred, ZeroMode};

/// Refuses every change with [`crate::DiskErrorKind::ReadOnly`]; reads pass through.
pub struct ReadOnly(Arc<dyn Disk>);

impl ReadOnly {
    /// The same disk, without its changes.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self(disk)
    }
}

fn sealed(geometry: Geometry) -> Geometry {
    Geometry {
        access: Access::ReadOnly,
        discard: Discard::Unsupported,
        ..geometry
    }
}

impl Disk for ReadOnly {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn geometry(&self) -> Geometry {
        sealed(self.0.geometry())
    }

    fn open_queue(&self) -> Result<Rc<dyn DiskIo>, DiskError> {
        Ok(Rc::new(ReadOnlyQueue(self.0.open_queue()?)))
    }
}

struct ReadOnlyQueue(Rc<dyn DiskIo>);

impl ReadOnlyQueue {
    fn refuse(&self, op: DiskOp, offset: u64, len: u64) -> Result<(), DiskError> {
        self.geometry().check(op, offset, len)
    }
}

impl DiskIo for ReadOnlyQueue {
    fn geometry(&self) -> Geometry {
        sealed(self.0.geometry())
    }

    fn read(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        self.0.read(offset, bufs)
    }

    fn write(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        let refused = self.refuse(DiskOp::Write, offset, crate::total_len(&bufs));
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

    fn grow(&self, size_bytes: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        let refused = self.geometry().check_grow(size_bytes).map(|_| ());
        Box::pin(async move { refused })
    }

    fn extents(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<Vec<Extent>, DiskError>> {
        self.0.extents(offset, len)
    }
}
