//! A disk without a file: for tests of whatever sits on top of a disk. Needs no executor.

use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use guestmem::IoBuf;

use crate::{Access, Disk, DiskError, DiskErrorKind, DiskFuture, DiskIo, DiskOp, Geometry, Transferred, ZeroMode};

/// Bytes in memory behind the disk contract. Clones are one disk. Every operation is done when its future is first polled.
#[derive(Clone)]
pub struct InMemory {
    geometry: Geometry,
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl InMemory {
    /// A disk of zeroes with this geometry.
    ///
    /// # Panics
    /// The size is more than this process can address.
    pub fn new(geometry: Geometry) -> Self {
        let size = usize::try_from(geometry.size_bytes).unwrap_or(usize::MAX);
        Self {
            geometry,
            bytes: Arc::new(Mutex::new(vec![0; size])),
        }
    }

    /// A disk of these bytes (a multiple of 512), read-only or not.
    pub fn holding(bytes: Vec<u8>, access: Access) -> Self {
        let geometry = Geometry {
            access,
            ..Geometry::of_size(bytes.len() as u64)
        };
        Self {
            geometry,
            bytes: Arc::new(Mutex::new(bytes)),
        }
    }

    /// The contents, copied.
    pub fn contents(&self) -> Vec<u8> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs `act` on the bytes of a checked range.
    fn on(
        &self,
        op: DiskOp,
        (offset, len): (u64, u64),
        act: impl FnOnce(&mut [u8]) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        self.geometry.check(op, offset, len)?;
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(usize::try_from(len).ok()?)?));
        match range.and_then(|range| bytes.get_mut(range)) {
            Some(bytes) => act(bytes),
            None => Err(DiskError::new(op, DiskErrorKind::OutOfRange).at(offset, len)),
        }
    }

    fn read_now(&self, offset: u64, bufs: &mut [IoBuf]) -> Result<(), DiskError> {
        self.on(DiskOp::Read, (offset, crate::total_len(bufs)), |bytes| {
            let mut rest = &*bytes;
            for buf in bufs {
                let (head, tail) = rest.split_at_checked(buf.len()).unwrap_or((rest, &[]));
                buf.copy_from(0, head)
                    .map_err(|e| DiskError::new(DiskOp::Read, DiskErrorKind::Io).because(e))?;
                rest = tail;
            }
            Ok(())
        })
    }

    fn write_now(&self, offset: u64, bufs: &[IoBuf]) -> Result<(), DiskError> {
        self.on(DiskOp::Write, (offset, crate::total_len(bufs)), |bytes| {
            let mut rest = bytes;
            for buf in bufs {
                let Some((head, tail)) = rest.split_at_mut_checked(buf.len()) else {
                    break;
                };
                buf.copy_to(0, head)
                    .map_err(|e| DiskError::new(DiskOp::Write, DiskErrorKind::Io).because(e))?;
                rest = tail;
            }
            Ok(())
        })
    }

    fn zero_now(&self, op: DiskOp, offset: u64, len: u64) -> Result<(), DiskError> {
        self.on(op, (offset, len), |bytes| {
            bytes.fill(0);
            Ok(())
        })
    }
}

impl Disk for InMemory {
    fn name(&self) -> &str {
        "in-memory disk"
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn open_queue(&self) -> Result<Rc<dyn DiskIo>, DiskError> {
        Ok(Rc::new(self.clone()))
    }
}

impl DiskIo for InMemory {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read(&self, offset: u64, mut bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        Box::pin(async move { (self.read_now(offset, &mut bufs), bufs) })
    }

    fn write(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        Box::pin(async move { (self.write_now(offset, &bufs), bufs) })
    }

    fn flush(&self) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async { Ok(()) })
    }

    fn discard(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move { self.zero_now(DiskOp::Discard, offset, len) })
    }

    fn write_zeroes(&self, offset: u64, len: u64, _mode: ZeroMode) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move { self.zero_now(DiskOp::WriteZeroes, offset, len) })
    }
}
