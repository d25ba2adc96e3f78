//! Operations on whole images that no machine uses: create, check, repair, snapshots …
//!
//! All work on the image's file through its disk contract, and on nothing else; a running executor is needed only if the
//! file's queue needs one. Changes are ordered so that an image is usable after a crash at any point.

mod amend;
mod change;
mod check;
mod create;
mod file;
mod first_cluster;
mod flags;
mod info;
mod measure;
mod plan;
mod refcounts;
mod repair;
mod report;
mod settle;
pub mod snapshot;
mod tables;
mod tally;
#[cfg(test)]
mod testing;
mod walk;

pub use crate::meta::head::{Head, HeadError};
pub use amend::{AmendError, set_backing, set_lazy_refcounts};
pub use change::ChangeError;
pub use check::{CheckError, Limits, check};
pub use create::{
    BackingName, Compat, CompressionKind, CreateError, CreateOptions, DataFileName, Preallocation, create,
};
pub(crate) use file::File;
pub use first_cluster::{BadName, HeadTooLong};
pub use info::{BitmapInfo, ImageInfo, InfoError, Qcow2Info, info, list_bitmaps};
pub use measure::{Measure, measure};
pub(crate) use repair::recover;
pub use repair::{Repair, RepairError, repair};
pub use report::CheckReport;
pub use settle::SettleError;
pub use tables::TablesError;
pub(crate) use tables::{bitmap_directory, bitmaps, read_tables};
pub use tally::TallyFull;
pub use walk::WalkError;
