//! What all queues of an image share, and what one queue has of its own.

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use disk::{Access, DiskIo};

use super::fault::Fault;
use super::inflate::{Crowd, Inflated};
use super::tables::Tables;
use crate::meta::extension::BitmapsPointer;
use crate::meta::header::{Compression, Header};
use crate::meta::layout::Layout;

/// The host cluster that is being filled with compressed data, and where it is still empty.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Filling {
    pub(crate) cluster: u64,
    /// Bytes of it in use, whole sectors.
    pub(crate) used: u64,
}

/// An open image.
///
/// Locks, in the order in which they are taken: `resizing`, a guest range ([`super::busy`]) or `filling`, `structure`, `commits`, `growing`, `tables`.
/// The last is the only one that is not asynchronous: it is held for short synchronous sections, never across an await.
pub(crate) struct Image {
    pub(crate) name: String,
    pub(crate) layout: Layout,
    pub(crate) access: Access,
    pub(crate) compression: Compression,
    /// Virtual size, whole sectors.
    pub(crate) size_bytes: AtomicU64,
    /// Size of the backing; 0 without one.
    pub(crate) backing_bytes: u64,
    pub(crate) has_backing: bool,
    /// Refcounts are written late.
    pub(crate) lazy: bool,
    /// The data file is what the guest sees, byte for byte.
    pub(crate) data_is_raw: bool,
    /// Where bitmaps are that were consistent when the image was opened.
    pub(crate) bitmaps: Option<BitmapsPointer>,
    pub(crate) tables: Mutex<Tables>,
    /// Held by whoever makes the virtual disk larger.
    pub(crate) resizing: async_lock::Mutex<()>,
    /// Held to make or copy L2 tables, to make refcount blocks, and to move the L1 or refcount table.
    pub(crate) structure: async_lock::Mutex<()>,
    /// Held by whoever commits. Inside: the number of the last cut that became durable.
    pub(crate) commits: async_lock::Mutex<u64>,
    /// Held by whoever makes the file longer.
    pub(crate) growing: async_lock::Mutex<()>,
    /// Held by whoever changes the header. Inside: its fields as they are in the file.
    pub(crate) header: async_lock::Mutex<Header>,
    /// Cuts begun.
    pub(crate) cuts: AtomicU64,
    /// A sync failed: what is in the file is unknown.
    pub(crate) poisoned: AtomicBool,
    /// The image says that it is being changed, as far as it has to.
    pub(crate) prepared: AtomicBool,
    /// Where the next compressed cluster may go.
    pub(crate) filling: async_lock::Mutex<Option<Filling>>,
    /// Recently decompressed clusters.
    pub(crate) inflated: Mutex<Inflated>,
}

impl Image {
    /// The tables, locked.
    pub(crate) fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The decompressed clusters, locked.
    pub(crate) fn inflated(&self) -> MutexGuard<'_, Inflated> {
        self.inflated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Virtual size now, bytes.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    /// Refuses changes after a sync has failed.
    pub(crate) fn check_sound(&self) -> Result<(), Fault> {
        match self.poisoned.load(Ordering::Acquire) {
            true => Err(Fault::Poisoned),
            false => Ok(()),
        }
    }

    /// How many of `len` bytes from a guest offset the backing has; what it has not reads as zeroes.
    pub(crate) fn in_backing(&self, guest: u64, len: u64) -> u64 {
        self.backing_bytes.saturating_sub(guest).min(len)
    }
}

/// One thread's way to an image: the shared state, and this thread's queues of the files below.
pub(crate) struct Engine {
    pub(crate) image: std::sync::Arc<Image>,
    pub(crate) file: Rc<dyn DiskIo>,
    pub(crate) backing: Option<Rc<dyn DiskIo>>,
    pub(crate) data: Option<Rc<dyn DiskIo>>,
    /// Reads of compressed clusters under way.
    pub(crate) inflating: Crowd,
}

impl Engine {
    /// Where guest data is: the data file, or the image's own.
    pub(crate) fn store(&self) -> &dyn DiskIo {
        self.data.as_deref().unwrap_or(&*self.file)
    }
}
