//! The contract of Karat's disks.
//!
//! ```text
//!   control plane, migration          virtqueue worker (its own thread, its own executor)
//!            │                                  │ open_queue(), on this thread
//!            ▼                                  ▼
//!        Arc<dyn Disk> ── shared ──────▶  Rc<dyn DiskIo>   read · write · flush · discard · write_zeroes · grow · extents
//!            │                                  │          owned buffers in, the same buffers back
//!     ReadOnly, Faulty …                 (decorated likewise)
//! ```
//!
//! A [`Disk`] is what everybody shares, a [`DiskIo`] is one thread's way to it. What implementors owe is written at
//! [`DiskIo`], and `conformance::all` (feature `test-utils`) checks it; every implementor's tests call it. Decorators are
//! disks around disks: [`ReadOnly`], [`Faulty`], [`throttle::Throttle`]. What an image file is, [`probe`] finds out.
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

mod contract;
mod error;
mod faulty;
mod geometry;
mod read_only;

#[cfg(any(test, feature = "test-utils"))]
pub mod conformance;
#[cfg(any(test, feature = "test-utils"))]
mod in_memory;
pub mod probe;
pub mod throttle;

pub use contract::{Disk, DiskFuture, DiskIo, Extent, ExtentKind, Transferred, ZeroMode};
pub use error::{DiskError, DiskErrorKind, DiskOp};
pub use faulty::{Fault, FaultPlan, Faulty, Strike};
pub use geometry::{Access, Discard, Geometry};
#[cfg(any(test, feature = "test-utils"))]
pub use in_memory::InMemory;
pub use read_only::ReadOnly;

use guestmem::IoBuf;

/// Length in bytes of a transfer with these buffers.
pub fn total_len(bufs: &[IoBuf]) -> u64 {
    bufs.iter()
        .fold(0, |sum: u64, buf| sum.saturating_add(buf.len() as u64))
}
