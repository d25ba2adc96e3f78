//! Going from one header to the next so that a crash at any point leaves an image that is as before or as after.
//!
//! Whoever changes an image first writes the new structures to clusters that nobody uses, then hands over the new header:
//!
//! ```text
//!   walk the image as it will be             every host cluster's references
//!   mark dirty (version 3)               ┐   refcounts are believed to be wrong until the end: a crash means a rebuild
//!   clear bit 63 where references ≠ 1    │   safe for the old header and for the new one
//!   raise refcounts, or write new ones   ┘
//!   ── sync ── header ── sync ──             one sector: the switch
//!   lower refcounts                          ── sync ──
//!   set bit 63 where references = 1          ── sync ──
//!   no longer dirty
//! ```
//!
//! In version 2 there is no dirty bit; the same order makes a crash cost leaked clusters and needless copies, nothing more.

use disk::DiskError;

use super::check::Limits;
use super::file::{File, long, short};
use super::flags::{self, Pass};
use super::tables::Tables;
use super::refcounts::Refcounts;
use super::tally::{Kind, Tally, TallyFull};
use super::walk::{Count, Walk, WalkError};
use crate::meta::head::Head;
use crate::meta::header::incompatible;
use crate::meta::layout::{Layout, REFTABLE_BYTES_MAX};
use crate::meta::refcount;

/// Why an image can not be brought into its new state.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// The file fails.
    #[error("the image's file can not be changed")]
    Io(#[from] DiskError),
    /// It can not be walked.
    #[error("the references of the image can not be counted")]
    Walk(#[from] WalkError),
    /// Narrow refcounts.
    #[error(
        "cluster {cluster} would have {count} references, more than the image's {bits}-bit refcounts can hold: convert it \
         with wider ones"
    )]
    RefcountTooLarge {
        /// Host cluster number.
        cluster: u64,
        /// References it would have.
        count: u64,
        /// Width of the image's refcounts, bits.
        bits: u32,
    },
    /// The file is too long for any refcount table.
    #[error("the image's file of {file_bytes} bytes is too long for its refcounts: convert it with larger clusters")]
    TableTooLarge {
        /// Length of the file, bytes.
        file_bytes: u64,
    },
}

impl From<TallyFull> for SettleError {
    fn from(full: TallyFull) -> Self {
        Self::Walk(full.into())
    }
}

/// How the refcounts get from what is stored to what is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refit {
    /// Where they are, if every used cluster has a block; by new structures otherwise.
    InPlace,
    /// By new structures: those there are not to be believed.
    Rebuild,
}

/// Writes the fixed header fields: one sector.
pub(crate) async fn write_header(file: &File<'_>, head: &Head) -> Result<(), DiskError> {
    file.write(0, &head.header.encode()).await?;
    file.sync().await
}

/// Makes `head` with its `tables` the image's state. What it newly refers to has been written. The dirty and corrupt bits of
/// `head` are what they are to be at the end.
pub(crate) async fn settle(
    file: &File<'_>,
    head: &mut Head,
    tables: &Tables,
    (refit, limits): (Refit, Limits),
) -> Result<(), SettleError> {
    let (tally, refcounts, refit) = plan(file, head, tables, (refit, limits)).await?;
    let end = head.header.incompatible;
    if head.header.version >= 3 {
        mark_dirty(file).await?;
        head.header.incompatible |= incompatible::DIRTY;
    }
    flags::correct(file, head, &tally.0, Pass::Clear).await?;
    let mut state = State {
        file,
        head,
        walk_tally: tally,
        refcounts,
    };
    match refit {
        Refit::InPlace => {
            state.raise().await?;
            write_header(file, state.head).await?;
            state.lower().await?;
        }
        Refit::Rebuild => {
            state.rebuild(limits).await?;
            write_header(file, state.head).await?;
        }
    }
    let tally = &state.walk_tally.0;
    flags::correct(file, state.head, tally, Pass::Set).await?;
    file.sync().await?;
    state.head.header.incompatible = end;
    write_header(file, state.head).await?;
    Ok(())
}
