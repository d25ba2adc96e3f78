//! qcow2 images behind the disk contract.
//!
//! ```text
//!   meta/   pure: bytes ⇄ header, entries, refcounts, extensions, snapshots, bitmaps      (no I/O, total on any input)
//!   image/  the engine: cache of metadata, reads, writes, commits                         (async, shared by queues)
//!   ops/    whole-image operations: create, check, repair, snapshots
//! ```
//!
//! An image lives on any [`disk::Disk`] (its *file*); its backing and its external data file are disks too, opened by the
//! caller by its own policy. Nothing here opens a path. The format is QEMU's `docs/interop/qcow2.rst` ("the specification").
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

mod image;
pub mod meta;
pub mod ops;

pub use image::{
    CACHE_BYTES, Compressor, Damage, LayerExtent, LayerKind, LayerMap, OpenError, Poisoned, Qcow2Disk, Qcow2Options,
};
