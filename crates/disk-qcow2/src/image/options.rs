//! How to use an image, and with which words it is refused.

use std::sync::Arc;

use disk::{Access, Disk, DiskError};

use crate::meta::head::HeadError;
use crate::ops::{RepairError, TablesError};

/// Metadata kept in memory unless the options say otherwise, bytes: maps 256 GiB in clusters of 64 KiB.
pub const CACHE_BYTES: u64 = 32 << 20;

/// How to use an image.
pub struct Qcow2Options {
    /// What to call it in messages.
    pub name: String,
    /// Whether it is written. The file has to allow it.
    pub access: Access,
    /// Bound of the metadata kept in memory, bytes; see [`CACHE_BYTES`]. Below 64 slices (256 KiB) it counts as that.
    pub cache_bytes: u64,
    /// What shows where the image has nothing. The image's header names it: [`crate::meta::head::Head`].
    pub backing: Option<Arc<dyn Disk>>,
    /// Where guest data is, for images that keep it elsewhere.
    pub data_file: Option<Arc<dyn Disk>>,
}

impl Qcow2Options {
    /// Read-write, without backing or data file.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            access: Access::ReadWrite,
            cache_bytes: CACHE_BYTES,
            backing: None,
            data_file: None,
        }
    }
}

/// Why an image can not be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Header, extensions or snapshot table.
    #[error("qcow2 image {name} can not be used")]
    Head {
        /// The image.
        name: String,
        /// Why.
        #[source]
        source: HeadError,
    },
    /// A queue of the file, backing or data file.
    #[error("qcow2 image {name}: a file below it can not be used")]
    Below {
        /// The image.
        name: String,
        /// Why.
        #[source]
        source: DiskError,
    },
    /// A file below has other sectors than images have.
    #[error("qcow2 image {name}: files below it must have 512-byte sectors: open them in cached mode")]
    Sectors {
        /// The image.
        name: String,
    },
    /// The file is not writable.
    #[error("qcow2 image {name} is to be written, but its file was opened read-only")]
    ReadOnly {
        /// The image.
        name: String,
    },
    /// The image names a backing, and none was given.
    #[error("qcow2 image {name} needs its backing file {backing}")]
    NoBacking {
        /// The image.
        name: String,
        /// The name in its header.
        backing: String,
    },
    /// The image keeps guest data elsewhere, and no such file was given; or the other way round.
    #[error("qcow2 image {name} {}", if *.wanted { "keeps its data in another file, which was not allowed or given" } else { "keeps its data itself, but a data file was given" })]
    DataFile {
        /// The image.
        name: String,
        /// It needs one.
        wanted: bool,
    },
    /// Snapshot table or bitmaps.
    #[error("qcow2 image {name} can not be used")]
    Tables {
        /// The image.
        name: String,
        /// Why.
        #[source]
        source: TablesError,
    },
    /// It was not closed cleanly, and rebuilding its refcounts failed.
    #[error("qcow2 image {name} was not closed cleanly, and its refcounts can not be rebuilt")]
    Repair {
        /// The image.
        name: String,
        /// Why.
        #[source]
        source: RepairError,
    },
    /// Marked as corrupt.
    #[error("qcow2 image {name} is marked as corrupt: repair it before writing to it")]
    Corrupt {
        /// The image.
        name: String,
    },
    /// A table is not in the file.
    #[error("qcow2 image {name}: the {table} lies outside of the file, which was cut short or is damaged")]
    Outside {
        /// The image.
        name: String,
        /// Which.
        table: &'static str,
    },
}
