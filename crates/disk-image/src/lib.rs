//! Whole disk images: what karatd's volumes and a machine's disks are made, looked at and changed with.
//!
//! ```text
//!   path ── resolve (policy) ──▶ Chain: open files, top first, each with its format
//!                                  │
//!              open ◀──────────────┴──────────▶ info · compare · convert · commit · rebase · measure
//!                │                               (blocking; `Watch` tells progress and stops)
//!         Arc<dyn Disk> ── Switch ── under a running guest: snapshot · stream · mirror
//! ```
//!
//! Nothing here follows a path that an image names unless a [`Policy`] allows it, and no operation but [`resolve`] opens a path
//! at all. Functions that are not `async` block, run on executors of their own, and want a thread without one.
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

mod chain;
mod check;
mod commit;
mod compare;
mod convert;
mod copy;
mod create;
mod engine;
mod info;
pub mod live;
mod measure;
mod open;
mod padded;
mod policy;
mod rebase;
mod references;
mod resize;
mod resolve;
mod watch;
mod watched_io;

pub use chain::{Chain, DataFile, Layer};
pub use check::{CheckError, check, check_watched};
pub use commit::{CommitError, commit};
pub use compare::{CompareError, Comparison, compare};
pub use convert::{ConvertError, ConvertOptions, convert, virtual_size};
pub use copy::CopyError;
pub use create::{CreateError, CreateOptions, create};
pub use disk_qcow2::ops::{
    BackingName, CheckReport, Compat, CompressionKind, DataFileName, Measure, Preallocation, Repair,
};
pub use engine::EngineError;
pub use info::{ImageInfo, InfoError, info};
pub use measure::{MeasureError, measure};
pub use open::{CloseError, Image, OpenError, OpenOptions, assemble, open};
pub use policy::{AccessError, LAYERS_MAX, Policy};
pub use rebase::{RebaseError, rebase, rebase_unchecked};
pub use references::ReferenceError;
pub use resize::{ResizeError, resize};
pub use resolve::{ResolveError, resolve};
pub use watch::{Progress, Watch};

#[cfg(test)]
mod tests;
