//! Checking an image: everything it refers to against everything it counts.

use disk::DiskIo;

use super::file::File;
use super::refcounts::Refcounts;
use super::report::CheckReport;
use super::tables::{self, Tables, TablesError};
use super::walk::{Count, Walk, WalkError};
use crate::meta::head::{Head, HeadError};
use crate::meta::header::incompatible;

/// What a check may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory for counting references, bytes: one for each host cluster near one that is used, two or three where it is shared
    /// or holds metadata. A file that holds more than twice as much, holes left out, may take half of what it holds, as a large
    /// image needs and no small file can pretend. The default suffices for 3 TiB in clusters of 64 KiB whatever is in the file.
    pub memory_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory_bytes: 64 << 20 }
    }
}

/// Why an image could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The header is not accepted.
    #[error("the image can not be opened for a check")]
    Head(#[from] HeadError),
    /// Snapshots can not be told.
    #[error("the image can not be checked")]
    Tables(#[from] TablesError),
    /// The check could not go on.
    #[error("the check of the image could not be finished")]
    Walk(#[from] WalkError),
}

/// Checks the image in a file. Changes nothing; what is wrong is in the report.
///
/// # Errors
/// The header is not accepted, the file fails, or the limits do not suffice.
pub async fn check(io: &dyn DiskIo, limits: Limits) -> Result<CheckReport, CheckError> {
    let file = File(io);
    let head = Head::read(io).await?;
    check_head(&file, &head, limits).await
}

pub(crate) async fn check_head(file: &File<'_>, head: &Head, limits: Limits) -> Result<CheckReport, CheckError> {
    let hanging = tables::read_tables(file, head).await?;
    let (walk, _) = survey(file, head, &hanging, limits).await?;
    Ok(walk.report)
}

/// A check that gives what it has counted, too.
pub(crate) async fn survey<'a>(
    file: &'a File<'a>,
    head: &Head,
    hanging: &Tables,
    limits: Limits,
) -> Result<(Walk<'a>, Refcounts<'a>), WalkError> {
    let mut walk = Walk::new(file, head, limits.memory_bytes).await?;
    walk.report.dirty = head.header.incompatible & incompatible::DIRTY != 0;
    walk.report.corrupt = head.header.incompatible & incompatible::CORRUPT != 0;
    let mut refcounts = walk.run(head, hanging, Count::WithRefcounts).await?;
    let mut from = 0;
    while let Some((found, next)) = walk.mismatches(&mut refcounts, from).await? {
        for m in found {
            let tell = || {
                format!(
                    "cluster {} has refcount {} and {} references",
                    m.cluster, m.stored, m.counted
                )
            };
            match m.stored > m.counted {
                true => walk.report.leak(tell),
                false => walk.report.corruption(tell),
            }
        }
        from = next;
    }
    Ok((walk, refcounts))
}
