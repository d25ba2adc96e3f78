//! Size, sectors and abilities of a disk, and the one range check every implementor shares.

use crate::{DiskError, DiskErrorKind, DiskOp};

/// Whether a disk takes changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads and changes.
    ReadWrite,
    /// Reads only: every change is refused with [`DiskErrorKind::ReadOnly`].
    ReadOnly,
}

/// What a disk does with [`crate::DiskIo::discard`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discard {
    /// Refuses it with [`DiskErrorKind::Unsupported`].
    Unsupported,
    /// Takes it as a hint.
    Supported {
        /// Pieces smaller than this, or not aligned to it, are likely not to free anything. Bytes, a power of two, at least
        /// the logical sector size.
        granularity_bytes: u32,
    },
}

/// What a disk looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Capacity in bytes; a multiple of the logical sector size.
    pub size_bytes: u64,
    /// Unit of offsets and lengths in bytes: 512 or 4096.
    pub logical_sector_bytes: u32,
    /// Unit the store writes without reading first, in bytes: a power of two, at least the logical sector size. A hint.
    pub physical_sector_bytes: u32,
    /// Whether the disk takes changes.
    pub access: Access,
    /// Whether and how finely it gives space back.
    pub discard: Discard,
}

impl Geometry {
    /// A read-write disk of `size_bytes` with 512-byte logical and 4096-byte physical sectors that takes discards of 4096.
    pub const fn of_size(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            logical_sector_bytes: 512,
            physical_sector_bytes: 4096,
            access: Access::ReadWrite,
            discard: Discard::Supported {
                granularity_bytes: 4096,
            },
        }
    }

    /// The check that every implementor makes before it acts, so that all answer alike.
    ///
    /// In this order: changes on a read-only disk, discard where there is none, misaligned offset or length, range beyond
    /// the end (sums that overflow included). A zero-length request passes if its offset is not beyond the end.
    pub fn check(&self, op: DiskOp, offset: u64, len: u64) -> Result<(), DiskError> {
        let refuse = |kind| Err(DiskError::new(op, kind).at(offset, len));
        let changes = matches!(op, DiskOp::Write | DiskOp::Discard | DiskOp::WriteZeroes);
        if changes && self.access == Access::ReadOnly {
            return refuse(DiskErrorKind::ReadOnly);
        }
        if op == DiskOp::Discard && self.discard == Discard::Unsupported {
            return refuse(DiskErrorKind::Unsupported);
        }
        let sector = u64::from(self.logical_sector_bytes);
        if !offset.is_multiple_of(sector) || !len.is_multiple_of(sector) {
            return refuse(DiskErrorKind::Misaligned);
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => refuse(DiskErrorKind::OutOfRange),
        }
    }

    /// The check before a disk grows; whether it has to. In this order: read-only, no whole sectors, smaller than it is.
    pub fn check_grow(&self, size_bytes: u64) -> Result<bool, DiskError> {
        let refuse = |kind| DiskError::new(DiskOp::Grow, kind).at(0, size_bytes);
        if self.access == Access::ReadOnly {
            return Err(refuse(DiskErrorKind::ReadOnly));
        }
        if !size_bytes.is_multiple_of(u64::from(self.logical_sector_bytes)) {
            return Err(refuse(DiskErrorKind::Misaligned));
        }
        if size_bytes < self.size_bytes {
            return Err(refuse(DiskErrorKind::OutOfRange).because("a disk does not shrink"));
        }
        Ok(size_bytes > self.size_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_names_the_first_fault() {
        let disk = Geometry::of_size(8192);
        let kind = |geometry: &Geometry, op, offset, len| geometry.check(op, offset, len).map_err(|e| e.kind());
        assert_eq!(kind(&disk, DiskOp::Read, 0, 8192), Ok(()));
        assert_eq!(kind(&disk, DiskOp::Read, 8192, 0), Ok(()));
        assert_eq!(kind(&disk, DiskOp::Read, 8192, 512), Err(DiskErrorKind::OutOfRange));
        assert_eq!(
            kind(&disk, DiskOp::Read, u64::MAX - 511, 512),
            Err(DiskErrorKind::OutOfRange)
        );
        assert_eq!(kind(&disk, DiskOp::Write, 1, 512), Err(DiskErrorKind::Misaligned));
        let sealed = Geometry {
            access: Access::ReadOnly,
            discard: Discard::Unsupported,
            ..disk
        };
        assert_eq!(kind(&sealed, DiskOp::Discard, 1, 512), Err(DiskErrorKind::ReadOnly));
        assert_eq!(kind(&sealed, DiskOp::Read, 0, 512), Ok(()));
        let grow = |geometry: &Geometry, size| geometry.check_grow(size).map_err(|e| e.kind());
        assert_eq!(grow(&sealed, 8192), Err(DiskErrorKind::ReadOnly));
        assert_eq!(grow(&disk, 8193), Err(DiskErrorKind::Misaligned));
        assert_eq!(grow(&disk, 7680), Err(DiskErrorKind::OutOfRange));
        assert_eq!((grow(&disk, 8192), grow(&disk, 8704)), (Ok(false), Ok(true)));
        let keeps = Geometry {
            discard: Discard::Unsupported,
            ..disk
        };
        assert_eq!(kind(&keeps, DiskOp::Discard, 0, 512), Err(DiskErrorKind::Unsupported));
    }
}
