//! What all queues of a raw disk share: the descriptor, its size, and what it turned out to be able to do.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use disk::{DiskError, DiskErrorKind, DiskOp, Extent, ExtentKind, Geometry};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use uring::Allocation;

use crate::options::Role;
use crate::target::{DirectRules, Kind};

/// Most extents of one answer: callers come again, and no other work of the thread waits for long.
const EXTENTS_MAX: usize = 256;

/// One opening of a file or block device.
pub(crate) struct Store {
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) kind: Kind,
    pub(crate) direct: Option<DirectRules>,
    pub(crate) role: Role,
    /// All but the size.
    shape: Geometry,
    size_bytes: AtomicU64,
    /// Held while the size changes.
    growing: Mutex<()>,
    /// Abilities are assumed until the store says otherwise.
    punches: AtomicBool,
    zeroes: AtomicBool,
    discards_blocks: AtomicBool,
    tells_holes: AtomicBool,
}

impl Store {
    pub(crate) fn new(fd: OwnedFd, kind: Kind, geometry: Geometry, direct: Option<DirectRules>, role: Role) -> Self {
        Self {
            fd: Arc::new(fd),
            kind,
            direct,
            role,
            shape: geometry,
            size_bytes: AtomicU64::new(geometry.size_bytes),
            growing: Mutex::new(()),
            punches: AtomicBool::new(true),
            zeroes: AtomicBool::new(true),
            discards_blocks: AtomicBool::new(kind == Kind::Block),
            tells_holes: AtomicBool::new(kind == Kind::File),
        }
    }

    pub(crate) fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.size_bytes.load(Ordering::Acquire),
            ..self.shape
        }
    }

    /// As if the store had said that it has no fallocate.
    #[cfg(test)]
    pub(crate) fn forget_fallocate(&self) {
        self.punches.store(false, Ordering::Relaxed);
        self.zeroes.store(false, Ordering::Relaxed);
    }

    pub(crate) fn ability(&self, how: Allocation) -> Option<&AtomicBool> {
        match how {
            Allocation::PunchHole => Some(&self.punches),
            Allocation::ZeroRange => Some(&self.zeroes),
            Allocation::Reserve => None,
        }
    }

    /// Whether `BLKDISCARD` is worth a try; a device that says no is not asked again.
    pub(crate) fn discards_blocks(&self) -> &AtomicBool {
        &self.discards_blocks
    }

    /// Makes the store `size_bytes` large. Short: a file gets a hole at its end, a device has grown already or never will.
    pub(crate) fn grow(&self, size_bytes: u64) -> Result<(), DiskError> {
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.geometry().check_grow(size_bytes)? {
            return Ok(());
        }
        let failed = |error: Errno| match error {
            // What ftruncate(2) says of sizes the file system can not have.
            Errno::INVAL | Errno::FBIG => {
                DiskError::new(DiskOp::Grow, DiskErrorKind::NoSpace).because(io::Error::from(error))
            }
            _ => DiskError::from_io(DiskOp::Grow, error.into()),
        };
        let failed = |error| failed(error).at(0, size_bytes);
        match self.kind {
            Kind::File => {
                let stat = rustix::fs::fstat(&*self.fd).map_err(failed)?;
                // Never shorter: somebody may have extended it from outside.
                if u64::try_from(stat.st_size).unwrap_or_default() < size_bytes {
                    rustix::fs::ftruncate(&*self.fd, size_bytes).map_err(failed)?;
                }
            }
            Kind::Block => {
                // The position of a device's end is its size.
                if rustix::fs::seek(&*self.fd, SeekFrom::End(0)).map_err(failed)? < size_bytes {
                    let error = DiskError::new(DiskOp::Grow, DiskErrorKind::Unsupported).at(0, size_bytes);
                    return Err(error.because("the block device has to be extended first"));
                }
            }
        }
        self.size_bytes.store(size_bytes, Ordering::Release);
        Ok(())
    }

    /// The pieces of a checked range that is not empty. A few system calls that read metadata.
    pub(crate) fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>, DiskError> {
        let end = offset.saturating_add(len);
        let mut found = Pieces {
            sector: u64::from(self.shape.logical_sector_bytes),
            at: offset,
            end,
            list: Vec::new(),
        };
        while found.at < end && found.list.len() < EXTENTS_MAX {
            if !self.tells_holes.load(Ordering::Relaxed) {
                found.push(ExtentKind::Data, end);
                break;
            }
            match self.data_after(found.at) {
                Ok(Some((start, stop))) => {
                    found.push(ExtentKind::Zero, start);
                    found.push(ExtentKind::Data, stop);
                }
                Ok(None) => found.push(ExtentKind::Zero, end),
                Err(Errno::INVAL | Errno::OPNOTSUPP) => self.tells_holes.store(false, Ordering::Relaxed),
                Err(error) => return Err(DiskError::from_io(DiskOp::Extents, error.into())),
            }
        }
        Ok(found.list)
    }

    /// Where the next data is, at or after `at`; `None` if only a hole follows.
    fn data_after(&self, at: u64) -> Result<Option<(u64, u64)>, Errno> {
        let start = match rustix::fs::seek(&*self.fd, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => return Ok(None),
            start => start?,
        };
        match rustix::fs::seek(&*self.fd, SeekFrom::Hole(start)) {
            // Punched in between.
            Err(Errno::NXIO) => Ok(Some((start, start + 1))),
            stop => Ok(Some((start, stop?.max(start + 1)))),
        }
    }
}

/// Extents as they are collected, in whole sectors: a sector with any data in it is data.
struct Pieces {
    sector: u64,
    at: u64,
    end: u64,
    list: Vec<Extent>,
}

impl Pieces {
    /// What follows up to about `to` is `kind`.
    fn push(&mut self, kind: ExtentKind, to: u64) {
        let to = match kind {
            ExtentKind::Zero => to - to % self.sector,
            ExtentKind::Data => to.next_multiple_of(self.sector),
        };
        let len = to.min(self.end).saturating_sub(self.at);
        if len == 0 {
            return;
        }
        match self.list.last_mut() {
            Some(last) if last.kind == kind => last.len += len,
            _ => self.list.push(Extent {
                offset: self.at,
                len,
                kind,
            }),
        }
        self.at += len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_with_any_data_is_data() {
        let mut pieces = Pieces {
            sector: 4096,
            at: 4096,
            end: 40_960,
            list: Vec::new(),
        };
        pieces.push(ExtentKind::Zero, 9000);
        pieces.push(ExtentKind::Data, 9100);
        pieces.push(ExtentKind::Zero, 12_800);
        pieces.push(ExtentKind::Data, 13_000);
        pieces.push(ExtentKind::Zero, 40_960);
        let found: Vec<_> = pieces
            .list
            .iter()
            .map(|p| (p.offset, p.len, p.kind == ExtentKind::Data))
            .collect();
        assert_eq!(
            found,
            [(4096, 4096, false), (8192, 8192, true), (16_384, 24_576, false)]
        );
    }
}
