//! Raw images: a file or a block device, byte for byte, behind the disk contract.
//!
//! ```text
//!   RawDisk::open(path) ─┐   inspect: kind, size, sectors, direct-I/O rules
//!   RawDisk::from_fd(fd) ┴─▶ lock (shared or exclusive, of the opening)  ──▶ RawDisk ── open_queue() ──▶ queue on a uring
//!                                                                              read, write: straight, or bounced if direct
//!                                                                              I/O can not use the guest's addresses
//!                                                                              discard, zeroes: fallocate, then fallbacks
//!                                                                              grow: ftruncate · extents: SEEK_DATA
//! ```
//!
//! Two openings of one file never write it both: see [`OpenError::InUse`].
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

mod bounce;
mod holder;
mod open;
mod options;
mod queue;
mod store;
mod target;
#[cfg(test)]
mod tests;

pub use holder::{Holder, Holders};
pub use open::{OpenError, RawDisk};
pub use options::{CacheMode, Locking, RawOptions, Role, SectorSize};
