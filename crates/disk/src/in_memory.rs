//! A disk without a file: for tests of whatever sits on top of a disk. Needs no executor.

use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guestmem::IoBuf;

use crate::{
    Access, Disk, DiskError, DiskErrorKind, DiskFuture, DiskIo, DiskOp, Extent, ExtentKind, Geometry, Transferred,
    ZeroMode,
};

/// Bytes in memory behind the disk contract. Clones are one disk. Every operation is done when its future is first polled.
#[derive(Clone)]
pub struct InMemory {
    /// All but the size, which is that of `bytes`.
    shape: Geometry,
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
            shape: geometry,
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
            shape: geometry,
            bytes: Arc::new(Mutex::new(bytes)),
        }
    }

    /// The contents, copied.
    pub fn contents(&self) -> Vec<u8> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn geometry_of(&self, bytes: &[u8]) -> Geometry {
        Geometry {
            size_bytes: bytes.len() as u64,
            ..self.shape
        }
    }

    /// Runs `act` on the bytes of a checked range.
    fn on<T>(
        &self,
        op: DiskOp,
        (offset, len): (u64, u64),
        act: impl FnOnce(&mut [u8]) -> Result<T, DiskError>,
    ) -> Result<T, DiskError> {
        let mut bytes = self.lock();
        self.geometry_of(&bytes).check(op, offset, len)?;
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

    fn grow_now(&self, size_bytes: u64) -> Result<(), DiskError> {
        let mut bytes = self.lock();
        self.geometry_of(&bytes).check_grow(size_bytes)?;
        let full = || DiskError::new(DiskOp::Grow, DiskErrorKind::NoSpace).at(0, size_bytes);
        let size = usize::try_from(size_bytes).map_err(|_| full())?;
        let more = size.saturating_sub(bytes.len());
        bytes.try_reserve(more).map_err(|_| full())?;
        bytes.resize(size, 0);
        Ok(())
    }

    /// Zeroes are found sector by sector.
    fn extents_now(&self, offset: u64, len: u64) -> Result<Vec<Extent>, DiskError> {
        let sector = usize::try_from(self.shape.logical_sector_bytes).unwrap_or(512);
        self.on(DiskOp::Extents, (offset, len), |bytes| {
            let mut found: Vec<Extent> = Vec::new();
            let mut at = offset;
            for piece in bytes.chunks(sector) {
                let kind = match piece.iter().all(|&byte| byte == 0) {
                    true => ExtentKind::Zero,
                    false => ExtentKind::Data,
                };
                let len = piece.len() as u64;
                match found.last_mut() {
                    Some(last) if last.kind == kind => last.len += len,
                    _ => found.push(Extent { offset: at, len, kind }),
                }
                at += len;
            }
            Ok(found)
        })
    }
}

impl Disk for InMemory {
    fn name(&self) -> &str {
        "in-memory disk"
    }

    fn geometry(&self) -> Geometry {
        self.geometry_of(&self.lock())
    }

    fn open_queue(&self) -> Result<Rc<dyn DiskIo>, DiskError> {
        Ok(Rc::new(self.clone()))
    }
}

impl DiskIo for InMemory {
    fn geometry(&self) -> Geometry {
        self.geometry_of(&self.lock())
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

    fn grow(&self, size_bytes: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move { self.grow_now(size_bytes) })
    }

    fn extents(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<Vec<Extent>, DiskError>> {
        Box::pin(async move { self.extents_now(offset, len) })
    }
}
