//! What can go wrong with one disk operation: a kind for code, a place for people, a source for logs.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;

/// The operation that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskOp {
    /// Opening a queue of a disk.
    Open,
    /// [`crate::DiskIo::read`].
    Read,
    /// [`crate::DiskIo::write`].
    Write,
    /// [`crate::DiskIo::flush`].
    Flush,
    /// [`crate::DiskIo::discard`].
    Discard,
    /// [`crate::DiskIo::write_zeroes`].
    WriteZeroes,
    /// [`crate::DiskIo::grow`].
    Grow,
    /// [`crate::DiskIo::extents`].
    Extents,
}

impl fmt::Display for DiskOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write-zeroes",
            Self::Grow => "grow",
            Self::Extents => "extents",
        })
    }
}

/// The class of a failure: what callers decide by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskErrorKind {
    /// The range does not lie inside the disk (or its end is not representable).
    OutOfRange,
    /// Offset or length is not a multiple of the logical sector size.
    Misaligned,
    /// The disk does not accept changes.
    ReadOnly,
    /// The store behind the disk is full. The same request may succeed once an operator has made room.
    NoSpace,
    /// The store failed; the data of the range is unknown.
    Io,
    /// The disk does not do this operation. Asking again will not help.
    Unsupported,
    /// The format of the image is damaged. No operation is safe to repeat.
    Corrupt,
    /// The operation was cancelled, or its queue is shutting down. It may or may not have happened.
    Cancelled,
}

impl fmt::Display for DiskErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfRange => "beyond the end of the disk",
            Self::Misaligned => "not aligned to the logical sector size",
            Self::ReadOnly => "the disk is read-only",
            Self::NoSpace => "no space left where the disk is stored",
            Self::Io => "input/output error",
            Self::Unsupported => "not supported by this disk",
            Self::Corrupt => "the disk image is corrupt",
            Self::Cancelled => "cancelled",
        })
    }
}

/// One failed disk operation.
///
/// Displays operation, place and kind; the cause, where there is one, is the [`Error::source`] and is not repeated. Cheap to
/// clone, so that one failure can answer many merged requests.
#[derive(Debug, Clone)]
pub struct DiskError {
    kind: DiskErrorKind,
    op: DiskOp,
    range: Option<(u64, u64)>,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl DiskError {
    /// A failure of `op` as a whole.
    pub const fn new(op: DiskOp, kind: DiskErrorKind) -> Self {
        Self {
            kind,
            op,
            range: None,
            source: None,
        }
    }

    /// Classifies what the operating system said.
    pub fn from_io(op: DiskOp, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                DiskErrorKind::NoSpace
            }
            io::ErrorKind::Unsupported => DiskErrorKind::Unsupported,
            io::ErrorKind::ReadOnlyFilesystem => DiskErrorKind::ReadOnly,
            _ => DiskErrorKind::Io,
        };
        Self::new(op, kind).because(source)
    }

    /// Adds the place: byte offset and length of the request.
    #[must_use]
    pub const fn at(mut self, offset: u64, len: u64) -> Self {
        self.range = Some((offset, len));
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// The class of the failure.
    pub const fn kind(&self) -> DiskErrorKind {
        self.kind
    }

    /// The operation that failed.
    pub const fn op(&self) -> DiskOp {
        self.op
    }

    /// Where the failed request began, in bytes from the start of the disk.
    pub fn offset(&self) -> Option<u64> {
        self.range.map(|(offset, _)| offset)
    }

    /// Length of the failed request in bytes.
    pub fn len_bytes(&self) -> Option<u64> {
        self.range.map(|(_, len)| len)
    }
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk {}", self.op)?;
        if let (DiskOp::Grow, Some((_, size))) = (self.op, self.range) {
            write!(f, " to {size} bytes")?;
        } else if let Some((offset, len)) = self.range {
            write!(f, " of {len} bytes at {offset}")?;
        }
        write!(f, ": {}", self.kind)
    }
}

impl Error for DiskError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_place_and_kind_and_keeps_the_cause_apart() {
        let cause = io::Error::from_raw_os_error(28); // ENOSPC
        let error = DiskError::from_io(DiskOp::Write, cause).at(512, 4096);
        assert_eq!(error.kind(), DiskErrorKind::NoSpace);
        let text = error.to_string();
        assert_eq!(
            text,
            "disk write of 4096 bytes at 512: no space left where the disk is stored"
        );
        let source = error.source().expect("a cause").to_string();
        assert!(!text.contains(&source));
        assert_eq!((error.offset(), error.len_bytes()), (Some(512), Some(4096)));
    }
}
