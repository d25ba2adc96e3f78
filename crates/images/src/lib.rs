//! Golden images: where they are kept, how they are imported from OCI registries, how machines get their copies.
//!
//! An image is one flat disk and, optionally, a kernel, an initrd and a default command line. It is named by the SHA-256
//! digest of its OCI image manifest (of the linux/amd64 one when the reference leads to an index), so the same content under
//! two tags is stored once. This crate keeps bytes; which machine uses which image is recorded elsewhere.
//!
//! ```text
//! <root>/images.lock             held while a Store is open
//! <root>/images/sha256/<hex>/    one sealed image: disk.raw, kernel, initrd, manifest.json; never opened for writing
//! <root>/blobs/<hex>             a fetched and verified layer, kept until the import that wanted it is done
//! <root>/blobs/<hex>.partial     the beginning of a layer, continued by the next pull
//! <root>/tmp/                    imports under way; emptied when a Store opens
//! ```
//!
//! An import goes through these phases; each leaves the store such that the next [`Store::open`] and pull can go on:
//!
//! ```text
//! Resolving ──► Fetching ──► Unpacking ──► Converting ──► Sealing ──► an image
//! manifest      layers into   disk, kernel,  qcow2 to raw    fsync, rename
//! and config    blobs/        initrd: tmp/   (raw: skipped)  into images/
//!     └─────────────┴─────────────┴──────────────┴──────────────┴──► error: tmp/ entry gone, blobs/ stays
//! ```
//!
//! # What an image contains
//!
//! A *container disk*: in any layer exactly one `/disk/*.qcow2`, `/disk/*.raw` or `/disk/*.img`, and at most one of each
//! `/boot/vmlinuz*` (or `vmlinux*`), `/boot/initrd*` (or `initramfs*`); where several are there, the one without a suffix is
//! taken. What the disk is, is read from its first bytes, not from its name. The default kernel command line is the file
//! `/boot/cmdline`, else the image label `io.karat.cmdline`. Links are never followed. A later layer replaces or (by OCI
//! whiteouts) removes what an earlier one brought.

mod clone;
mod digest;
mod disk_format;
mod durable;
mod error;
mod fetch;
mod flatten;
mod import;
mod layer;
mod manifest;
mod progress;
mod pull;
mod qcow2;
mod record;
mod reference;
mod registry;
mod sparse;
mod store;
mod tape;
mod unpack;

pub use clone::{CloneError, CloneMethod, Cloned};
pub use digest::{BadDigest, ImageDigest};
pub use disk_format::{DiskFormat, DiskFormatError};
pub use error::PullError;
pub use flatten::ConvertError;
pub use layer::LayerError;
pub use progress::{Phase, Progress};
pub use pull::Pulled;
pub use record::{DiskRecord, FileRecord, ImageRecord};
pub use reference::{BadReference, Reference};
pub use store::{OpenError, Recovery, Settings, Store, StoreError, Usage};
