//! One queue of a raw disk: requests become operations of this thread's ring.

use std::future::ready;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use disk::{
    Access, DiskError, DiskErrorKind, DiskFuture, DiskIo, DiskOp, Extent, Geometry, Transferred, ZeroMode, total_len,
};
use guestmem::IoBuf;
use rustix::io::Errno;
use uring::blocking;
use uring::{Allocation, File, Ring, SyncScope};

use crate::bounce::{self, Cursor};
use crate::options::Role;
use crate::store::Store;
use crate::target::Kind;

pub(crate) struct RawQueue {
    ring: Ring,
    file: File,
    store: Arc<Store>,
}

impl RawQueue {
    pub(crate) fn new(store: Arc<Store>) -> Result<Self, DiskError> {
        let ring = Ring::current();
        let ring = ring.map_err(|error| DiskError::new(DiskOp::Open, DiskErrorKind::Unsupported).because(error))?;
        let file = File::from(Arc::clone(&store.fd));
        Ok(Self { ring, file, store })
    }

    /// Whether these buffers have to be copied for direct I/O.
    fn bounces(&self, bufs: &[IoBuf]) -> bool {
        self.store.direct.is_some_and(|rules| !bounce::fits(rules, bufs))
    }

    /// Fills `bufs`. In a container the sector that the file's end lies in is whole, with zeroes behind the end.
    async fn read_straight(&self, offset: u64, bufs: Vec<IoBuf>) -> Transferred {
        let (result, mut bufs) = self.ring.read_to_end(&self.file, offset, bufs).await;
        let moved = match result {
            Ok(moved) => moved,
            Err(error) => return (Err(failed(DiskOp::Read, error)), bufs),
        };
        let missing = total_len(&bufs).saturating_sub(moved as u64);
        let result = match self.store.role {
            _ if missing == 0 => Ok(()),
            Role::Container if missing < u64::from(self.geometry().logical_sector_bytes) => {
                zero_from(&mut bufs, moved);
                Ok(())
            }
            Role::Disk | Role::Container => Err(failed(DiskOp::Read, io::ErrorKind::UnexpectedEof.into())),
        };
        (result, bufs)
    }

    async fn read_bounced(&self, offset: u64, bufs: &[IoBuf]) -> Result<(), DiskError> {
        let total = total_len(bufs);
        let mut cursor = Cursor::default();
        let mut copy = bounce::piece(DiskOp::Read, total)?;
        for (at, len) in bounce::pieces(offset, total) {
            drop(copy.split_off(len));
            let (result, copies) = self.read_straight(at, vec![copy]).await;
            result?;
            for copied in &copies {
                cursor.scatter(bufs, copied);
            }
            copy = first(copies, DiskOp::Read)?;
        }
        Ok(())
    }

    async fn write_bounced(&self, offset: u64, bufs: &[IoBuf]) -> Result<(), DiskError> {
        let total = total_len(bufs);
        let mut cursor = Cursor::default();
        let mut copy = bounce::piece(DiskOp::Write, total)?;
        for (at, len) in bounce::pieces(offset, total) {
            drop(copy.split_off(len));
            cursor.gather(bufs, &copy);
            let (result, copies) = self.ring.write_all(&self.file, at, vec![copy]).await;
            result.map_err(|error| failed(DiskOp::Write, error))?;
            copy = first(copies, DiskOp::Write)?;
        }
        Ok(())
    }

    async fn write_zero_pieces(&self, offset: u64, total: u64) -> Result<(), DiskError> {
        let mut zeroes = bounce::piece(DiskOp::WriteZeroes, total)?;
        for (at, len) in bounce::pieces(offset, total) {
            drop(zeroes.split_off(len));
            let (result, copies) = self.ring.write_all(&self.file, at, vec![zeroes]).await;
            result.map_err(|error| failed(DiskOp::WriteZeroes, error))?;
            zeroes = first(copies, DiskOp::WriteZeroes)?;
        }
        Ok(())
    }

    /// `Ok(false)` when the store can not do it in this way.
    async fn allocate(&self, how: Allocation, offset: u64, len: u64) -> io::Result<bool> {
        let Some(able) = self.store.ability(how) else {
            return Ok(false);
        };
        if !able.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match self.ring.allocate(&self.file, how, offset, len).await {
            Ok(()) => Ok(true),
            Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => {
                    able.store(false, Ordering::Relaxed);
                    Ok(false)
                }
                // A block device with larger sectors than the guest's, and a range inside of one: this time only.
                Some(Errno::INVAL) if self.store.kind == Kind::Block => Ok(false),
                _ => Err(error),
            },
        }
    }

    async fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), DiskError> {
        let ways: &[Allocation] = match mode {
            ZeroMode::MayUnmap => &[Allocation::PunchHole, Allocation::ZeroRange],
            ZeroMode::KeepAllocated => &[Allocation::ZeroRange],
        };
        for &how in ways {
            if self
                .allocate(how, offset, len)
                .await
                .map_err(|error| failed(DiskOp::WriteZeroes, error))?
            {
                return Ok(());
            }
        }
        self.write_zero_pieces(offset, len).await
    }

    /// A store that can not discard has taken the hint and ignored it.
    async fn unmap(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        let punched = self.allocate(Allocation::PunchHole, offset, len).await;
        if punched.map_err(|error| failed(DiskOp::Discard, error))? {
            return Ok(());
        }
        if self.store.discards_blocks().load(Ordering::Relaxed)
            && let Err(error) = blocking::discard_blocks(&*self.store.fd, offset, len)
        {
            match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::OPNOTSUPP) => self.store.discards_blocks().store(false, Ordering::Relaxed),
                Some(Errno::INVAL) => {}
                _ => return Err(failed(DiskOp::Discard, error)),
            }
        }
        Ok(())
    }
}

/// What the ring said, classified.
fn failed(op: DiskOp, error: io::Error) -> DiskError {
    if error.raw_os_error() == Some(Errno::CANCELED.raw_os_error()) {
        return DiskError::new(op, DiskErrorKind::Cancelled).because(error);
    }
    DiskError::from_io(op, error)
}

/// Zeroes what is behind the first `skip` bytes of `bufs`.
fn zero_from(bufs: &mut [IoBuf], mut skip: usize) {
    for buf in bufs {
        let start = skip.min(buf.len());
        // Can not fail: the range ends with the buffer.
        let _ = buf.fill(start, buf.len() - start, 0);
        skip -= start;
    }
}

/// The one buffer that was lent to the ring.
fn first(bufs: Vec<IoBuf>, op: DiskOp) -> Result<IoBuf, DiskError> {
    bufs.into_iter()
        .next()
        .ok_or_else(|| DiskError::new(op, DiskErrorKind::Io))
}

impl DiskIo for RawQueue {
    fn geometry(&self) -> Geometry {
        self.store.geometry()
    }

    fn read(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        Box::pin(async move {
            let len = total_len(&bufs);
            if let Err(error) = self.geometry().check(DiskOp::Read, offset, len) {
                return (Err(error), bufs);
            }
            let (result, bufs) = if self.bounces(&bufs) {
                (Box::pin(self.read_bounced(offset, &bufs)).await, bufs)
            } else {
                self.read_straight(offset, bufs).await
            };
            (result.map_err(|error| error.at(offset, len)), bufs)
        })
    }

    fn write_now(&self, offset: u64, bufs: &[IoBuf]) -> bool {
        let checked = self.geometry().check(DiskOp::Write, offset, total_len(bufs));
        self.store.direct.is_none() && checked.is_ok() && self.ring.write_now(&self.file, offset, bufs)
    }

    fn write(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        if self.write_now(offset, &bufs) {
            return Box::pin(ready((Ok(()), bufs)));
        }
        Box::pin(async move {
            let len = total_len(&bufs);
            if let Err(error) = self.geometry().check(DiskOp::Write, offset, len) {
                return (Err(error), bufs);
            }
            let (result, bufs) = if self.bounces(&bufs) {
                (Box::pin(self.write_bounced(offset, &bufs)).await, bufs)
            } else {
                let (result, bufs) = self.ring.write_all(&self.file, offset, bufs).await;
                (result.map_err(|error| failed(DiskOp::Write, error)), bufs)
            };
            (result.map_err(|error| error.at(offset, len)), bufs)
        })
    }

    fn flush(&self) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move {
            match self.geometry().access {
                Access::ReadOnly => Ok(()),
                Access::ReadWrite => {
                    let synced = self.ring.sync(&self.file, SyncScope::Data).await;
                    synced.map_err(|error| failed(DiskOp::Flush, error))
                }
            }
        })
    }

    fn discard(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move {
            self.geometry().check(DiskOp::Discard, offset, len)?;
            if len == 0 {
                return Ok(());
            }
            self.unmap(offset, len).await.map_err(|error| error.at(offset, len))
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move {
            self.geometry().check(DiskOp::WriteZeroes, offset, len)?;
            if len == 0 {
                return Ok(());
            }
            self.zero(offset, len, mode)
                .await
                .map_err(|error| error.at(offset, len))
        })
    }

    fn grow(&self, size_bytes: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async move { self.store.grow(size_bytes) })
    }

    fn extents(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<Vec<Extent>, DiskError>> {
        Box::pin(async move {
            self.geometry().check(DiskOp::Extents, offset, len)?;
            let found = self.store.extents(offset, len);
            found.map_err(|error| error.at(offset, len))
        })
    }
}
