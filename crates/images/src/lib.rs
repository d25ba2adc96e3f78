//! Golden images: where they are kept, how they are imported, how machines get their copies.
//!
//! An image is one disk and, optionally, a kernel, an initrd and a default command line. It is named by what it is made of: the
//! SHA-256 digest of the sealed disk, or of the list of its parts where there are several ([`ImageRecord`]). So the same bytes
//! from two sources are stored once. This crate keeps bytes; which machine uses which image is recorded elsewhere.
//!
//! ```text
//! <root>/images.lock             held while a Store is open
//! <root>/store.id                its identity, where that is remembered elsewhere ([`Settings::remembered`])
//! <root>/images/sha256/<hex>/    one sealed image: disk.raw or disk.qcow2, kernel, initrd, manifest.json; never opened for writing
//! <root>/blobs/<hex>             a fetched and verified layer (zstd ones only that an import broke off in), kept until the import that
//!                                wanted it is done
//! <root>/blobs/<hex>.partial     the beginning of such a layer, continued by the next import
//! <root>/partial/<hex>/          the beginning of a disk from the web or out of layers, continued by the next import from there,
//!                                or gone after a week; counts for the store's quota
//! <root>/tmp/                    imports under way; emptied when a Store opens
//! ```
//!
//! An import goes through these phases; each leaves the store such that the next [`Store::open`] and import can go on:
//!
//! ```text
//! Resolving ──► Fetching ──► Unpacking ──► Converting ──► Sealing ──► an image
//! manifest,     a stream to   container     foreign        fsync, rename
//! sums file,    its file; or  disks: disk,  formats to     into images/
//! signatures    layers to     kernel,       qcow2 (others:
//!               blobs/        initrd        skipped)
//!     └─────────────┴─────────────┴──────────────┴──────────────┴──► error: tmp/ entry gone, blobs/ stays
//! ```
//!
//! raw, ISO and qcow2 disks are sealed as they are, all others as qcow2. Images of the first version of the store, all raw and
//! named by their OCI manifest, go on working.
//!
//! # What a container disk contains
//!
//! In any layer exactly one `/disk/*.qcow2`, `/disk/*.raw` or `/disk/*.img`, and at most one of each `/boot/vmlinuz*` (or
//! `vmlinux*`), `/boot/initrd*` (or `initramfs*`); where several are there, the one without a suffix is taken. What the disk is,
//! is read from its content, not from its name. The default kernel command line is the file `/boot/cmdline`, else the image
//! label `io.karat.cmdline`. Links are never followed. A later layer replaces or (by OCI whiteouts) removes what an earlier one
//! brought.

mod anchor;
mod answering;
mod challenge;
mod clone;
mod container;
mod credentials;
mod damage;
mod digest;
mod disk_format;
mod durable;
mod ending;
mod entering;
mod error;
mod examine;
mod feed;
mod fetch;
mod gunzip;
mod import;
mod import_error;
mod inflow;
mod intake;
mod layer;
mod layer_writer;
mod layers;
mod local_disk;
mod manifest;
mod origin;
mod partial;
mod parts;
mod progress;
mod proof;
mod push;
mod record;
mod recovery;
mod reference;
mod registry;
mod registry_agents;
mod registry_push;
mod request;
mod seal;
mod sparse;
mod store;
mod store_error;
mod store_name;
mod stores;
mod taking;
mod tape;
mod unpack;
mod unzstd;
mod wanted;

pub use anchor::Tended;
pub use clone::{CloneError, CloneMethod, CloneWay, Cloned};
pub use credentials::CredentialsError;
pub use digest::{BadDigest, ImageDigest};
pub use disk_format::{DiskFormat, SourceFormat};
pub use error::PullError;
pub use examine::{Examination, Finding};
pub use import_error::ImportError;
pub use layer::LayerError;
pub use local_disk::{BootParts, LocalDisk};
pub use origin::Origin;
pub use progress::{Phase, Progress};
pub use push::{PushError, Pushed};
pub use record::{DiskRecord, FileRecord, ImageRecord};
pub use recovery::Recovery;
pub use reference::{BadReference, Reference};
pub use registry_agents::registry_policy;
pub use request::{ImportRequest, ImportSource, Imported, RequestedProof, SumsRequest};
pub use store::{Settings, Store, Usage};
pub use store_error::{OpenError, StoreError};
pub use store_name::{BadStoreName, StoreName};
pub use stores::{Closed, NotPlaced, Opening, Placed, StoreHealth, StoreState, Stores, StoresError};
