//! What goes wrong inside of the engine, before it is told as a failed operation of the disk.

use disk::{DiskError, DiskErrorKind, DiskOp};

use crate::meta::entry::EntryError;

/// How an image contradicts itself. Found while it is used: nothing is changed because of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// A table entry is none.
    #[error("guest offset {guest:#x} is mapped by a damaged entry")]
    Entry {
        /// Guest offset, bytes.
        guest: u64,
        /// What is wrong with it.
        #[source]
        source: EntryError,
    },
    /// Something points outside of the file.
    #[error("host offset {0:#x} lies outside of the file: the image was cut short or is damaged; check it")]
    Outside(u64),
    /// Guest data would be where a table is, or a table would be two.
    #[error("host offset {0:#x} has two uses: the image is damaged; check and repair it before writing to it")]
    Overlap(u64),
    /// A refcount is wrong.
    #[error("host offset {0:#x} has a wrong refcount: the image is damaged; check and repair it before writing to it")]
    Refcount(u64),
    /// Compressed data is not.
    #[error("the compressed cluster at host offset {0:#x} can not be decompressed")]
    Compressed(u64),
}

/// An earlier failure after which nothing may be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "an earlier flush of the image failed, so what is on the disk is unknown: reopen the image before writing to it"
)]
pub struct Poisoned;

/// What stopped an operation.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The file, the backing or the data file said so.
    Below(DiskError),
    /// The image is damaged.
    Damage(Damage),
    /// See [`Poisoned`].
    Poisoned,
    /// There is no memory, or no room.
    Kind(DiskErrorKind),
}

impl Fault {
    /// As the failure of an operation on the image.
    pub(crate) fn of(self, op: DiskOp, offset: u64, len: u64) -> DiskError {
        let error = match self {
            Self::Below(below) => DiskError::new(op, kind_above(below.kind())).because(below),
            Self::Damage(damage) => DiskError::new(op, DiskErrorKind::Corrupt).because(damage),
            Self::Poisoned => DiskError::new(op, DiskErrorKind::Io).because(Poisoned),
            Self::Kind(kind) => DiskError::new(op, kind),
        };
        error.at(offset, len)
    }
}

/// A range that the file refuses is no mistake of the guest's.
const fn kind_above(kind: DiskErrorKind) -> DiskErrorKind {
    match kind {
        DiskErrorKind::OutOfRange | DiskErrorKind::Misaligned => DiskErrorKind::Io,
        other => other,
    }
}

impl From<DiskError> for Fault {
    fn from(error: DiskError) -> Self {
        Self::Below(error)
    }
}

impl From<Damage> for Fault {
    fn from(damage: Damage) -> Self {
        Self::Damage(damage)
    }
}

impl From<guestmem::IoBufError> for Fault {
    fn from(error: guestmem::IoBufError) -> Self {
        Self::Below(DiskError::new(DiskOp::Write, DiskErrorKind::Io).because(error))
    }
}
